"""Lowers calls that stay FP32 to layers of the engine in FP32, for those that it has a kernel for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch.fx.node import map_arg

from cpupack.stages.quantize.native.attention import written_out
from cpupack.stages.quantize.native.boxes import BOXES
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, parts_of, shape_of
from cpupack.stages.quantize.native.channel_norms import norm_to_codes
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.float_functions import OF_TWO, instructions_of
from cpupack.stages.quantize.native.float_layers import average_pool, max_pool, max_pool_of_volumes, with_weights
from cpupack.stages.quantize.native.float_moves import move_waiting_rows, pad, rearrange
from cpupack.stages.quantize.native.float_reductions import REDUCTIONS
from cpupack.stages.quantize.native.float_resampling import RESAMPLING
from cpupack.stages.quantize.native.float_updates import UPDATES
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.heads import Heads, append_heads, one_layer, score_scale
from cpupack.stages.quantize.native.linear import linear_by_rows
from cpupack.stages.quantize.native.look_ups import embed, is_embedding, is_look_up
from cpupack.stages.quantize.native.operands import operand_of, views_of
from cpupack.stages.quantize.native.places import PLACES
from cpupack.stages.quantize.native.tell import tell_float
from cpupack.stages.quantize.native.walks import (
    Fixed,
    Function,
    Instruction,
    Norm,
    TooManyDimensionsError,
    View,
    dense_steps,
    steps_like,
)
from cpupack.stages.quantize.native.whole_choices import hidden_by
from cpupack.stages.quantize.native.whole_numbers import lower_whole_numbers, refuse_unbounded

_ATEN = torch.ops.aten


def lower_float(b: Builder, node: fx.Node) -> None:
    """Lower a call to layers in FP32. Raises Refusal where the engine has none for it."""
    calls, target = b.calls, b.calls.target(node)
    refuse_unbounded(b, node)
    try:
        if calls.is_constant(node) or node.op == "get_attr":
            return
        if _is_fixed(b, node):
            _note_fixed(b, node)
            kernel = ""
        elif is_embedding(b, node):
            kernel = embed(b, node)
        elif b.is_by_rows(node):
            linear_by_rows(b, node)
            kernel = ""
        elif not node.all_input_nodes:
            raise calls.refusal(node, "of no tensor")
        elif node.all_input_nodes[0] in b.waiting:
            move_waiting_rows(b, node)
            kernel = ""
        elif has_weights(calls, node):
            b.floats.values[node], kernel = with_weights(b, node), "windows"
        elif calls.rearranges(node) and not is_look_up(b, node):
            rearrange(b, node)
            kernel = ""
        elif target in PLACES:
            kernel = PLACES[target](b, node)
        elif (whole := lower_whole_numbers(b, node)) is not None:
            kernel = whole
        elif (code := instructions_of(calls.graph, node)) is not None:
            source = next(each for each in node.all_input_nodes if each.op != "get_attr")
            view = b.floats.view(as_floats(b, source, node))
            b.floats.values[node], kernel = b.floats.map(b.floats.like(view), view, None, code), "map"
        elif target is torch.matmul and written_out(b, node):
            kernel = ""
        elif target in OF_TWO and len(node.args) == 2 and not node.kwargs:
            b.floats.values[node], kernel = _binary(b, node), "map"
        elif target is F.scaled_dot_product_attention:
            b.floats.values[node], kernel = _attention(b, node)
        elif norm_to_codes(b, node):
            kernel = ""
        elif target in _LOWERED_BY:
            make, kernel = _LOWERED_BY[target]
            b.floats.values[node] = make(b, node)
        else:
            raise calls.refusal(node)
    except TooManyDimensionsError as error:
        raise calls.refusal(node, "with so many dimensions") from error
    if kernel:
        tell_float(b, node, f"cpupack::{kernel}")


# ---- constants ----


def _is_fixed(b: Builder, node: fx.Node) -> bool:
    """Whether a call reads nothing but constants of the model, and sizes; it may fill a tensor with a number."""
    read = [each for each in node.all_input_nodes if not b.calls.is_constant(each)]
    return all(each.op == "get_attr" or isinstance(b.floats.values.get(each), Fixed) for each in read)


def _note_fixed(b: Builder, node: fx.Node) -> None:
    """Note what a call makes of constants: the same for each sample of a batch. A chunk makes several."""

    def operand(each: fx.Node) -> Any:
        if each.op == "get_attr":
            return b.calls.attribute(each)
        fixed = b.floats.values.get(each)
        if not isinstance(fixed, Fixed):
            return each.meta["constant"]
        return fixed.values.expand(2, *fixed.values.shape).to(each.meta["dtype"])

    args: Any = map_arg(node.args, operand)
    kwargs: Any = map_arg(node.kwargs, operand)
    with torch.inference_mode():
        if node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            module = b.calls.module(node)
            function: Any = module if module is not None else node.target
            result = function(*args, **kwargs)
    several = result if isinstance(result, tuple | list) else (result,)
    for each in several:
        if not isinstance(each, torch.Tensor) or len(each) != 2 or not torch.equal(each[0], each[1]):
            raise b.calls.refusal(node, "of constants that differ between samples")
    found = tuple(Fixed(each[0].float()) for each in several)
    if several is result:
        b.float_tuples[node] = found
    else:
        (b.floats.values[node],) = found


# ---- values in another order ----


def _concatenate(b: Builder, node: fx.Node) -> View:
    shape = shape_of(node)
    axis = argument(node, 1, "dim", 0) % len(shape)
    if axis == 0:
        raise b.calls.refusal(node, "of batches")
    operands = [operand_of(b, part, node) for part in parts_of(node)]
    if axis == 1 and b.goes_out(node):  # each part is at the caller what it is here
        first = b.leave(node, math.prod(shape[1:]))
        for operand in operands:
            b.floats.leave(operand, first)
            first += operand.size if isinstance(operand, View) else operand.values.numel()
        return View(None, tuple(shape[1:]), dense_steps(shape[1:]))
    views = [each for each in operands if isinstance(each, View)]
    largest = max(views, key=lambda each: each.size, default=None)
    out = b.floats.new(shape[1:], steps_like(shape[1:], largest.steps) if largest is not None else None)
    begin = 0
    for operand in operands:
        length = (operand.shape if isinstance(operand, View) else operand.values.shape)[axis - 1]
        sizes = (*out.shape[: axis - 1], length, *out.shape[axis:])
        b.floats.map(View(out.buffer, sizes, out.steps, out.first + begin * out.steps[axis - 1]), operand)
        begin += length
    return out


def _expand(b: Builder, node: fx.Node) -> View:
    source = node.args[0]
    operand = operand_of(b, source, node)
    return b.floats.view(operand).expanded(tuple(shape_of(node)[1:]))


# ---- arithmetic ----


def _binary(b: Builder, node: fx.Node) -> View:
    shape = tuple(shape_of(node)[1:])
    operands = [operand_of(b, each, node) for each in node.args]
    for each, operand in zip(node.args, operands, strict=True):
        rank = len(shape_of(each)) if isinstance(each, fx.Node) and each.op != "get_attr" else 0
        if isinstance(operand, View) and rank != len(shape) + 1:
            raise b.calls.refusal(node, "of tensors with different numbers of dimensions")
    return b.floats.map(b.floats.beside(shape, *operands), operands[0], operands[1], OF_TWO[b.calls.target(node)])


def _slope(b: Builder, node: fx.Node) -> View:
    module = b.calls.module(node)
    assert isinstance(module, nn.PReLU)
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    slopes = Fixed(module.weight.detach().reshape(-1, *[1] * (len(view.shape) - 1)))
    code = [
        Instruction(Function.AT_MOST, 2, 0),
        Instruction(Function.MULTIPLY, 2, 2, 1),
        Instruction(Function.AT_LEAST, 0, 0),
        Instruction(Function.ADD, 0, 0, 2),
    ]
    return b.floats.map(b.floats.like(view), view, slopes, code)


# ---- products of matrices ----


def _matmul(b: Builder, node: fx.Node) -> View:
    one, two = node.args[:2]
    ranks = [len(shape_of(each)) if isinstance(each, fx.Node) and each.op != "get_attr" else 0 for each in (one, two)]
    operands = [operand_of(b, each, node) for each in (one, two)]
    if all(ranks) and ranks[0] != ranks[1]:
        raise b.calls.refusal(node, "of tensors with different numbers of dimensions")
    first, second = operands
    rank = len(first.shape if isinstance(first, View) else first.values.shape)
    if min(each for each in ranks if each) < 3 and all(ranks):
        raise b.calls.refusal(node, "across samples")
    if rank < 2 or len(second.shape if isinstance(second, View) else second.values.shape) < 2:
        if not (isinstance(first, View) and isinstance(second, Fixed) and second.values.ndim == 2 and rank == 1):
            raise b.calls.refusal(node, "of a vector")
        found = b.floats.multiply(View(first.buffer, (1, *first.shape), (0, *first.steps), first.first), second)
        return View(found.buffer, found.shape[1:], found.steps[1:], found.first)
    return b.floats.multiply(first, second)


def _repeated(b: Builder, view: View, times: int) -> View:
    """Copy ``(*lead, heads, tokens, channels)`` with each head so many times in a row."""
    shape, steps = view.shape, view.steps
    wide = View(
        view.buffer, (*shape[:-2], times, *shape[-2:]), (*steps[:-2], 0, *steps[-2:]), view.first
    )  # fmt: skip
    copy = b.floats.map(b.floats.new(wide.shape), wide)
    whole = (*shape[:-3], shape[-3] * times, *shape[-2:])
    return View(copy.buffer, whole, dense_steps(whole), copy.first)


def _attention(b: Builder, node: fx.Node) -> tuple[View, str]:
    """Return what attention makes of its operands, and its kernel."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    query, key, value = (b.floats.view(as_floats(b, given[name], node)) for name in names[:3])  # type: ignore[arg-type]
    if given.get("dropout_p") or len({len(each.shape) for each in (query, key, value)}) > 1:
        raise b.calls.refusal(node, "with so many dimensions in one operand alone")
    if len(query.shape) < 2:
        raise b.calls.refusal(node, "of a vector")
    given_scale: Any = given.get("scale")
    scale = score_scale(query.shape[-1]) if given_scale is None else float(given_scale)
    causal, mask = bool(given.get("is_causal")), given.get("attn_mask")
    masks = () if mask is None else (_mask(b, mask, node),)
    groups = query.shape[-3] // key.shape[-3] if given.get("enable_gqa") and len(query.shape) > 2 else 1
    words = node.name in b.attends_by_words
    kernel = "attention of 16 bits" if words else "attention"
    heads = Heads(query, key, value, scale, masks, causal, words=words)
    if groups > 1 and one_layer(b.choices, (1, *query.shape), key.shape[-2], value.shape[-1]):
        found = append_heads(b.floats, heads.in_groups(groups))
        width = found.steps[-3]  # the heads of a token lie side by side
        shape, steps = (*query.shape[:-1], value.shape[-1]), (*found.steps[:-4], width, *found.steps[-2:])
        return View(found.buffer, shape, steps), kernel
    if groups > 1:
        key, value = (_repeated(b, each, groups) for each in (key, value))
    elif one_layer(b.choices, query.shape, key.shape[-2], value.shape[-1]):
        return append_heads(b.floats, heads), kernel
    turned = key.permuted((*range(len(key.shape) - 2), len(key.shape) - 1, len(key.shape) - 2))
    scores = b.floats.multiply(query, turned, scale=scale)
    if causal:
        hidden = torch.full(scores.shape[-2:], -math.inf).triu(1)
        scores = b.floats.map(scores, scores, Fixed(hidden), [Instruction(Function.ADD)])
    for each in masks:
        scores = b.floats.map(scores, scores, each, [Instruction(Function.ADD)])
    softened = b.floats.normalize(scores, (len(scores.shape) - 1,), Norm.SOFTMAX)
    return b.floats.multiply(softened, value), "matmul"


def _mask(b: Builder, mask: object, node: fx.Node) -> Operand:
    """Return what is added to scores: a mask of truth values is 0 where it is true, and hides the others."""
    if isinstance(mask, fx.Node) and mask.op == "get_attr":
        held = b.calls.attribute(mask)
        if held.dtype == torch.bool:
            held = torch.zeros(held.shape).masked_fill(~held, -math.inf)
        lead = held.ndim - len(shape_of(node)) + 1
        if lead > 0:
            if held.shape[:lead].numel() != 1:
                raise b.calls.refusal(node, "with a mask that differs between samples")
            held = held.reshape(held.shape[lead:])
        return Fixed(held.float())
    assert isinstance(mask, fx.Node)
    found = as_floats(b, mask, node)
    views_of(b, node, found)
    if mask.meta.get("dtype") == torch.float32:
        return found
    if mask.meta.get("dtype") != torch.bool:
        raise b.calls.refusal(node, "with a mask of whole numbers")
    if mask not in b.hidden:
        b.hidden[mask] = hidden_by(b, found)
    return b.hidden[mask]


_LOWERED_BY: dict[Any, tuple[Callable[[Builder, fx.Node], View], str]] = {
    **RESAMPLING,
    **REDUCTIONS,
    **BOXES,
    **UPDATES,
    nn.PReLU: (_slope, "map"),
    nn.MaxPool1d: (max_pool, "windows"),
    nn.MaxPool2d: (max_pool, "windows"),
    nn.MaxPool3d: (max_pool_of_volumes, "windows"),
    nn.AvgPool1d: (average_pool, "windows"),
    nn.AvgPool2d: (average_pool, "windows"),
    torch.matmul: (_matmul, "matmul"),
    torch.cat: (_concatenate, "move"),
    F.pad: (pad, "move"),
    "expand": (_expand, ""),
    _ATEN.expand.default: (_expand, ""),
    _ATEN.expand_as.default: (_expand, ""),
}
