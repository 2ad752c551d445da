"""Describes each layer of an INT8 model: the operator that runs it, its scale, its error, and why it stayed FP32."""

from cpupack.layers.describe import describe_layers, float_notes, form_notes

__all__ = ["describe_layers", "float_notes", "form_notes"]
