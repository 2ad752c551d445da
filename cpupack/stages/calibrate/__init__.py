"""FusedModel -> CalibratedModel: runs the calibration data once and keeps statistics of every activation."""

from cpupack.stages.calibrate.calibrate import calibrate, observe

__all__ = ["calibrate", "observe"]
