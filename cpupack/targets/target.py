"""The target of one wheel: an engine, a CPU family, and the lowest instruction set on which it must be correct."""

from __future__ import annotations

from dataclasses import dataclass

from cpupack.runtime.host.cpu import machine
from cpupack.targets import arm, x86
from cpupack.targets.engines import ENGINES, Engine


@dataclass(frozen=True)
class Target:
    """One wheel's engine and CPU.

    ``activation_bits`` is 8, or 7 (``reduce_range``) if 16-bit intermediate sums could saturate. For such a target the
    saturate stage makes the final choice from the calibration data. ``isa`` is the lowest instruction set on which the
    wheel is correct. ``conv_add`` says that the engine fuses conv + add + relu. ``weights_of`` is, for a wheel of
    another family, the instruction set of the x86-64 wheel of the same recipe, None without one: an engine that fits
    its weights gives both wheels the same.
    """

    cpu: str
    engine: str
    isa: str
    activation_bits: int
    conv_add: bool
    platform_tag: str
    memory_format: str = "channels_last"
    weights_of: str | None = None

    @property
    def record(self) -> Engine:
        """The record of the engine."""
        return ENGINES[self.engine]

    @property
    def runs_here(self) -> bool:
        """Whether this host belongs to the target's CPU family. Speed is measured and tuned only then."""
        return machine() == self.cpu

    @property
    def adds_in_16_bits(self) -> bool:
        """Whether the lowest CPU of the target adds INT8 products in 16 bits."""
        return self.cpu == "x86_64" and not x86.has_vnni(self.isa)

    @property
    def fits_weights(self) -> bool:
        """Whether the engine chooses weights with which no 16-bit sum of a CPU without VNNI overflows."""
        isa = self.isa if self.cpu == "x86_64" else self.weights_of
        return self.record.fits_sums and isa is not None and not x86.has_vnni(isa)

    @property
    def saturates(self) -> bool:
        """Whether such 16-bit sums may overflow."""
        return self.adds_in_16_bits and not self.record.fits_sums


def x86_target(engine: Engine, isa: str) -> Target:
    """Return the target of a wheel for x86-64 CPUs with at least ``isa``."""
    bits = 8 if engine.fits_sums else x86.activation_bits(isa)
    return Target(
        "x86_64",
        engine.name,
        isa,
        bits,
        conv_add="x86_64" in engine.fuses_conv_add,
        platform_tag=x86.PLATFORM_TAG,
    )


def arm_target(engine: Engine, isa: str, *, beside: str | None = None) -> Target:
    """Return the target of a wheel for 64-bit ARM CPUs with at least ``isa``.

    ``beside`` is the instruction set of the x86-64 wheel of the same recipe, None without one. With the native engine
    both wheels then have the same weights and give the same bytes. ARM alone needs no weights that fit 16-bit sums.
    """
    return Target(
        "aarch64",
        engine.name,
        isa,
        arm.ACTIVATION_BITS,
        conv_add="aarch64" in engine.fuses_conv_add,
        platform_tag=arm.PLATFORM_TAG,
        weights_of=beside,
    )
