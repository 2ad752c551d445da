"""What a call in FP32 reads: a computed value in the shape of a sample, or a constant."""

from __future__ import annotations

from torch import fx

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import shape_of
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.walks import Fixed, View


def operand_of(b: Builder, operand: object, node: fx.Node) -> Operand:
    """Return an operand of the call ``node``. Raises Refusal for a constant that differs between samples."""
    if isinstance(operand, fx.Node) and operand.op != "get_attr":
        return as_floats(b, operand, node)
    constant = b.calls.constant(operand)
    if constant is None:
        raise b.calls.refusal(node, "with an operand that is no tensor of float32")
    lead = constant.ndim - len(shape_of(node)) + 1
    if lead > 0:
        if constant.shape[:lead].numel() != 1:
            raise b.calls.refusal(node, "with a constant that differs between samples")
        constant = constant.reshape(constant.shape[lead:])
    return Fixed(constant)


def views_of(b: Builder, node: fx.Node, *operands: Operand) -> list[View]:
    """Return the computed ones of a call's operands. Raises Refusal where one lacks dimensions of the result.

    Torch would lay its batch along another dimension.
    """
    found = [each for each in operands if isinstance(each, View)]
    if any(len(each.shape) != len(shape_of(node)) - 1 for each in found):
        raise b.calls.refusal(node, "of tensors with different numbers of dimensions")
    return found
