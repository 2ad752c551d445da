"""CalibratedModel -> CalibratedModel: changes FP32 weights and biases so that INT8 loses less, for every engine."""

from cpupack.stages.correct.correct import FEWEST, SAMPLES, correct

__all__ = ["FEWEST", "SAMPLES", "correct"]
