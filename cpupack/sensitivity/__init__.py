"""Which layers lose the most when they alone are INT8. Pure analysis of the fused FP32 model: no engine, no stage.

``rank`` measures and orders the layers; ``ranking`` shows them.
"""

from cpupack.sensitivity.rank import COUNT, LayerSensitivity, rank

__all__ = ["COUNT", "LayerSensitivity", "rank"]
