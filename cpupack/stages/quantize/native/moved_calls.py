"""Calls that compute the same on tensors that have the batch in front, where the model has it elsewhere.

A call on values one by one, or on the last dimensions, stays as it is. One that names a dimension (a reduction, an
order, values at computed places) names it where it is now.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.graph.names import core
from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE
from cpupack.stages.quantize.native.batch_constants import FILLS, turn_constants, turned

_ATEN = torch.ops.aten
_PRODUCTS = (torch.matmul, F.scaled_dot_product_attention)
_CONVERSIONS = (_ATEN._to_copy.default, _ATEN.to.dtype, _ATEN.type_as.default)
_REDUCTIONS: dict[Any, int] = {
    torch.mean: 1, torch.sum: 1, torch.amax: 1, torch.amin: 1, _ATEN.sum.dim_IntList: 1,
    _ATEN.linalg_vector_norm.default: 2, _ATEN.argmax.default: 1, _ATEN.argmin.default: 1, _ATEN.any.dim: 1,
    _ATEN.all.dim: 1,
}  # fmt: skip
"""Which argument has the dimensions that are reduced."""
_ONE_DIMENSION = (_ATEN.argmax.default, _ATEN.argmin.default, _ATEN.any.dim, _ATEN.all.dim)
_ALONG: dict[Any, int] = {
    _ATEN.topk.default: 2, _ATEN.sort.default: 1, _ATEN.argsort.default: 1, _ATEN.cumsum.default: 1,
    _ATEN.cumprod.default: 1, _ATEN.logcumsumexp.default: 1, _ATEN.cummax.default: 1, _ATEN.cummin.default: 1,
    _ATEN.gather.default: 1, _ATEN.scatter.src: 1, _ATEN.scatter.value: 1, _ATEN.scatter_add.default: 1,
}  # fmt: skip
"""Which argument has the dimension that a call goes along; without it, it is the last one."""


class Batch(NamedTuple):
    """Where a model has the batch: dimension ``axis`` has ``indices`` for each sample.

    Those of a sample are together, or with ``rounds`` the samples take turns: in each round some indices of each.
    """

    axis: int
    indices: int
    rounds: int = 1


FIRST = Batch(0, 1)


class Forms(NamedTuple):
    """Where each tensor has the batch in the model (None: in no one dimension); which tensors have it in front now."""

    given: dict[fx.Node, Batch | None]
    moved: dict[fx.Node, Batch]
    shapes: dict[fx.Node, tuple[int, ...]]


_MOST_REFLECTED = 4
"""torch pads three dimensions at most with anything but a constant, and a moved tensor has one more."""


def moved_axis(axis: int, batch: Batch) -> int:
    """Return where another dimension is when the batch is in front."""
    return (axis + 1 if axis < batch.axis else axis) + (batch.indices > 1)


def works_moved(graph: fx.GraphModule, node: fx.Node, moved: dict[fx.Node, Batch], batch: Batch) -> bool:
    """Have a call read tensors with the batch in front, all of which have it as ``batch`` says in the model.

    Returns False for a call that cannot. ``moved`` has the tensors that are so.
    """
    read = [each for each in node.all_input_nodes if each.op != "get_attr"]
    if any(moved.get(each) != batch for each in read):
        return False
    rank: int = node.meta.get("rank", 0)
    behind = rank - 1 - batch.axis  # dimensions that stay where they are, from the last one on
    alike = all(each.meta.get("rank") == rank for each in read)
    by_value = _works_by_value(node)
    constants = {each: _tensor(graph, each) for each in node.all_input_nodes if each.op == "get_attr"}
    apart = {
        each: value for each, value in constants.items() if value.ndim > behind and not _spares(value, rank, batch)
    }
    if apart:
        front = {each: turned(value, rank, batch.axis, batch.indices) for each, value in apart.items()}
        fitting = {each: value for each, value in front.items() if value is not None}
        if not (by_value or (node.target is torch.matmul and behind > 1)) or len(fitting) < len(apart) or not alike:
            return False
        turn_constants(graph, node, fitting)
        return True
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return _layer_works_moved(module, behind) or _softens_moved(graph, node, module, batch)
    if node.target in POINTWISE or node.target in FILLS or node.target in _CONVERSIONS:
        return True
    if node.target is F.pad:
        return _pads_moved(node, behind, batch)
    if node.target is torch.cat:
        return _joins_moved(node, rank, batch)
    if node.target in _PRODUCTS:
        return alike and behind > 1
    return by_value and alike


def line_up(graph: fx.GraphModule, node: fx.Node, forms: Forms, batch: Batch) -> None:
    """Give operands with fewer dimensions those that they lack, behind the batch, where a call goes value by value.

    ``q.t() / q.sum(1)`` has its sums along the columns, where the batch is, and so has a step of a sequence in
    ``(steps, batch, channels) + (batch, channels)``.
    """
    rank = node.meta.get("rank")
    if batch.indices > 1 or rank is None or not _works_by_value(node):
        return
    for each in node.all_input_nodes:
        own, shape = forms.given.get(each), forms.shapes.get(each, ())
        lacking = rank - len(shape)
        if own is None or own.indices > 1 or lacking < 1 or lacking + own.axis != batch.axis:
            continue
        if each not in forms.moved and own.axis != 0:
            continue
        rest = (*shape[: own.axis], *shape[own.axis + 1 :])
        with graph.graph.inserting_before(node):
            wide = graph.graph.call_function(torch.reshape, (each, (-1, *[1] * lacking, *rest)))
        wide.meta = {key: value for key, value in each.meta.items() if key != "shape"} | {"rank": rank}
        forms.given[wide] = forms.moved[wide] = batch
        node.replace_input_with(each, wide)


def _layer_works_moved(module: nn.Module, behind: int) -> bool:
    kind = type(core(module))
    settings: Any = module
    if kind in (nn.Softmax, nn.LogSoftmax):
        return isinstance(settings.dim, int) and -behind <= settings.dim < 0
    if kind in (nn.LayerNorm, nn.RMSNorm):
        return bool(len(settings.normalized_shape) <= behind)
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return False
    return kind in ACTIVATIONS or kind is nn.Embedding or (kind is nn.Linear and behind > 0)


def _softens_moved(graph: fx.GraphModule, node: fx.Node, module: nn.Module, batch: Batch) -> bool:
    """Have a softmax over a dimension in front of the batch go over it where it is now; False for another layer.

    Transformer-XL has its scores as ``(queries, keys, batch, heads)``.
    """
    rank: int = node.meta.get("rank", 0)
    if not isinstance(module, nn.Softmax | nn.LogSoftmax) or module.dim is None or module.dim % rank == batch.axis:
        return False
    now = moved_axis(module.dim % rank, batch) - (rank + (batch.indices > 1))
    node.target = f"{node.name}_moved"
    graph.add_submodule(node.target, type(module)(dim=now).eval())
    return True


def _works_by_value(node: fx.Node) -> bool:
    """Whether a call is arithmetic, or torch says that it goes value by value: comparisons, choices, rounding."""
    target = node.target
    return target in ARITHMETIC or (isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags)


def _pads_moved(node: fx.Node, behind: int, batch: Batch) -> bool:
    """Have a padding of dimensions after the batch's pad these where they are now."""
    pads: Any = node.args[1]
    if node.kwargs or len(pads) > 2 * behind or not all(isinstance(each, int) for each in pads):
        return False
    mode = node.args[2] if len(node.args) > 2 else "constant"
    if mode != "constant" and batch.indices > 1:
        if len(pads) > _MOST_REFLECTED:
            return False
        node.args = (node.args[0], [*pads, 0, 0], *node.args[2:])  # torch wants all of them named
    return True


def _joins_moved(node: fx.Node, rank: int, batch: Batch) -> bool:
    """Have a concatenation of tensors that all were moved join them along the dimension that it has there now."""
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    if node.kwargs or axis % rank == batch.axis or any(each.op == "get_attr" for each in node.all_input_nodes):
        return False
    node.args = (node.args[0], moved_axis(axis % rank, batch))
    return True


def _spares(constant: torch.Tensor, rank: int, batch: Batch) -> bool:
    """Whether a constant has one index along the batch's dimension, which is the first one."""
    return batch.axis == 0 and (constant.ndim < rank or (constant.ndim == rank and constant.shape[0] == 1))


def reduces(node: fx.Node) -> bool:
    """Whether a call reduces dimensions of one tensor that its arguments name."""
    place = _REDUCTIONS.get(node.target)
    return place is not None and not node.kwargs and len(node.args) > place and len(node.all_input_nodes) == 1


def reduce_moved(node: fx.Node, batch: Batch) -> bool:
    """Have a reduction go over the same dimensions where they are now; False where the batch is one of them."""
    place = _REDUCTIONS[node.target]
    axes: Any = node.args[place]
    (source,) = node.all_input_nodes
    rank = source.meta["rank"]
    given = [each % rank for each in ([axes] if isinstance(axes, int) else axes or range(rank))]
    if batch.axis in given:
        return False
    moved: Any = [moved_axis(each, batch) for each in given]
    if node.target in _ONE_DIMENSION:
        (moved,) = moved
    node.args = (*node.args[:place], moved, *node.args[place + 1 :])
    return True


def goes_along_moved(node: fx.Node, moved: dict[fx.Node, Batch], batch: Batch) -> bool:
    """Have an order, a running sum, or values at computed places go along the same dimension where it is now.

    All of its operands must have been moved alike. False for another call, and along the batch.
    """
    place = _ALONG.get(node.target)
    operands = node.all_input_nodes
    ranks = {each.meta.get("rank") for each in operands}
    if place is None or len(ranks) != 1 or None in ranks or any(moved.get(each) != batch for each in operands):
        return False
    name = node.target._schema.arguments[place].name  # type: ignore[union-attr]  # an overload
    axis: Any = node.args[place] if len(node.args) > place else node.kwargs.get(name, -1)
    own = axis % next(iter(ranks))
    if own == batch.axis:
        return False
    if len(node.args) > place:
        node.args = (*node.args[:place], moved_axis(own, batch), *node.args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: moved_axis(own, batch)}
    return True


def multiplies_columns(graph: fx.GraphModule, node: fx.Node, moved: dict[fx.Node, Batch], batch: Batch) -> bool:
    """Have ``table @ x`` be ``x @ table.T`` where the batch is in the columns of ``x``; False for another call.

    Diffusion over a graph is written so: ``support @ x.permute(1, 2, 0).reshape(nodes, channels * batch)``.
    """
    if node.target is not torch.matmul or node.kwargs or len(node.args) != 2:
        return False
    table, x = node.args
    if not isinstance(table, fx.Node) or not isinstance(x, fx.Node) or table.op != "get_attr" or moved.get(x) != batch:
        return False
    value, rank = _tensor(graph, table), x.meta.get("rank")
    if value.ndim != 2 or rank is None or rank < 2 or batch.axis != rank - 1:
        return False
    name = f"{node.name}_turned"
    graph.register_buffer(name, value.detach().t().contiguous())
    with graph.graph.inserting_before(node):
        node.args = (x, graph.graph.get_attr(name))
    return True


def expand_moved(graph: fx.GraphModule, node: fx.Node, batch: Batch, shapes: dict[fx.Node, tuple[int, ...]]) -> bool:
    """Have an expansion of a tensor that has the batch in front repeat it after the batch; False for another call.

    ``batch`` says where the model has it in what is read, ``shapes`` the sizes there. With more dimensions,
    ``x.expand(8, -1, -1, -1)``, the model has it after these.
    """
    if node.target is not _ATEN.expand.default or node.kwargs or len(node.args) != 2:
        return False
    source, sizes = node.args
    if not isinstance(source, fx.Node) or source.op == "get_attr" or not isinstance(sizes, list | tuple):
        return False
    rank = source.meta.get("rank")
    new = len(sizes) - rank if isinstance(rank, int) else -1
    if new < 0 or not all(isinstance(each, int) for each in sizes) or sizes[new + batch.axis] != -1:
        return False
    if new and batch.axis:
        return False
    lead = [-1] * (1 + (batch.indices > 1))
    rest = [each for at, each in enumerate(sizes) if at != new + batch.axis]
    if new:
        middle = [batch.indices] * (batch.indices > 1)
        with graph.graph.inserting_before(node):
            wide = graph.graph.call_function(torch.reshape, (source, (-1, *middle, *[1] * new, *shapes[source][1:])))
        wide.meta = {key: each for key, each in source.meta.items() if key not in {"shape", "rank"}}
        source = wide
    node.args = (source, [*lead, *rest])
    return True


def _tensor(graph: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    found: Any = graph
    for name in str(node.target).split("."):
        found = getattr(found, name)
    assert isinstance(found, torch.Tensor)
    return found
