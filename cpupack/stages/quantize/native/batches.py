"""Brings the batch to the front of every tensor, where a model has it elsewhere or joined with other dimensions.

Transformers compute on tensors such as ``(batch * windows, tokens, channels)`` and ``(tokens, batch, channels)``, and
cut ``(3, batch, heads, ...)`` into queries, keys and values. The engine's values are those of a sample. So these become
``(batch, windows, tokens, channels)``, ``(batch, tokens, channels)`` and ``(batch, 3, heads, ...)``. Calls that
look at the last dimensions alone compute the same on them. Calls that move values first bring the batch back to where
they expect it, and then to the front again; nothing is computed for that when the engine runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from cpupack.graph.names import core
from cpupack.graph.recurrent import Recurrent, RecurrentOfSeveral
from cpupack.graph.vocabulary import BATCH_NORMS, SHAPES, UNFOLD
from cpupack.stages.quantize.native.batch_constants import lay_out_in_front
from cpupack.stages.quantize.native.frames import join_turns, over_frames, run_over_frames
from cpupack.stages.quantize.native.joined_frames import join_frames
from cpupack.stages.quantize.native.moved_calls import (
    FIRST,
    Batch,
    expand_moved,
    goes_along_moved,
    moved_axis,
    multiplies_columns,
    reduce_moved,
    reduces,
    works_by_value,
    works_moved,
)
from cpupack.stages.quantize.native.rearrangement import Rearrangement, turn_around
from cpupack.stages.quantize.native.sampled_images import sample_images

_MOVES = (*SHAPES, torch.ops.aten.roll.default, torch.ops.aten.flip.default)


class _Forms(NamedTuple):
    """Where each tensor has the batch in the model (None: in no one dimension); which tensors have it in front now."""

    given: dict[fx.Node, Batch | None]
    moved: dict[fx.Node, Batch]
    shapes: dict[fx.Node, tuple[int, ...]]


def bring_batches_forward(graph: fx.GraphModule, *input_shapes: tuple[int, ...]) -> None:
    """Rewrite a graph in place so that tensors have the batch, alone, as their first dimension where that is possible.

    Calls keep their names. Every call gives the same values, if need be in another shape.
    """
    forms = _batches(graph, *input_shapes)
    if all(each == FIRST for each in forms.given.values()):
        return
    for node in list(graph.graph.nodes):
        if node.op in {"placeholder", "get_attr"}:
            continue
        if _moves(node):
            _move(graph, node, forms)
        elif any(each in forms.moved for each in node.all_input_nodes):
            _compute(graph, node, forms)
        elif (batch := forms.given.get(node)) and batch.axis > 0 and batch.indices == 1:
            read = forms.given.get(node.all_input_nodes[0]) if node.all_input_nodes else None
            if lay_out_in_front(graph, node, batch.axis) or (
                read == FIRST and expand_moved(graph, node, FIRST, forms.shapes)
            ):
                forms.moved[node] = batch
    join_turns(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _batches(graph: fx.GraphModule, *input_shapes: tuple[int, ...]) -> _Forms:
    """Run a graph on two samples and on three, and see which dimension differs."""
    shapes = []
    for count in (2, 3):
        record = _Shapes(graph)
        with torch.inference_mode():
            record.run(*(torch.zeros(count, *shape) for shape in input_shapes))
        shapes.append(record.shapes)
    found: dict[fx.Node, Batch | None] = {}
    for node, two in shapes[0].items():
        three = shapes[1][node]
        differ = [axis for axis in range(len(two)) if len(two) == len(three) and two[axis] != three[axis]]
        one = len(differ) == 1 and two[differ[0]] * 3 == three[differ[0]] * 2
        found[node] = Batch(differ[0], two[differ[0]] // 2) if one else None
    return _Forms(found, {}, shapes[0])


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "get_attr":
            self.shapes[n] = tuple(value.shape)
            n.meta["rank"] = value.ndim
        return value


def _moves(node: fx.Node) -> bool:
    """Whether a call gives one tensor of another one's values, with settings that are numbers."""
    if node.op != "call_function" or node.target not in _MOVES or node.kwargs:
        return False
    return len(node.all_input_nodes) == 1 and node.args[0] is node.all_input_nodes[0]


def _move(graph: fx.GraphModule, node: fx.Node, forms: _Forms) -> None:
    source = node.all_input_nodes[0]
    if source.op == "get_attr" or (source not in forms.given and source not in forms.moved):
        return  # of constants, or a part of a chunk, whose users know its form
    before = forms.moved.get(source)
    if node.target is torch.chunk:
        _chunk(graph, node, source, forms)
        return
    after = forms.given[node] = _found_batch(node, source, forms)
    calls: list[tuple[Any, tuple[Any, ...]]] = [(node.target, node.args[1:])]
    if before is not None:
        calls.insert(0, (_back, before))
    if after is not None and after != FIRST and (before is not None or forms.given.get(source) == FIRST):
        calls.append((_forward, after))
        forms.moved[node] = after
    if len(calls) > 1:
        _replace(graph, node, source, calls)


def _found_batch(node: fx.Node, source: fx.Node, forms: _Forms) -> Batch | None:
    """Return where a call that moves values has the batch: what it does to the numbers of two samples tells."""
    after, before = forms.given.get(node), forms.given.get(source)
    if after is None or before is None or node.target is torch.chunk:
        return after
    numbers = torch.arange(2)
    along = _laid_out(numbers, before)
    shape = forms.shapes[source]
    spread = along.reshape(-1, *[1] * (len(shape) - 1 - before.axis)).expand(shape)
    target: Any = node.target
    if target is UNFOLD:
        spread = spread.double()  # it takes no integers
    result = target(spread, *node.args[1:]).long().movedim(after.axis, 0)
    result = result.reshape(len(result), -1)
    for rounds in range(1, after.indices + 1):
        found = after._replace(rounds=rounds)
        if after.indices % rounds == 0 and torch.equal(result, _laid_out(numbers, found)[:, None].expand(result.shape)):
            return found
    return None


def _laid_out(samples: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the number of the sample to which each index belongs."""
    return samples.repeat_interleave(batch.indices // batch.rounds).repeat(batch.rounds)


def _chunk(graph: fx.GraphModule, node: fx.Node, source: fx.Node, forms: _Forms) -> None:
    before = forms.moved.get(source)
    if before is None:
        return
    axis = node.args[2] if len(node.args) > 2 else 0
    assert isinstance(axis, int)
    axis %= source.meta["rank"]
    if axis == before.axis:
        node.args = (_whole(graph, node, source, forms), *node.args[1:])
        return
    node.args = (source, node.args[1], moved_axis(axis, before))
    for part in node.users:
        forms.moved[part] = before


def _replace(graph: fx.GraphModule, node: fx.Node, source: fx.Node, calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
    name = f"rearrangement_{node.name}"
    graph.add_submodule(name, Rearrangement(*calls))
    node.op, node.target, node.args = "call_module", name, (source,)


def _forward(x: torch.Tensor, axis: int, indices: int, rounds: int) -> torch.Tensor:
    """Return ``(batch, indices, ...)``, or ``(batch, ...)`` for one index, of a tensor with the batch elsewhere."""
    x = x.movedim(axis, 0)
    if indices == 1:
        return x
    if rounds > 1:
        x = x.reshape(rounds, -1, indices // rounds, *x.shape[1:]).transpose(0, 1)
        return x.reshape(-1, indices, *x.shape[3:])
    return x.reshape(-1, indices, *x.shape[1:])


def _back(x: torch.Tensor, axis: int, indices: int, rounds: int) -> torch.Tensor:
    """Return the tensor of which ``_forward`` gives ``x``."""
    if rounds > 1:
        x = x.reshape(-1, rounds, indices // rounds, *x.shape[2:]).transpose(0, 1)
        x = x.reshape(-1, *x.shape[3:])
    elif indices > 1:
        x = x.reshape(-1, *x.shape[2:])
    return x.movedim(0, axis)


def _compute(graph: fx.GraphModule, node: fx.Node, forms: _Forms) -> None:
    """Leave a call as it is where it may read moved tensors; else have it read them as the model has them."""
    batch = forms.given.get(node)
    read = next((forms.moved[each] for each in node.all_input_nodes if each in forms.moved), FIRST)
    if batch is not None and batch[:2] == read[:2]:
        _give_dimensions(graph, node, forms, read)
    if reduces(node) and batch is not None and batch.indices == read.indices and reduce_moved(node, read):
        after = forms.given[node] = batch._replace(rounds=read.rounds)
        if after[:2] != FIRST[:2]:
            forms.moved[node] = after
        return
    computes = node.op != "output" and batch is not None and batch[:2] == read[:2]
    if computes and (works_moved(graph, node, forms.moved, read) or multiplies_columns(graph, node, forms.moved, read)):
        forms.given[node] = forms.moved[node] = read
        return
    several = node not in forms.given  # results, each of which has the batch
    if (several or (batch is not None and batch[:2] == read[:2])) and (
        goes_along_moved(node, forms.moved, read) or _recurs_over_several(graph, node, forms, read)
    ):
        for each in node.users if several else [node]:
            forms.given[each] = forms.moved[each] = read
        return
    if batch is not None and batch.indices == read.indices and expand_moved(graph, node, read, forms.shapes):
        forms.given[node] = forms.moved[node] = batch._replace(rounds=read.rounds)
        return
    if _norms_rows(graph, node, read):
        _norm_channels(graph, node, read, forms)
        return
    if batch is not None and batch[:2] == read[:2] and _picks(node, read):
        forms.given[node] = forms.moved[node] = read
        return
    if batch is not None and batch[:2] == read[:2] and sample_images(graph, node, forms.moved, read):
        forms.given[node] = forms.moved[node] = read
        return
    if read.axis == 0 and read.indices > 1 and scales_channels(graph, node):
        scale_channels(graph, node)
        forms.given[node] = forms.moved[node] = read
        return
    if batch is not None and batch[:2] == read[:2] and (back := _over_frames(graph, node, read)) is not None:
        forms.given[back] = forms.moved[back] = read
        forms.shapes[back] = forms.shapes[node]
        return
    replaced = {each: _whole(graph, node, each, forms) for each in node.all_input_nodes if each in forms.moved}
    node.args = map_arg(node.args, lambda each: replaced.get(each, each))
    node.kwargs = map_arg(node.kwargs, lambda each: replaced.get(each, each))


def _give_dimensions(graph: fx.GraphModule, node: fx.Node, forms: _Forms, batch: Batch) -> None:
    """Have arithmetic read ``(batch, 1, values)`` in place of ``(batch, values)``, beside ``(1, batch, values)``.

    The states of a recurrent layer that is written out are so, and torch puts the dimension in front by itself.
    """
    if batch.axis == 0 or batch.indices > 1 or not works_by_value(node):
        return
    for each in node.all_input_nodes:
        missing = node.meta.get("rank", 0) - each.meta.get("rank", 0)
        if each in forms.moved or forms.given.get(each) != FIRST or missing != batch.axis:
            continue
        with graph.graph.inserting_before(node):
            name = f"rearrangement_{each.name}_{node.name}"
            graph.add_submodule(name, Rearrangement((_with_ones, (missing,))))
            wide = graph.graph.call_module(name, (each,))
        wide.meta = {key: value for key, value in each.meta.items() if key != "shape"} | {"rank": node.meta["rank"]}
        forms.given[wide] = forms.moved[wide] = batch
        node.replace_input_with(each, wide)


def _with_ones(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.reshape(len(x), *[1] * count, *x.shape[1:])


def _picks(node: fx.Node, batch: Batch) -> bool:
    """Have a selection at constant places behind the batch read a moved tensor; False if it is another call."""
    if node.target is not torch.ops.aten.index.Tensor or batch.axis != 0 or batch.indices == 1:
        return False
    indices: Any = node.args[1]
    first, *places = indices
    if first is not None or any(each is not None and each.op != "get_attr" for each in places):
        return False
    node.args = (node.args[0], [None, None, *places])
    return True


def _over_frames(graph: fx.GraphModule, node: fx.Node, batch: Batch) -> fx.Node | None:
    """Have a layer of images or signals be one of a dimension more, where its batch has several of each sample.

    Return what gives its result; None for another call.
    """
    if node.meta.get("rank") not in {3, 4} or batch.axis != 0 or batch.indices == 1:
        return None
    if (joined := join_frames(graph, node, batch.indices)) is not None:
        return joined
    layer = over_frames(graph.get_submodule(str(node.target))) if node.op == "call_module" else None
    return None if layer is None else run_over_frames(graph, node, layer)


def _recurs_over_several(graph: fx.GraphModule, node: fx.Node, forms: _Forms, batch: Batch) -> bool:
    """Have a recurrent layer run over several sequences of each sample, as over the letters of words."""
    layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(layer, Recurrent) or batch.axis != 0 or batch.indices == 1:
        return False
    if any(forms.moved.get(each) != batch for each in node.all_input_nodes):
        return False
    node.target = f"{node.name}_of_several"
    graph.add_submodule(node.target, RecurrentOfSeveral(layer.layer, has_lengths=layer.has_lengths).eval())
    return True


def _norms_rows(graph: fx.GraphModule, node: fx.Node, batch: Batch) -> bool:
    """Whether a call is a BatchNorm of ``(batch * indices, channels)``."""
    if node.op != "call_module" or node.meta.get("rank") != 2 or batch.axis != 0 or batch.indices == 1:
        return False
    return isinstance(core(graph.get_submodule(str(node.target))), nn.BatchNorm1d)


def _norm_channels(graph: fx.GraphModule, node: fx.Node, batch: Batch, forms: _Forms) -> None:
    """Have a BatchNorm of rows read ``(batch, channels, indices)``."""
    _, rows = turn_around(graph, node, f"rearrangement_{node.name}")
    forms.given[rows] = forms.moved[rows] = batch
    forms.shapes[rows] = forms.shapes[node]


def scales_channels(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call is a BatchNorm of ``(n, channels, ...)``: a factor and a term for each channel."""
    if node.op != "call_module" or node.meta.get("rank", 0) < 3:
        return False
    module: Any = graph.get_submodule(str(node.target))
    return type(module) in BATCH_NORMS and module.running_mean is not None


def scale_channels(graph: fx.GraphModule, node: fx.Node) -> None:
    """Turn a BatchNorm into the product and the sum that it is: they fit a tensor with the batch elsewhere."""
    norm: Any = graph.get_submodule(str(node.target))
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    term = norm.bias.double() - norm.running_mean.double() * factor
    wide = (-1, *[1] * (node.meta["rank"] - 2))
    node.op, node.target = "call_function", torch.mul
    node.args = (node.args[0], _constant(graph, node, "factors", factor.reshape(wide)))
    if bool((term != 0).any()):  # the product comes before, and the call keeps its name
        with graph.graph.inserting_before(node):
            product = graph.graph.call_function(torch.mul, node.args)
        product.meta = {key: each for key, each in node.meta.items() if key != "shape"}
        node.target, node.args = torch.add, (product, _constant(graph, node, "terms", term.reshape(wide)))


def _constant(graph: fx.GraphModule, node: fx.Node, word: str, value: torch.Tensor) -> fx.Node:
    """Add a constant right before a call."""
    name = f"{node.name}_{word}"
    graph.register_buffer(name, value.detach().float())
    with graph.graph.inserting_before(node):
        return graph.graph.get_attr(name)


def _whole(graph: fx.GraphModule, node: fx.Node, source: fx.Node, forms: _Forms) -> fx.Node:
    """Return a tensor with the batch where the model has it, as the call ``node`` has to read it."""
    with graph.graph.inserting_before(node):
        name = f"rearrangement_{source.name}_{node.name}"
        graph.add_submodule(name, Rearrangement((_back, forms.moved[source])))
        whole = graph.graph.call_module(name, (source,))
    whole.meta = {key: value for key, value in source.meta.items() if key not in {"shape", "rank"}}
    return whole
