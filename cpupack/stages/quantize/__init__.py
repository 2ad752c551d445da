"""CalibratedModel -> QuantizedModel. The only owner of ``torch.ao.quantization``."""

from cpupack.stages.quantize.quantize import quantize
from cpupack.stages.quantize.static import check_skip

__all__ = ["check_skip", "quantize"]
