"""The target of one wheel: an engine on a CPU family with the least instruction set it must be correct on."""

from __future__ import annotations

from dataclasses import dataclass

from cpupack.runtime.host.cpu import machine
from cpupack.targets import arm, x86
from cpupack.targets.engines import ENGINES, Engine


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
    def record(self) -> Engine:
        """What the engine is and can do."""
        return ENGINES[self.engine]

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
        """Whether sums may overflow there."""
        return self.adds_in_16_bits and not self.record.fits_sums


def x86_target(engine: Engine, isa: str) -> Target:
    """Return the target of a wheel for x86-64 with at least ``isa``."""
    bits = 8 if engine.fits_sums else x86.activation_bits(isa)
    return Target("x86_64", engine.name, isa, bits, engine.fuses_conv_add, x86.PLATFORM_TAG)


def arm_target(engine: Engine) -> Target:
    """Return the target of a wheel for 64-bit ARM."""
    return Target(
        "aarch64", engine.name, None, arm.ACTIVATION_BITS, conv_add=engine.fuses_conv_add, platform_tag=arm.PLATFORM_TAG
    )
