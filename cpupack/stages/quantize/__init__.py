"""CalibratedModel -> QuantizedModel. Only this stage uses ``torch.ao.quantization`` to build wheels."""

from cpupack.stages.quantize.quantize import quantize
from cpupack.stages.quantize.static import check_names

__all__ = ["check_names", "quantize"]
