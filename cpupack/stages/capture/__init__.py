"""FloatModel -> CapturedModel: torch.export, then a canonical graph of a small documented vocabulary."""

from cpupack.stages.capture.capture import capture, examples

__all__ = ["capture", "examples"]
