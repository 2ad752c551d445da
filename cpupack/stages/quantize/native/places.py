"""Lowers calls by computed places: sorting, the k largest, gathers and scatters, images read between their pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import argument, shape_of
from cpupack.stages.quantize.native.floats import Operand
from cpupack.stages.quantize.native.magnitudes import bounded, largest_of
from cpupack.stages.quantize.native.operands import operand_of
from cpupack.stages.quantize.native.placed import (
    MOST_ORDERED,
    append_order,
    append_pick,
    append_put,
    append_sample,
    append_sample_of_volume,
)
from cpupack.stages.quantize.native.sampled_images import SampledImages
from cpupack.stages.quantize.native.walks import (
    Fixed,
    Function,
    Instruction,
    Norm,
    Put,
    Sampling,
    Surroundings,
    View,
)

_ATEN = torch.ops.aten
_KINDS = {"sum": Put.SUM, "prod": Put.PRODUCT, "amax": Put.MAXIMUM, "amin": Put.MINIMUM, "mean": Put.SUM}
_NEUTRAL = {Put.SUM: 0.0, Put.PRODUCT: 1.0, Put.MAXIMUM: -math.inf, Put.MINIMUM: math.inf}


def _axis(b: Builder, node: fx.Node, given: Any) -> int:
    """Return a dimension of a sample."""
    axis: int = given % len(shape_of(node.all_input_nodes[0])) - 1
    if axis < 0:
        raise b.calls.refusal(node, "over samples")
    return axis


def _view(b: Builder, node: fx.Node, operand: object) -> View:
    return b.floats.view(operand_of(b, operand, node))


# ---- orders ----


def _top(b: Builder, node: fx.Node) -> str:
    count: Any = node.args[1]
    down = bool(argument(node, 3, "largest", default=True))
    return _in_order(b, node, _axis(b, node, argument(node, 2, "dim", -1)), int(count), down=down)


def _sort(b: Builder, node: fx.Node) -> str:
    stable = node.target is _ATEN.sort.stable
    if stable:
        axis, down = node.kwargs.get("dim", -1), bool(node.kwargs.get("descending", False))
    else:
        axis, down = argument(node, 1, "dim", -1), bool(argument(node, 2, "descending", default=False))
    own = _axis(b, node, axis)
    return _in_order(b, node, own, shape_of(node.all_input_nodes[0])[own + 1], down=down)


def _in_order(b: Builder, node: fx.Node, axis: int, count: int, *, down: bool) -> str:
    """Note the values and the places of a row's first ones, each where something reads it."""
    source: Any = node.args[0]
    if count > MOST_ORDERED:
        raise b.calls.refusal(node, f"of {count} values in order: there is room for {MOST_ORDERED}")
    bounded(b, source, largest_of(b, source), node)
    view, read = _view(b, node, source), {user.args[1] for user in node.users}
    if 1 not in read:
        values = places = append_order(b.floats, view, axis, count, down=down, values=True)
    else:
        values = places = append_order(b.floats, view, axis, count, down=down, values=False)
        if 0 in read:
            values = append_pick(b.floats, view, places, axis)
    for user in node.users:
        b.magnitudes[user] = float(view.shape[axis]) if user.args[1] == 1 else largest_of(b, source)
    b.float_tuples[node] = (values, places)
    return "order"


def _places(b: Builder, node: fx.Node) -> str:
    """Lower an argsort."""
    stable = node.target is _ATEN.argsort.stable
    given: Any = node.kwargs if stable else {}
    axis = _axis(b, node, given.get("dim", -1) if stable else argument(node, 1, "dim", -1))
    down = bool(given.get("descending", False) if stable else argument(node, 2, "descending", default=False))
    view = _view(b, node, node.args[0])
    if view.shape[axis] > MOST_ORDERED:
        raise b.calls.refusal(node, f"of {view.shape[axis]} values in order: there is room for {MOST_ORDERED}")
    b.magnitudes[node] = float(view.shape[axis])
    b.floats.values[node] = append_order(b.floats, view, axis, view.shape[axis], down=down, values=False)
    return "order"


def _running(kind: Norm) -> Callable[[Builder, fx.Node], str]:
    def made(b: Builder, node: fx.Node) -> str:
        """Lower a product or an extreme of the values up to each."""
        several = any(each.meta.get("dtype") is None for each in (node,))
        if several and any(user.args[1] == 1 for user in node.users):
            raise b.calls.refusal(node, "with the places of extremes")
        if not b.calls.takes_floats(node):
            raise b.calls.refusal(node, "of whole numbers")
        found = b.floats.normalize(_view(b, node, node.args[0]), (_axis(b, node, node.args[1]),), kind)
        if several:
            b.float_tuples[node] = (found, found)
        else:
            b.floats.values[node] = found
        return "running"

    return made


_LOG_OF_SUM = [
    Instruction(Function.COPY, 2, 0), Instruction(Function.MAXIMUM), Instruction(Function.SUBTRACT, 2, 2, 1),
    Instruction(Function.ABSOLUTE, 2, 2), Instruction(Function.MULTIPLY_NUMBER, 2, 2, number=-1.0),
    Instruction(Function.EXPONENTIAL, 2, 2), Instruction(Function.ADD_NUMBER, 2, 2, number=1.0),
    Instruction(Function.LOGARITHM, 2, 2), Instruction(Function.ADD, 0, 0, 2),
]  # fmt: skip
"""log(exp(x) + exp(y)): the larger one, and log(1 + exp(-distance))."""
_LEAST_LOGARITHM = -1e30
"""The difference of two infinite logarithms would be no number."""


def _logarithms(b: Builder, node: fx.Node) -> str:
    """Lower ``logcumsumexp``: each round joins the sums of twice as many values, so none is far from its largest."""
    view, axis = _view(b, node, node.args[0]), _axis(b, node, node.args[1])
    length, way = view.shape[axis], 1
    found = b.floats.map(b.floats.like(view), view, None, [Instruction(Function.AT_LEAST, number=_LEAST_LOGARITHM)])
    while way < length:
        joined = b.floats.like(found)
        b.floats.map(_part(joined, axis, 0, way), _part(found, axis, 0, way))
        b.floats.map(
            _part(joined, axis, way, length), _part(found, axis, way, length), _part(found, axis, 0, length - way),
            _LOG_OF_SUM,
        )  # fmt: skip
        found, way = joined, 2 * way
    b.floats.values[node] = found
    return "running"


def _part(view: View, axis: int, begin: int, end: int) -> View:
    shape = (*view.shape[:axis], end - begin, *view.shape[axis + 1 :])
    return View(view.buffer, shape, view.steps, view.first + begin * view.steps[axis])


# ---- values from places and into them ----


def _gather(b: Builder, node: fx.Node) -> str:
    source, axis, numbers = node.args[:3]
    assert isinstance(source, fx.Node)
    held = b.floats.values.get(source)
    if isinstance(held, Fixed) and held.values.ndim == 1 and len(shape_of(node)) == 2:
        view = b.floats.view(as_floats(b, numbers, node))  # type: ignore[arg-type]  # a call
        found = b.floats.look_up(view, held.values.float().contiguous().numpy()[:, None], None)
        b.floats.values[node] = View(found.buffer, found.shape[:-1], found.steps[:-1], found.first)
        return "lookup"
    bounded(b, node, largest_of(b, source))
    b.floats.values[node] = append_pick(b.floats, _view(b, node, source), _view(b, node, numbers), _axis(b, node, axis))
    return "pick"


def _scatter(b: Builder, node: fx.Node) -> str:
    source, axis, numbers, values = node.args[:4]
    assert isinstance(source, fx.Node)
    packet = node.target.overloadpacket  # type: ignore[union-attr]  # an overload
    kind, mean, include = Put.VALUE, False, True
    if packet is _ATEN.scatter_add:
        kind = Put.SUM
    elif packet is _ATEN.scatter_reduce:
        name: Any = node.args[4]
        kind, mean, include = _KINDS[name], name == "mean", bool(argument(node, 5, "include_self", default=True))
    elif len(node.args) > 4 or node.kwargs:
        raise b.calls.refusal(node, "with a reduction: scatter_reduce has one")
    at, own = _view(b, node, numbers), _axis(b, node, axis)
    count = at.shape[own] if kind in (Put.SUM, Put.PRODUCT) else 1
    sizes = largest_of(b, source), largest_of(b, values) * count
    bounded(b, node, math.inf if kind is Put.PRODUCT else sum(sizes) if kind is Put.SUM else max(sizes))
    base, given = operand_of(b, source, node), _values(b, node, values, at.shape)
    if not include:
        base = append_put(b.floats, base, at, Fixed(torch.tensor(_NEUTRAL[kind]).expand(at.shape)), own, Put.VALUE)
    found = append_put(b.floats, base, at, given, own, kind)
    if mean:
        shape = base.shape if isinstance(base, View) else tuple(base.values.shape)
        first = Fixed(torch.full([1] * len(shape), float(include)).expand(shape))
        counts = append_put(b.floats, first, at, Fixed(torch.ones(()).expand(at.shape)), own, Put.SUM)
        code = [Instruction(Function.AT_LEAST, 1, 1, number=1.0), Instruction(Function.DIVIDE)]
        found = b.floats.map(b.floats.like(found), found, counts, code)
    b.floats.values[node] = found
    return "put"


def _values(b: Builder, node: fx.Node, values: Any, shape: tuple[int, ...]) -> Operand:
    """Return what is put into places, in their shape: as many of the values as there are places."""
    if not isinstance(values, fx.Node):
        return Fixed(torch.tensor(float(values)).expand(shape))
    operand = operand_of(b, values, node)
    if isinstance(operand, Fixed):
        held = operand.values
        if held.ndim == 0:
            return Fixed(held.expand(shape))
        return Fixed(held[tuple(slice(size) for size in shape)])
    return View(operand.buffer, shape, operand.steps, operand.first) if operand.shape else operand.expanded(shape)


# ---- images ----


def _sample(b: Builder, node: fx.Node) -> str:
    given: Any = node.args
    image, grid, how, around, corners = given
    one, at = _view(b, node, image), _view(b, node, grid)
    if len(shape_of(node)) == 5:
        b.floats.values[node] = append_sample_of_volume(
            b.floats, one, at, Sampling(how), Surroundings(around), corners=bool(corners)
        )
        return "sample"
    found = append_sample(
        b.floats, _of_one(one), _of_one(at), Sampling(how), Surroundings(around), corners=bool(corners)
    )
    b.floats.values[node] = View(found.buffer, found.shape[1:], found.steps[1:], found.first)
    return "sample"


def _of_one(view: View) -> View:
    """Return an image, or its grid, as the only one of a sample."""
    return View(view.buffer, (1, *view.shape), (0, *view.steps), view.first)


def _sample_images(b: Builder, node: fx.Node) -> str:
    """Lower the reading of several images of a sample, each at places of its own."""
    module: Any = b.calls.module(node)
    images, grids = (_view(b, node, each) for each in node.args)
    b.floats.values[node] = append_sample(
        b.floats, images, grids, Sampling(module.how), Surroundings(module.around), corners=module.corners
    )
    return "sample"


PLACES: dict[Any, Callable[[Builder, fx.Node], str]] = {
    _ATEN.topk.default: _top,
    _ATEN.sort.default: _sort,
    _ATEN.sort.stable: _sort,
    _ATEN.argsort.default: _places,
    _ATEN.argsort.stable: _places,
    _ATEN.cumprod.default: _running(Norm.RUNNING_PRODUCT),
    _ATEN.cummax.default: _running(Norm.RUNNING_MAXIMUM),
    _ATEN.cummin.default: _running(Norm.RUNNING_MINIMUM),
    _ATEN.logcumsumexp.default: _logarithms,
    _ATEN.gather.default: _gather,
    _ATEN.scatter.src: _scatter,
    _ATEN.scatter.value: _scatter,
    _ATEN.scatter_add.default: _scatter,
    _ATEN.scatter_reduce.two: _scatter,
    _ATEN.grid_sampler.default: _sample,
    _ATEN.grid_sampler_2d.default: _sample,
    _ATEN.grid_sampler_3d.default: _sample,
    SampledImages: _sample_images,
}
"""By what is called: the function that appends the layers and returns the name of their kernel."""
