"""x86-64: what its instruction sets do to INT8 sums.

Without VNNI the INT8 dot product is VPMADDUBSW, which adds two u8*s8 products in 16 bits and saturates: 8-bit
activations are wrong there without a word, so torch's engines get activations of 7 bits (``reduce_range``). Our own
keep 8: their weights are such that no sum overflows (``stages/quantize/native/fit.py``). With VNNI the sums are
32 bits wide and 8 bits are exact for every engine (checked for normal, grouped and depthwise convolutions at the
extremes of u8 x s8, see tests/unit/test_quantize.py).
"""

from __future__ import annotations

from cpupack.runtime.host.cpu import ISA_LEVELS

PLATFORM_TAG = "manylinux_2_28_x86_64"


def has_vnni(isa: str) -> bool:
    return ISA_LEVELS.index(isa) >= ISA_LEVELS.index("avx512_vnni")


def floor(isa: str) -> str:
    """Return the least level that multiplies as ``isa`` does: a wheel built on AMX is as right on plain VNNI."""
    return "avx512_vnni" if has_vnni(isa) else "avx2"


def activation_bits(isa: str) -> int:
    """Bits of an activation; the same for torch's three engines, which multiply with the same instructions."""
    return 8 if has_vnni(isa) else 7
