"""Lowers recurrent layers: values come and go in FP32, products are of 8 bits, or of 16 where those lose much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from cpupack.artifacts import RecurrentSqnr
from cpupack.graph.recurrent import Recurrent, RecurrentOfSeveral
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import Calls
from cpupack.stages.quantize.native.recurrence import GATES, Direction, Kind, Words, can_have_words, fits
from cpupack.stages.quantize.native.tell import tell_recurrent
from cpupack.stages.quantize.native.walks import Fixed, View

LEAST_SQNR_DB = {"LSTM": 28.0, "GRU": 55.0, "RNN": 55.0}
"""What must be left of a layer's outputs, else its inputs have 16 bits, and where that is not enough all it multiplies.

Errors go from step to step and from layer to layer: Resemblyzer's first layer keeps 9 dB with 8 bits (its steps are
spectra), and its embeddings a cosine of 0.83. It keeps 28 with inputs of 16 bits, and its embeddings 0.999.

A GRU keeps some 40 dB with 8 bits. Other engines have it in FP32, and inputs of 16 bits cost little time."""


def is_recurrent(calls: Calls, node: fx.Node) -> bool:
    """Whether a call is of a recurrent layer."""
    return isinstance(calls.module(node), Recurrent)


def recur(b: Builder, node: fx.Node) -> None:
    """Lower a recurrent layer. Raises Refusal where one step does not fit into the engine's memory."""
    module: Any = b.calls.module(node)
    layer = module.layer
    kind = _kind_of(layer)
    directions = [_direction(group, layer, GATES[kind]) for group in layer.all_weights]
    words = _words_of(b.recurrent_sqnr_db.get(node.name), LEAST_SQNR_DB[module.kind], directions)
    if not fits(kind, directions[0], words):
        raise b.calls.refusal(node, "of so many units")
    x, *others = (b.floats.view(as_floats(b, each, node)) for each in node.args)  # type: ignore[arg-type]  # nodes
    lengths, states = (others[0], others[1:]) if module.has_lengths else (None, others)
    several = isinstance(module, RecurrentOfSeveral)
    results = []
    for number in range(x.shape[0] if several else 1):
        own = [_sequence(each, number) if several else each for each in (x, *states)]
        sequence, first = own[0], _joined(b, own[1:])
        if several or (sequence.shape[0] == 1 and sequence.first):
            # At the start of a buffer. Then all sequences, or all steps of a loop over a cell, have the same
            # constants, and the program has these once.
            sequence = b.floats.map(b.floats.new(sequence.shape), sequence)
        if lengths is not None:
            length = _sequence(lengths, number) if several else lengths
            first = _with_length(b, first, length, _state_size(kind, directions))
        *found, sqnr_db = b.floats.recur(sequence, kind, directions, first, words=words, lengths=lengths is not None)
        results.append([each for each in found if each is not None])
    b.float_tuples[node] = tuple(_stacked(b, each) if several else each[0] for each in zip(*results, strict=True))
    tell_recurrent(b, node, module.kind, sqnr_db, words)


def _words_of(left: RecurrentSqnr | None, least_db: float, directions: list[Direction]) -> Words:
    """Return what must have 16 bits so that ``least_db`` are left of a layer, as far as its rows allow it."""
    if left is None or left.codes_db >= least_db:
        return Words.NONE
    wanted = (Words.INPUTS,) if left.wide_inputs_db >= least_db else (Words.ALL, Words.INPUTS)
    possible = (words for words in wanted if all(can_have_words(each, words) for each in directions))
    return next(possible, Words.NONE)


def _sequence(view: View, number: int) -> View:
    """Return what one of several sequences has."""
    return View(view.buffer, view.shape[1:], view.steps[1:], view.first + number * view.steps[0])


def _stacked(b: Builder, views: Sequence[View]) -> View:
    """Return the results of all sequences as one tensor."""
    whole = b.floats.new((len(views), *views[0].shape))
    for number, view in enumerate(views):
        b.floats.map(_sequence(whole, number), view)
    return whole


def part_of(b: Builder, node: fx.Node) -> None:
    """Note which of a recurrent layer's results a call selects."""
    source, number = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(number, int)
    b.floats.values[node] = b.float_tuples[source][number]


def _joined(b: Builder, views: list[View]) -> View | None:
    """Return the first states as one vector: hidden values of each direction, then cell values."""
    if not views:
        return None
    if len(views) == 1:
        return views[0]
    whole = b.floats.new((sum(each.size for each in views),))
    first = 0
    for view in views:
        rows, columns = view.shape
        b.floats.map(View(whole.buffer, view.shape, (columns, 1), first), view)
        first += rows * columns
    return whole


def _with_length(b: Builder, states: View | None, length: View, size: int) -> View:
    """Return a vector of the first states, zeros without, and the length of the sequence."""
    whole = b.floats.new((size + 1,))
    if states is None:
        b.floats.map(View(whole.buffer, (size,), (1,), 0), Fixed(torch.zeros(size)))
    else:
        own = b.floats.side_by_side(states)
        b.floats.map(View(whole.buffer, (size,), (1,), 0), View(own.buffer, (size,), (1,), own.first))
    b.floats.map(View(whole.buffer, (1,), (1,), size), View(length.buffer, (1,), (1,), length.first))
    return whole


def _state_size(kind: Kind, directions: list[Direction]) -> int:
    units = len(directions[0].inputs) // GATES[kind]
    return len(directions) * (directions[0].outputs + (units if kind is Kind.LSTM else 0))


def _kind_of(layer: Any) -> Kind:
    names = {"LSTM": Kind.LSTM, "GRU": Kind.GRU, "RNN_TANH": Kind.TANH, "RNN_RELU": Kind.RELU}
    return names[layer.mode]


def _direction(group: list[torch.Tensor], layer: Any, gates: int) -> Direction:
    """Return the weights of a direction; biases that a layer does not have are zeros."""
    values = [each.detach() for each in group]
    rows = gates * layer.hidden_size
    one, two = values[2:4] if layer.bias else (torch.zeros(rows), torch.zeros(rows))
    return Direction(values[0], values[1], one, two, values[-1] if layer.proj_size else None)
