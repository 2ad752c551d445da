"""Chooses the targets to build for a CPU: those that the recipe allows and that this host and torch can build."""

from __future__ import annotations

from collections.abc import Collection

from cpupack.errors import QuantizationError
from cpupack.recipe import Recipe
from cpupack.runtime.host.cpu import ISA_LEVELS, detect_isa, machine
from cpupack.targets import ENGINES, Target, x86
from cpupack.targets.engines import raced
from cpupack.targets.target import arm_target, x86_target


def candidates(recipe: Recipe, cpu: str, supported_engines: Collection[str]) -> list[Target]:
    """Return the targets to build for ``cpu``, the one that is probably fastest first.

    ``supported_engines`` are those that run here. Raises QuantizationError when the engine or instruction set
    that the recipe names is not available here.
    """
    if cpu == "aarch64":
        return [_available(arm_target(ENGINES[recipe.target.aarch64.engine]), supported_engines)]
    isa = _least_isa(recipe.target.x86_64.isa)
    wanted = recipe.target.x86_64.engine
    if wanted != "auto":
        return [_available(x86_target(ENGINES[wanted], isa), supported_engines)]
    found = [x86_target(engine, isa) for engine in raced(x86.floor(isa)) if engine.name in supported_engines]
    if not found:
        raise QuantizationError(
            f"this torch build has no quantized engine for x86-64 (it has {', '.join(supported_engines) or 'none'})",
            hint="install an official CPU build of torch",
        )
    return found


def _least_isa(isa: str) -> str:
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
    if target.engine not in supported_engines:
        raise QuantizationError(
            f'[target.{target.cpu}] engine = "{target.engine}" is not in this torch build '
            f"(it has {', '.join(supported_engines) or 'none'})",
            hint="install a torch build with that engine, or choose another in the recipe",
        )
    return target
