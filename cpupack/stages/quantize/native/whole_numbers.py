"""Lowers calls on whole numbers and truth values: ids, masks, positions.

The engine has float32 values alone. A truth value is 0 or 1 there, and whole numbers are exact up to 2^24. So each call
has to show that what it makes of whole numbers is no larger; one that cannot is left to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.graph.tags import ROWS_IN
from cpupack.stages.quantize.native.bits import bit_by_bit, kept_by, shifted, shifts_of
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.float_bounds import interval_of
from cpupack.stages.quantize.native.float_code import then
from cpupack.stages.quantize.native.float_formulas import rest
from cpupack.stages.quantize.native.float_reductions import REDUCTIONS, reduced
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.look_ups import LOOK_UPS
from cpupack.stages.quantize.native.magnitudes import BEYOND, MOVES, WHOLE, bounded, ends_of, largest_of
from cpupack.stages.quantize.native.operands import operand_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, Norm, Reduction, View
from cpupack.stages.quantize.native.whole_choices import choose_filled, choose_where
from cpupack.stages.quantize.native.whole_layers import is_one, joined, mapped, number_of, of_two, type_of

_ATEN = torch.ops.aten
_LESS, _EQUAL = Instruction(Function.LESS), Instruction(Function.EQUAL)
_NOT = Instruction(Function.FROM_NUMBER, number=1.0)
_OR_EQUAL = [Instruction(Function.EQUAL, 3, 0, 1), Instruction(Function.ADD, 0, 2, 3)]
_MORE = Instruction(Function.LESS, 0, 1, 0)
_COMPARISONS: dict[str, list[Instruction]] = {
    "eq": [_EQUAL],
    "ne": [_EQUAL, _NOT],
    "lt": [_LESS],
    "gt": [_MORE],
    "le": [Instruction(Function.LESS, 2, 0, 1), *_OR_EQUAL],
    "ge": [Instruction(Function.LESS, 2, 1, 0), *_OR_EQUAL],
}
_OF_TRUTHS: dict[str, list[Instruction]] = {
    "and": [Instruction(Function.MULTIPLY)],
    "or": [Instruction(Function.MAXIMUM)],
    "xor": [_EQUAL, _NOT],
}
_ARITHMETIC = {
    torch.add: Function.ADD, _ATEN.add.Tensor: Function.ADD, _ATEN.add.Scalar: Function.ADD,
    torch.sub: Function.SUBTRACT, _ATEN.sub.Tensor: Function.SUBTRACT, _ATEN.sub.Scalar: Function.SUBTRACT,
    torch.mul: Function.MULTIPLY, _ATEN.mul.Tensor: Function.MULTIPLY, _ATEN.mul.Scalar: Function.MULTIPLY,
    _ATEN.maximum.default: Function.MAXIMUM, _ATEN.minimum.default: Function.MINIMUM,
}  # fmt: skip


def lower_whole_numbers(b: Builder, node: fx.Node) -> str | None:
    """Lower a call that takes or gives whole numbers or truth values, and return its kernel's name.

    Returns None for a call that computes in float32 what it reads, whatever that was. Raises Refusal.
    """
    for each in (node, *node.all_input_nodes):
        if each.meta.get("dtype", torch.float32) not in (*WHOLE, torch.float32):
            raise b.calls.refusal(node, "with values of " + str(each.meta["dtype"]).removeprefix("torch."))
    make = _LOWERED_BY.get(node.target)
    whole = not b.calls.takes_floats(node) or node.meta.get("dtype") != torch.float32
    if node.target in _PLAIN and node.meta.get("dtype") == torch.float32:
        return None  # of what is computed in float32, whatever it reads
    if not whole and node.target not in _OF_FLOATS:
        return None
    if make is None and node.target in LOOK_UPS:
        return LOOK_UPS[node.target](b, node)
    if make is None:
        if node.target in _JOINS:
            bounded(b, node, max(largest_of(b, each) for each in node.all_input_nodes))
            return None
        if node.target in _PLACES:
            b.magnitudes[node] = float(math.prod(shape_of(node.all_input_nodes[0])[1:]))
        elif node.target in _EXTREMES and node.meta.get("dtype") in WHOLE:
            b.magnitudes[node] = largest_of(b, node.all_input_nodes[0])
        if node.meta.get("dtype") in WHOLE and node.target not in REDUCTIONS and node.target not in MOVES:
            raise b.calls.refusal(node, "with values that are not float32")
        return None
    b.floats.values[node] = make(b, node)
    return "map" if b.calls.kind(node).partition(".")[0] not in _REDUCING else "reduce"


def refuse_unbounded(b: Builder, node: fx.Node) -> None:
    """Raise Refusal for a call on whole numbers that torch has computed, which float32 may not have.

    Rounded to float32 they may be, if the model itself does so.
    """
    if node.target in _CONVERSIONS and node.meta.get("dtype") == torch.float32:
        return
    for each in node.all_input_nodes:
        dtype = each.meta.get("dtype")
        if dtype in WHOLE and dtype is not torch.bool and math.isinf(largest_of(b, each)):
            raise b.calls.refusal(node, BEYOND)


# ---- the calls ----


def _convert(b: Builder, node: fx.Node) -> Operand:
    source: Any = node.args[0]
    operand = operand_of(b, source, node)
    before, after = source.meta["dtype"], node.meta["dtype"]
    if after not in (*WHOLE, torch.float32) or before not in (*WHOLE, torch.float32):
        raise b.calls.refusal(node, f"from {before} to {after}")
    largest, code = largest_of(b, source), [Instruction(Function.TRUNCATE)]
    if after in WHOLE and after not in (torch.bool, torch.int64, torch.int32):
        given = _is_input(b, source) and after is torch.uint8  # the runner has checked it
        low, high = (0.0, 255.0) if given else interval_of(b, source)
        if before is not torch.float32:
            least, most = ends_of(b, source)
            low, high = max(low, least), min(high, most)
        ends = torch.iinfo(after)
        if high > ends.max or low < ends.min:
            raise b.calls.refusal(node, f"to {after}, which has no numbers as large or as small")
        # Steps of INT8 may go a little beyond the ends.
        code += then((Function.AT_LEAST, float(ends.min)), (Function.AT_MOST, float(ends.max)))
        largest = min(largest, float(ends.max))
    b.magnitudes[node] = 1.0 if after is torch.bool else largest
    if after is torch.bool and before is not torch.bool:
        return mapped(b, node, operand, [Instruction(Function.NUMBER, 1), _EQUAL, _NOT])
    if before is torch.float32 and after in WHOLE and not _is_input(b, source):
        return mapped(b, node, operand, code)
    return operand


def _is_input(b: Builder, node: fx.Node) -> bool:
    """Whether values are whole numbers that the caller gave as float32: they are as they stand."""
    while node.op != "placeholder" and b.calls.rearranges(node):
        node = node.all_input_nodes[0]
    return node.op == "placeholder" and bool(node.meta.get(ROWS_IN))


def _compare(b: Builder, node: fx.Node) -> View:
    return of_two(b, node, _COMPARISONS[b.calls.kind(node).partition(".")[0]])


def _combine(b: Builder, node: fx.Node) -> Operand:
    """And, or, exclusive or of truth values; a constant that changes nothing costs nothing."""
    kind = b.calls.kind(node).partition(".")[0].strip("_").rpartition("_")[2]
    if any(type_of(b, each) is not torch.bool for each in node.args[:2]):
        return _keep_bits(b, node, kind)
    for each, other in (node.args[:2], reversed(node.args[:2])):
        held, rest = b.calls.constant(each), operand_of(b, other, node)
        everywhere = held is not None and kind == "and" and bool(held.all())
        if everywhere and isinstance(rest, View) and len(rest.shape) == len(shape_of(node)) - 1:
            return rest.expanded(tuple(shape_of(node)[1:]))
    return of_two(b, node, _OF_TRUTHS[kind])


def _keep_bits(b: Builder, node: fx.Node, kind: str) -> View:
    """Some bits of whole numbers: a flag, or the low half of a byte. Others go bit by bit."""
    one, two = node.args[:2]
    held = torch.tensor(two) if isinstance(two, int) else b.calls.constant(two)
    code = kept_by(held) if kind == "and" and held is not None and held.numel() else None
    if code is None or held is None or not isinstance(one, fx.Node):
        return bit_by_bit(b, node, kind)
    if math.isinf(largest_of(b, one)):
        raise b.calls.refusal(node, BEYOND)
    bounded(b, node, float(held.max()))
    if is_one(held):
        return mapped(b, node, operand_of(b, one, node), code)
    return joined(b, node, operand_of(b, one, node), operand_of(b, two, node), code)


def _shift(b: Builder, node: fx.Node) -> View:
    left = "l" in b.calls.kind(node).partition("shift")[0]
    powers = 2.0 ** shifts_of(b, node).float()
    largest = largest_of(b, node.args[0])
    bounded(b, node, largest * float(powers.max()) if left else largest)
    if math.isinf(largest):
        raise b.calls.refusal(node, BEYOND)
    operand, code = operand_of(b, node.args[0], node), shifted(left=left)
    if is_one(powers):
        return mapped(b, node, operand, [Instruction(Function.NUMBER, 1, number=float(powers)), *code])
    return joined(b, node, operand, Fixed(powers), code)


def _invert(b: Builder, node: fx.Node) -> Operand:
    if type_of(b, node.args[0]) is not torch.bool:
        most = torch.iinfo(node.meta["dtype"]).max if node.meta["dtype"] is torch.uint8 else -1
        bounded(b, node, max(largest_of(b, node.args[0]) + 1.0, 0.0) if most < 0 else float(most))
        code = [Instruction(Function.FROM_NUMBER, number=float(most))]
        return mapped(b, node, operand_of(b, node.args[0], node), code)
    return mapped(b, node, operand_of(b, node.args[0], node), [_NOT])


def _negate_truth(b: Builder, node: fx.Node) -> Operand:
    if type_of(b, node.args[0]) is not torch.bool:
        raise b.calls.refusal(node, "of whole numbers")
    return _invert(b, node)


def _compute(b: Builder, node: fx.Node) -> View:
    function = _ARITHMETIC[node.target]
    if argument(node, 2, "alpha", 1) != 1:
        raise b.calls.refusal(node, "with alpha")
    sizes = [largest_of(b, each) for each in node.args[:2]]
    products = {Function.MULTIPLY: sizes[0] * sizes[1], Function.MAXIMUM: max(sizes), Function.MINIMUM: max(sizes)}
    least = -sizes[1] if function is Function.SUBTRACT else 0.0
    bounded(b, node, products.get(function, sum(sizes)), least=least)
    return of_two(b, node, [Instruction(function)])


def _subtract_from(b: Builder, node: fx.Node) -> Operand:
    """A number minus a tensor."""
    number = node.args[1]
    if not isinstance(number, int) or argument(node, 2, "alpha", 1) != 1:
        raise b.calls.refusal(node, "of a number that is not whole")
    largest = largest_of(b, node.args[0])
    most = abs(number) if node.meta["dtype"] is torch.uint8 else abs(number) + largest
    bounded(b, node, most, least=number - largest)
    code = [Instruction(Function.FROM_NUMBER, number=float(number))]
    return mapped(b, node, operand_of(b, node.args[0], node), code)


def _clamp(b: Builder, node: fx.Node) -> Operand:
    low, high = argument(node, 1, "min", None), argument(node, 2, "max", None)
    if node.target is _ATEN.clamp_max.default:
        low, high = None, low
    code = [
        Instruction(function, number=float(number))
        for function, number in ((Function.AT_LEAST, low), (Function.AT_MOST, high))
        if isinstance(number, int | float)
    ]
    ends = max((abs(each.number) for each in code), default=0.0)
    bounded(b, node, ends if len(code) == 2 else max(ends, largest_of(b, node.args[0])))
    return mapped(b, node, operand_of(b, node.args[0], node), code)


def _negate(b: Builder, node: fx.Node) -> Operand:
    largest = largest_of(b, node.args[0])
    bounded(b, node, largest, least=-largest)
    return mapped(b, node, operand_of(b, node.args[0], node), [Instruction(Function.MULTIPLY_NUMBER, number=-1.0)])


def _divide(b: Builder, node: fx.Node) -> Operand:
    """A quotient rounded down or towards zero, or what is left of it. float32 divides such numbers without a fault."""
    source: Any = node.args[0]
    mode = argument(node, 2, "rounding_mode", "floor")
    name = b.calls.kind(node).partition(".")[0]
    if mode not in ("floor", "trunc"):
        raise b.calls.refusal(node, "with values that are not float32")
    number = number_of(b, node.args[1])
    if not number or not number.is_integer():
        raise b.calls.refusal(node, "of whole numbers by what may be zero")
    whole = Function.TRUNCATE if name == "fmod" or mode == "trunc" else Function.FLOOR
    left = name in ("remainder", "fmod")
    bounded(b, node, abs(number) if left else largest_of(b, source) // abs(number) + 1.0)
    if math.isinf(largest_of(b, source)):
        raise b.calls.refusal(node, BEYOND)
    quotient = [Instruction(Function.DIVIDE_BY_NUMBER, number=number), Instruction(whole)]
    return mapped(b, node, operand_of(b, source, node), rest(number, whole) if left else quotient)


def _accumulate(b: Builder, node: fx.Node) -> View:
    """The sums of the values up to each."""
    view = b.floats.view(operand_of(b, node.args[0], node))
    axis: Any = argument(node, 1, "dim", 0)
    axis = axis % (len(view.shape) + 1) - 1
    if axis < 0:
        raise b.calls.refusal(node, "over samples")
    bounded(b, node, largest_of(b, node.args[0]) * view.shape[axis])
    return b.floats.normalize(view, (axis,), Norm.RUNNING_SUM)


def _sum(b: Builder, node: fx.Node) -> View:
    source: Any = node.args[0]
    count = math.prod(shape_of(source)) / max(math.prod(shape_of(node)), 1)
    bounded(b, node, largest_of(b, source) * count)
    return reduced(b, node, argument(node, 1, "dim", None), Reduction.SUM)


def _any(kind: Reduction) -> Callable[[Builder, fx.Node], View]:
    def made(b: Builder, node: fx.Node) -> View:
        if type_of(b, node.args[0]) is not torch.bool:
            raise b.calls.refusal(node, "of values that are no truth values")
        return reduced(b, node, argument(node, 1, "dim", None), kind)

    return made


# ---- choices ----


def _named(*names: str) -> list[Any]:
    """Return the overloads of ATen's functions."""
    found = []
    for name in names:
        packet = getattr(_ATEN, name)
        found += [getattr(packet, overload) for overload in packet.overloads() if "out" not in overload]
    return found


_CONVERSIONS = tuple(_named("to", "type_as", "_to_copy"))
_PLAIN = (torch.add, torch.sub, torch.mul, torch.sum, torch.clamp)
_OF_FLOATS = (_ATEN.cumsum.default, _ATEN.index.Tensor, *_named("where", "masked_fill"))
"""What is here for floats too, as where a mask is a constant."""
_PLACES = (_ATEN.argmax.default, _ATEN.argmin.default)
_JOINS = (torch.cat, _ATEN.cat.default)
_EXTREMES = (torch.amax, torch.amin)
_CLAMPS = (torch.clamp, _ATEN.clamp.default, _ATEN.clamp_min.default, _ATEN.clamp_max.default)
_REDUCING = ("sum", "any", "all")
_LOWERED_BY: dict[Any, Callable[[Builder, fx.Node], Operand]] = {
    **dict.fromkeys(_CONVERSIONS, _convert),
    **dict.fromkeys(_named("eq", "ne", "lt", "gt", "le", "ge"), _compare),
    **dict.fromkeys(
        _named("__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_xor",
               "logical_and", "logical_or", "logical_xor"), _combine
    ),
    **dict.fromkeys(_named("bitwise_not"), _invert),
    **dict.fromkeys(_named("logical_not"), _negate_truth),
    **dict.fromkeys(
        _named("__lshift__", "__rshift__", "bitwise_left_shift", "bitwise_right_shift"), _shift
    ),
    **dict.fromkeys(_named("where"), choose_where),
    **dict.fromkeys(_named("masked_fill"), choose_filled),
    **dict.fromkeys(_named("neg"), _negate),
    **dict.fromkeys(_named("remainder", "fmod", "floor_divide"), _divide),
    **dict.fromkeys([each for each in _named("div") if "mode" in each._overloadname], _divide),
    _ATEN.rsub.Scalar: _subtract_from,
    **dict.fromkeys(_ARITHMETIC, _compute),
    **dict.fromkeys(_CLAMPS, _clamp),
    _ATEN.cumsum.default: _accumulate,
    _ATEN.sum.dim_IntList: _sum,
    torch.sum: _sum,
    _ATEN.any.dim: _any(Reduction.MAXIMUM),
    _ATEN.all.dim: _any(Reduction.MINIMUM),
}  # fmt: skip
