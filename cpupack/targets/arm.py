"""64-bit ARM: 8-bit activations on every level.

qnnpack widens products to 32 bits. The native engine adds at most two products in 16 bits, and two fit whatever the
weights are, because it moves activations to -128..127 first: 2 * 128 * 127 = 32512.
"""

from __future__ import annotations

from cpupack.runtime.host.cpu import ARM_ISA_LEVELS

ACTIVATION_BITS = 8
PLATFORM_TAG = "manylinux_2_28_aarch64"


def floor(isa: str) -> str:
    """Return the lowest level that computes the same sums as ``isa``: on ARM all levels do."""
    if isa not in ARM_ISA_LEVELS:
        raise ValueError(f"{isa!r} is no instruction set of 64-bit ARM")
    return ARM_ISA_LEVELS[0]
