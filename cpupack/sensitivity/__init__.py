"""Ranks layers by the loss when only that layer is INT8. Works on the fused FP32 model, without an engine.

``rank`` measures and sorts the layers; ``ranking`` shows them.
"""

from cpupack.sensitivity.rank import COUNT, LayerSensitivity, rank

__all__ = ["COUNT", "LayerSensitivity", "rank"]
