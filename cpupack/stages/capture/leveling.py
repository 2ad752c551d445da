"""Brings the values of an input to one range where they differ so much that one scale of INT8 codes would lose some.

Columns of a table are years beside shares beside amounts, bands of a sensor differ by factors of a hundred. All values
of a tensor have one scale, so the small ones would have no steps left. A scale and a shift of each channel come first
then, in FP32, and the layers that read them take the inverse into their weights: the answer stays the same. Where the
model has such a scale and shift of its own (a BatchNorm of the input), they stay in FP32 before the first codes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from cpupack.artifacts import Samples
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.tags import LEVELS
from cpupack.stages.capture.rewrites.affine import Affine, affine_of, apply_before, batch_norm_of
from cpupack.stages.capture.rewrites.tools import (
    is_a,
    module_of,
    new_call,
    new_constant,
    new_module,
    own_copy,
    parameter,
    shape,
)

_MOVES: tuple[Any, ...] = (operator.getitem, torch.reshape, torch.flatten, torch.permute, torch.ops.aten.slice.Tensor)
_CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_CODES = 255.0
_LEAST_DB = 30.0
"""SQNR of a layer's result when only its input is rounded: codes of one scale for all channels are good enough."""
_LEAST_GAIN_DB = 6.0
_SAMPLES = 256
_JOINED_SAMPLES = 32
_MOST_VALUES = 1 << 26
"""Values of all samples that are looked at: 256 MB."""


@dataclass(frozen=True)
class _Channels:
    """What is known of a tensor's channels along one dimension, float64 ``(channels,)`` each."""

    low: torch.Tensor
    high: torch.Tensor
    variance: torch.Tensor

    @property
    def step(self) -> float:
        """The step of codes with one scale for all; zero is a code."""
        return (max(float(self.high.max()), 0.0) - min(float(self.low.min()), 0.0)) / _CODES

    def steps(self, *, shifted: bool) -> torch.Tensor:
        """Return the steps of codes with a scale for each, and a shift."""
        half = (self.high - self.low) / 2 if shifted else torch.maximum(self.high.abs(), self.low.abs())
        return 2 * half / _CODES


def level_inputs(graph: fx.GraphModule, samples: Samples | None) -> bool:
    """Level the channels of a graph's input by what ``samples`` have there, in place. Whether something changed."""
    source: fx.Node = next(node for node in graph.graph.nodes if node.op == "placeholder")
    if samples is None or samples.preprocess is not None or len(samples) < 2:
        return False
    some = samples.spread(min(_SAMPLES, max(2, _MOST_VALUES // max(1, math.prod(samples.data.shape[1:])))))
    values = _moved(graph, source, some.tensor(slice(None)))
    values |= _joined(graph, values, samples.spread(_JOINED_SAMPLES).tensor(slice(None)))
    changed = False
    for node, tensor in values.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or node.op == "get_attr":
            continue
        for axis, readers in _readers(graph, node).items():
            channels = _channels(tensor, axis)
            for reader in readers:
                if _is_affine(graph, reader) and _norm_is_starved(graph, reader, channels):
                    reader.meta[LEVELS] = node.meta[LEVELS] = changed = True
            layers = [each for each in readers if not _is_affine(graph, each)]
            if layers and _level(graph, node, axis, layers, channels, tensor):
                node.meta[LEVELS] = changed = True
    source.meta.pop(LEVELS, None)
    return changed


def _moved(graph: fx.GraphModule, source: fx.Node, batch: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
    """Return the input, and what is only moved, scaled and shifted of it, for a batch."""
    values = {source: batch.contiguous()}
    for node in graph.graph.nodes:
        operands = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if len(operands) != 1 or operands[0] not in values:
            continue
        if not (node.op == "call_function" and node.target in _MOVES) and not _is_affine(graph, node):
            continue

        def value(each: fx.Node) -> Any:
            return getattr(graph, str(each.target)) if each.op == "get_attr" else values[each]

        function: Any = module_of(graph, node) or node.target
        with torch.inference_mode():
            values[node] = function(*fx.node.map_arg(node.args, value), **node.kwargs)
    return values


def _joined(
    graph: fx.GraphModule, values: dict[fx.Node, torch.Tensor], batch: torch.Tensor
) -> dict[fx.Node, torch.Tensor]:
    """Return concatenations of an input, as it is, with others, such as embeddings, for a batch."""
    wanted = {
        node
        for node in graph.graph.nodes
        if node.target is torch.cat and any(each in values and each.op != "get_attr" for each in node.all_input_nodes)
    }
    kept: dict[fx.Node, torch.Tensor] = {}
    if wanted:
        with torch.inference_mode():
            _Keeping(graph, wanted, kept).run(batch.contiguous())
    return kept


class _Keeping(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, wanted: set[fx.Node], kept: dict[fx.Node, torch.Tensor]) -> None:
        super().__init__(graph)
        self._wanted, self._kept = wanted, kept

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self._kept[n] = value
        return value


def _is_affine(graph: fx.GraphModule, node: fx.Node) -> bool:
    return _scale_and_shift(graph, node) is not None


def _scale_and_shift(graph: fx.GraphModule, node: fx.Node) -> tuple[Affine, int | None] | None:
    found = affine_of(graph, node) or batch_norm_of(graph, node)
    return None if found is None else (found[1], found[2])


def _readers(graph: fx.GraphModule, node: fx.Node) -> dict[int, list[fx.Node]]:
    """Return the layers, and the scales and shifts, that read a tensor, by the dimension that has their channels."""
    found: dict[int, list[fx.Node]] = {}
    rank = len(shape(node))
    for reader in node.users:
        affine = _scale_and_shift(graph, reader)
        if affine is not None:
            axis = affine[1]
            found.setdefault(1 if axis is None else axis % rank, []).append(reader)
        elif is_a(graph, reader, nn.Linear):
            found.setdefault(rank - 1, []).append(reader)
        elif is_a(graph, reader, *_CONVS):
            found.setdefault(1, []).append(reader)
        elif is_a(graph, reader, Recurrent) and reader.args[0] is node:
            found.setdefault(2, []).append(reader)
    return found


def _channels(values: torch.Tensor, axis: int) -> _Channels:
    rows = values.movedim(axis, 0).flatten(1).double()
    return _Channels(rows.amin(1), rows.amax(1), rows.var(1, correction=0))


def _norm_is_starved(graph: fx.GraphModule, node: fx.Node, channels: _Channels) -> bool:
    """Whether rounding a norm's input with one scale would be a large error of its result."""
    found = _scale_and_shift(graph, node)
    assert found is not None
    scale = found[0].scale.expand(len(channels.variance))
    signal, noise = float((scale**2 * channels.variance).sum()), float((scale**2).sum()) * channels.step**2 / 12
    return _decibels(signal, noise) < _LEAST_DB


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf


def _level(
    graph: fx.GraphModule, node: fx.Node, axis: int, layers: list[fx.Node], channels: _Channels, values: torch.Tensor
) -> bool:
    """Put a scale and a shift before the layers that read a tensor, where they lose much without. Whether it did."""
    shifted = all(_takes_shifts(module_of(graph, each)) for each in layers)
    gains = [_noise(graph, each, channels, values, shifted=shifted) for each in layers]
    if not any(one < _LEAST_DB and each - one > _LEAST_GAIN_DB for one, each in gains):
        return False
    half = channels.steps(shifted=shifted) * (_CODES / 2)
    middle = (channels.high + channels.low) / 2 if shifted else torch.zeros_like(half)
    # A channel that is constant so far may become another number: it keeps its distance from 0 as its range.
    half = torch.where(half > 0, half, middle.abs().clamp(min=1.0)).float().double()
    middle = middle.float().double()
    new = _insert(graph, node, axis, middle, half, layers[0])
    for layer in layers:
        module = own_copy(graph, layer)
        if isinstance(module, Recurrent):
            _apply_before_steps(module, half, middle)
        else:
            apply_before(module, Affine(half, middle))
        layer.replace_input_with(node, new)
    return True


def _takes_shifts(module: Any) -> bool:
    """Whether a layer's bias can take what is subtracted of its input: not where it pads with zeros."""
    return bool(module.layer.bias) if isinstance(module, Recurrent) else not any(getattr(module, "padding", ()))


def _of_inputs(module: Recurrent) -> list[tuple[torch.Tensor, str]]:
    """Return the weights of a recurrent layer that read its input, and the end of their names, of each direction."""
    ends = ["l0", "l0_reverse"] if module.layer.bidirectional else ["l0"]
    return [(getattr(module.layer, f"weight_ih_{end}").detach().double(), end) for end in ends]


def _apply_before_steps(module: Recurrent, half: torch.Tensor, middle: torch.Tensor) -> None:
    for weight, end in _of_inputs(module):
        setattr(module.layer, f"weight_ih_{end}", parameter(weight * half))
        if module.layer.bias:
            bias = getattr(module.layer, f"bias_ih_{end}").detach().double()
            setattr(module.layer, f"bias_ih_{end}", parameter(bias + weight @ middle))


def _noise(
    graph: fx.GraphModule, layer: fx.Node, channels: _Channels, values: torch.Tensor, *, shifted: bool
) -> tuple[float, float]:
    """Return the SQNR of a layer's result when its input has codes of one scale, and of a scale for each channel."""
    module: Any = module_of(graph, layer)
    if isinstance(module, Recurrent):
        weight = torch.cat([each for each, _ in _of_inputs(module)])
        result = values.double() @ weight.t()
    else:
        weight = module.weight.detach().double()
        with torch.inference_mode():
            result = module(values).double()
    outputs = 1 if isinstance(module, _CONVS) else result.ndim - 1
    signal = float(result.movedim(outputs, 0).flatten(1).var(1, correction=0).sum())
    energy = (weight**2).flatten(2).sum(2) if weight.ndim > 2 else weight**2
    groups = getattr(module, "groups", 1)
    of_channels = energy.reshape(groups, -1, energy.shape[1]).sum(1).flatten()  # of each input channel
    steps = torch.maximum(channels.steps(shifted=shifted), torch.tensor(1e-30, dtype=torch.float64))
    one = float(of_channels.sum()) * channels.step**2 / 12
    each = float((of_channels * steps**2).sum()) / 12
    return _decibels(signal, one), _decibels(signal, each)


def _insert(
    graph: fx.GraphModule, node: fx.Node, axis: int, middle: torch.Tensor, half: torch.Tensor, like: fx.Node
) -> fx.Node:
    """Add ``(x - middle) / half`` of each channel before ``like``, in FP32."""
    rank = len(shape(node))
    if axis == 1 and rank in {2, 4}:
        norm = _BATCH_NORMS[rank](len(half), eps=0.0)
        norm.running_mean, norm.running_var = middle.float(), torch.ones(len(half))
        norm.weight, norm.bias = parameter(1.0 / half), parameter(torch.zeros_like(half))
        return _levels([new_module(graph, norm, node, like, "level", shape(node))])
    wide = [1] * rank
    wide[axis] = len(half)
    added: list[fx.Node] = []
    last = node
    for function, constant in ((torch.add, -middle), (torch.mul, 1.0 / half)):
        if function is torch.add and not bool((constant != 0).any()):
            continue
        held = new_constant(graph, constant.float().reshape(wide[1:]), like, like)
        last = new_call(graph, function, (last, held), like, "level", shape(node))
        added.append(last)
    return _levels(added)


def _levels(nodes: Iterable[fx.Node]) -> fx.Node:
    last = None
    for last in nodes:
        last.meta[LEVELS] = True
    assert last is not None
    return last
