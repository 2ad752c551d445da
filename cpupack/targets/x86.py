"""x86-64: how its instruction sets compute INT8 sums.

Without VNNI the INT8 dot product is VPMADDUBSW, which adds two u8*s8 products in 16 bits and saturates. 8-bit
activations would silently give wrong results, so torch's engines get 7-bit activations (``reduce_range``). The native
engine keeps 8 bits, because its weights are chosen so that no sum overflows (``stages/quantize/native/fit.py``). With
VNNI the sums have 32 bits, and 8-bit activations are exact for every engine (tests/unit/test_quantize.py checks normal,
grouped and depthwise convolutions at the extremes of u8 x s8).
"""

from __future__ import annotations

from cpupack.runtime.host.cpu import ISA_LEVELS

PLATFORM_TAG = "manylinux_2_28_x86_64"


def has_vnni(isa: str) -> bool:
    return ISA_LEVELS.index(isa) >= ISA_LEVELS.index("avx512_vnni")


def floor(isa: str) -> str:
    """Return the lowest level that computes the same sums as ``isa``: a wheel built on AMX is also correct on VNNI."""
    return "avx512_vnni" if has_vnni(isa) else "avx2"


def activation_bits(isa: str) -> int:
    """Return the bits of an activation, equal for torch's three engines, which use the same instructions."""
    return 8 if has_vnni(isa) else 7
