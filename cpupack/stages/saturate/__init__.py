"""Makes an INT8 model safe on CPUs that add pairs of products in 16 bits, by fewer bits where sums would overflow."""

from cpupack.stages.saturate.saturate import Quantize, make_safe, overflowing_layers

__all__ = ["Quantize", "make_safe", "overflowing_layers"]
