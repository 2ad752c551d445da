"""CalibratedModel -> CalibratedModel: FP32 weights and biases changed so that INT8 loses less. No engine."""

from cpupack.stages.correct.correct import correct

__all__ = ["correct"]
