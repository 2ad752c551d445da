"""CalibratedModel -> QuantizedModel. The only owner of ``torch.ao.quantization``."""

from cpupack.stages.quantize.quantize import quantize

__all__ = ["quantize"]
