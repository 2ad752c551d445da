"""The target of one wheel: an engine on a CPU family with the least instruction set it must be correct on."""

from __future__ import annotations

from dataclasses import dataclass

from cpupack.errors import QuantizationError
from cpupack.recipe import Recipe
from cpupack.runtime.engine.library import ENGINE
from cpupack.runtime.host.cpu import ISA_LEVELS, detect_isa, machine
from cpupack.targets import arm, x86


@dataclass(frozen=True)
class Target:
    """One wheel's engine and CPU.

    ``activation_bits`` is 8, or 7 (``reduce_range``) where 16-bit intermediate sums would saturate; what such a target
    gets in the end is decided on the calibration data (the saturate stage). ``isa`` is the least instruction set the
    wheel is correct on, None on aarch64. ``conv_add`` says that the engine fuses
    conv + add + relu.
    """

    cpu: str
    engine: str
    isa: str | None
    activation_bits: int
    conv_add: bool
    platform_tag: str
    memory_format: str = "channels_last"

    @property
    def runs_here(self) -> bool:
        """Whether this host is of the target's CPU family (tuning and speed are measured only then)."""
        return machine() == self.cpu

    @property
    def adds_in_16_bits(self) -> bool:
        """Whether the least CPU of the target adds INT8 products in 16 bits."""
        return self.isa is not None and not x86.has_vnni(self.isa)

    @property
    def saturates(self) -> bool:
        """Whether sums may overflow there; the native engine's weights are such that none can."""
        return self.adds_in_16_bits and self.engine != ENGINE


def candidates(recipe: Recipe, cpu: str, supported_engines: list[str]) -> list[Target]:
    """Return the targets to build for ``cpu``, best guess first.

    ``supported_engines`` are those of the torch build. Raises QuantizationError when the engine or instruction set
    that the recipe names is not to be had here.
    """
    if cpu == "aarch64":
        return [_available(_arm(), supported_engines)]
    host_isa = detect_isa() if machine() == "x86_64" else None
    isa: str = recipe.target.x86_64.isa
    if isa == "auto":
        if host_isa is None:
            raise QuantizationError(
                '[target.x86_64] isa = "auto" means this host\'s, and this host '
                + (f"is {machine()}" if machine() != "x86_64" else "has no AVX2"),
                hint=f"name it in the recipe: one of {', '.join(ISA_LEVELS)}",
            )
        isa = x86.floor(host_isa)
    elif machine() == "x86_64" and (host_isa is None or ISA_LEVELS.index(isa) > ISA_LEVELS.index(host_isa)):
        raise QuantizationError(
            f'[target.x86_64] isa = "{isa}": this CPU has {host_isa or "no AVX2"}; the wheel could not be verified',
            hint=f'build on a CPU with {isa}, or set isa = "auto"',
        )
    wanted = recipe.target.x86_64.engine
    if wanted != "auto":
        return [_available(_x86(wanted, isa), supported_engines)]
    found = [_x86(engine, isa) for engine in x86.engines(isa) if engine in supported_engines]
    if not found:
        raise QuantizationError(
            f"this torch build has no quantized engine for x86-64 (it has {', '.join(supported_engines) or 'none'})",
            hint="install an official CPU build of torch",
        )
    return found


def _x86(engine: str, isa: str) -> Target:
    bits = 8 if engine == ENGINE else x86.activation_bits(isa)
    return Target("x86_64", engine, isa, bits, x86.fuses_conv_add(engine), x86.PLATFORM_TAG)


def _arm() -> Target:
    return Target("aarch64", arm.ENGINE, None, arm.ACTIVATION_BITS, conv_add=False, platform_tag=arm.PLATFORM_TAG)


def _available(target: Target, supported_engines: list[str]) -> Target:
    if target.engine not in supported_engines:
        raise QuantizationError(
            f'[target.{target.cpu}] engine = "{target.engine}" is not in this torch build '
            f"(it has {', '.join(supported_engines) or 'none'})",
            hint="install a torch build with that engine, or choose another in the recipe",
        )
    return target
