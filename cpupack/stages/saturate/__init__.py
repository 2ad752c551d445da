"""Make an INT8 model safe on CPUs that add pairs of products in 16 bits: 8-bit activations, 7, or lesser weights."""

from cpupack.stages.saturate.saturate import make_safe, overflowing_layers

__all__ = ["make_safe", "overflowing_layers"]
