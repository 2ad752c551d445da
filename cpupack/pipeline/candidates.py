"""Chooses the targets to build for a CPU: those that the recipe allows and that this host and torch can build."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import cpupack.runtime
from cpupack.errors import QuantizationError
from cpupack.recipe import Recipe
from cpupack.runtime.engine.library import describe
from cpupack.runtime.host.cpu import ARM_ISA_LEVELS, ISA_LEVELS, detect_isa, machine
from cpupack.targets import ENGINES, Target, arm, x86
from cpupack.targets.engines import Engine, raced
from cpupack.targets.target import arm_target, x86_target

RUNTIME = Path(cpupack.runtime.__file__).parent
"""Where the libraries of engines are."""


def candidates(recipe: Recipe, cpu: str, supported_engines: Collection[str]) -> list[Target]:
    """Return the targets to build for ``cpu``, the one that is probably fastest first.

    ``supported_engines`` are those that run here. Raises QuantizationError when the engine or instruction set
    that the recipe names is not available here.
    """
    found = _for_arm(recipe, supported_engines) if cpu == "aarch64" else _for_x86(recipe, supported_engines)
    named = [key for key in ("static", "dynamic") if getattr(recipe.quantize, key)]
    if not named:
        return found
    native = [each for each in found if each.record.quantizer == "native"]
    if not native:
        raise QuantizationError(f"[quantize] {named[0]} is for the native engine, which cannot run here")
    return native


def _for_x86(recipe: Recipe, supported_engines: Collection[str]) -> list[Target]:
    isa = _least_isa_of_x86(recipe.target.x86_64.isa)
    wanted = recipe.target.x86_64.engine
    if wanted != "auto":
        return [_available(x86_target(ENGINES[wanted], isa), supported_engines)]
    found = [x86_target(each, isa) for each in raced(x86.floor(isa)) if _ready(each, "x86_64", supported_engines)]
    return _some(found, "x86-64", supported_engines)


def _for_arm(recipe: Recipe, supported_engines: Collection[str]) -> list[Target]:
    isa = _least_isa_of_arm(recipe.target.aarch64.isa)
    beside = _isa_beside(recipe)
    wanted = recipe.target.aarch64.engine
    if wanted != "auto":
        target = _available(arm_target(ENGINES[wanted], isa, beside=beside), supported_engines)
        return [_verifiable(target)]
    found = [
        arm_target(each, isa, beside=beside)
        for each in raced(arm.floor(isa))
        if _ready(each, "aarch64", supported_engines)
    ]
    return _some(found, "64-bit ARM", supported_engines)


def _ready(engine: Engine, cpu: str, supported_engines: Collection[str]) -> bool:
    """Return whether an engine can be built for ``cpu``. Raises QuantizationError where only its library is missing.

    It would else be left out, and a checkout that was not compiled again would give wheels of another engine. An engine
    is not supported without the library of this host, so that is asked first.
    """
    path = engine.libraries.get(cpu)
    library = None if path is None else RUNTIME / path
    if library is not None and not library.is_file():
        raise QuantizationError(
            f"the kernels of the engine {engine.name} for {cpu} are not built: {library} is missing",
            hint=f"in a checkout run `make kernels`, else reinstall cpupack; or set [target.{cpu}] engine to another",
        )
    return engine.name in supported_engines


def _some(found: list[Target], family: str, supported_engines: Collection[str]) -> list[Target]:
    if not found:
        raise QuantizationError(
            f"this torch build has no quantized engine for {family} (it has {', '.join(supported_engines) or 'none'})",
            hint="install an official CPU build of torch",
        )
    return found


def _isa_beside(recipe: Recipe) -> str | None:
    """Return the instruction set of the x86-64 wheel of the same recipe, None if it asks for none that is known here.

    On a host of another family ``auto`` is not known: the recipe cannot build its x86-64 wheel here.
    """
    if "x86_64" not in recipe.target.cpu:
        return None
    isa = recipe.target.x86_64.isa
    if isa != "auto":
        return isa
    host_isa = detect_isa() if machine() == "x86_64" else None
    return None if host_isa is None else x86.floor(host_isa)


def _least_isa_of_arm(isa: str) -> str:
    """Return the lowest instruction set that an aarch64 wheel asks for; ``auto`` is that of every 64-bit ARM CPU."""
    if isa == "auto":
        return ARM_ISA_LEVELS[0]
    host_isa = detect_isa() if machine() == "aarch64" else isa
    if host_isa is None or ARM_ISA_LEVELS.index(isa) > ARM_ISA_LEVELS.index(host_isa):
        raise QuantizationError(
            f'[target.aarch64] isa = "{isa}": this CPU has {host_isa or "no NEON"}, so the wheel could not be verified',
            hint=f'build on a CPU with {isa}, or set isa = "auto"',
        )
    return isa


def _verifiable(target: Target) -> Target:
    """Refuse an engine for ARM whose sums this host computes in another way than ARM does, so that no check holds."""
    here = detect_isa()
    adds_in_16_bits = machine() == "x86_64" and not (here is not None and x86.has_vnni(here))
    if adds_in_16_bits and "x86_64" in target.record.cpus and not target.record.fits_sums:
        raise QuantizationError(
            f'[target.aarch64] engine = "{target.engine}" has 8-bit activations, and this CPU ({here or "no AVX2"}) '
            "adds their products in 16 bits, so the wheel could not be verified",
            hint='build on a CPU with avx512_vnni or on an ARM CPU, or set engine = "auto"',
        )
    return target


def _least_isa_of_x86(isa: str) -> str:
    """Return the lowest instruction set on which an x86-64 wheel must be correct."""
    host_isa = detect_isa() if machine() == "x86_64" else None
    if isa == "auto":
        if host_isa is None:
            raise QuantizationError(
                '[target.x86_64] isa = "auto" means that of this host, but this host '
                + (f"is {machine()}" if machine() != "x86_64" else "has no AVX2"),
                hint=f"set isa in the recipe to one of {', '.join(ISA_LEVELS)}",
            )
        return x86.floor(host_isa)
    if machine() == "x86_64" and (host_isa is None or ISA_LEVELS.index(isa) > ISA_LEVELS.index(host_isa)):
        raise QuantizationError(
            f'[target.x86_64] isa = "{isa}": this CPU has {host_isa or "no AVX2"}, so the wheel could not be verified',
            hint=f'build on a CPU with {isa}, or set isa = "auto"',
        )
    return isa


def _available(target: Target, supported_engines: Collection[str]) -> Target:
    if not _ready(target.record, target.cpu, supported_engines):
        if target.record.loader == "native":
            problem = describe()["problem"] or "this host does not run its kernels"
            raise QuantizationError(
                f'[target.{target.cpu}] engine = "{target.engine}": {problem}',
                hint="cpupack doctor shows what runs here; or choose another engine in the recipe",
            )
        raise QuantizationError(
            f'[target.{target.cpu}] engine = "{target.engine}" is not in this torch build '
            f"(it has {', '.join(supported_engines) or 'none'})",
            hint="install a torch build with that engine, or choose another in the recipe",
        )
    return target
