"""Recurrent layers and cells -> ``Recurrent``: one layer each, the batch first, states as plain tensors."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.graph.recurrent import Recurrent
from cpupack.stages.capture.lines import scope_of
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

_LAYERS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
_COPIES = ("aten.contiguous.default", "aten.clone.default")
_REPEATS = ("aten.expand.default", "aten.repeat.default")
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _layer(kind: str, parameters: Sequence[torch.Tensor], *, bias: bool, directions: int) -> nn.Module:
    """Return a layer with these parameters: of each direction the two matrices, two biases, the projection."""
    extra: dict[str, Any] = {"nonlinearity": kind.removeprefix("rnn_")} if kind.startswith("rnn") else {}
    first, hidden = parameters[:2]
    units = len(first) // _GATES[kind]
    if hidden.shape[1] != units:
        extra["proj_size"] = hidden.shape[1]
    layer: nn.Module = _LAYERS[kind](
        first.shape[1], units, bias=bias, batch_first=True, bidirectional=directions == 2, **extra
    )
    own: Any = layer
    with torch.no_grad():
        for each, value in zip([each for group in own.all_weights for each in group], parameters, strict=True):
            each.copy_(value)
    return layer


def _kind(r: Raiser) -> str:
    return r.node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr,no-any-return]  # an OpOverload


def _recurrent(r: Raiser, a: dict[str, Any]) -> list[Any]:
    """Return the results of a recurrent call: the sequence, the last hidden values, an LSTM's last cell values."""
    kind = _kind(r)
    if "input" not in a:  # what torch packs by itself
        raise NotRaised
    return _layers(r, a, kind)


def _of_lengths(r: Raiser, a: dict[str, Any]) -> list[Any]:
    """Return the results for packed sequences, which come as padded ones with their lengths (``model/packed.py``)."""
    if r.is_known(a["lengths"]):
        raise ModelError(
            f"the model cannot be captured: the lengths of its packed sequences in {scope_of(r.node)} do not depend on "
            "its inputs",
            hint="take the lengths as an input, or leave pack_padded_sequence out where all sequences have one length",
        )
    return _layers(r, {**a, "batch_first": True, "train": False, "dropout": 0.0}, a["kind"], lengths=a["lengths"])


def _layers(r: Raiser, a: dict[str, Any], kind: str, lengths: Any = None) -> list[Any]:
    """Return the results of the layers of a module, each of which is a call."""
    if not isinstance(a.get("params"), list | tuple) or (a["train"] and a["dropout"]):
        raise NotRaised
    parameters = [r.tensor(each) for each in a["params"]]
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    layers, directions = a["num_layers"], 2 if a["bidirectional"] else 1
    count = len(parameters) // layers
    assert not any(each is None for each in parameters)
    before = _states(r, states)
    x = r.activation(a["input"])
    if not a["batch_first"]:
        x = r.call(torch.permute, x, (1, 0, 2), word="batch_first")
    scope = list(r.node.meta.get("nn_module_stack", {}).values())
    found: list[fx.Node] = []
    for number in range(layers):
        own: list[Any] = parameters[number * count : (number + 1) * count]
        made: Any = _layer(kind, own, bias=a["has_biases"], directions=directions)
        layer = Recurrent(made, has_lengths=lengths is not None)
        rows = (slice(None), slice(number * directions, (number + 1) * directions))
        first = [r.call(operator.getitem, each, rows, word="state") if layers > 1 else each for each in before]
        path = scope[-1][0] if scope else ""
        owner = f"{path}.l{number}" if path and layers > 1 else path
        counts = [] if lengths is None else [r.activation(lengths)]
        node = r.module(layer, x, *counts, *first, word=kind if layers == 1 else f"{kind}_l{number}", owner=owner)
        found.append(node)
        x = r.call(operator.getitem, node, 0, word="output")
    return [
        lambda: x if a["batch_first"] else r.call(torch.permute, x, (1, 0, 2), word="steps_first"),
        *(lambda place=place: _last(r, found, place) for place in range(1, 3 if kind == "lstm" else 2)),
    ]


def _states(r: Raiser, states: Sequence[Any]) -> list[fx.Node]:
    """Return the first states with the batch in front; none where they are zeros, or not given."""
    if all(_is_zero(r, each) for each in states):
        return []
    return [
        _laid_out(r, each, 1) or r.call(torch.permute, r.activation(each), (1, 0, 2), word="state") for each in states
    ]


def _laid_out(r: Raiser, state: object, axis: int) -> fx.Node | None:
    """Return a constant that is repeated for each sample along ``axis``, as ``(n, rows, values)``. None for others."""
    while isinstance(state, fx.Node) and str(state.target) in _COPIES:
        state = state.args[0]
    if not isinstance(state, fx.Node) or str(state.target) not in _REPEATS or state.args[0] not in r.known:
        return None
    shape, source = r.shape(state), state.args[0]
    assert isinstance(source, fx.Node)
    whole = r.known[source].expand([1 if place == axis else size for place, size in enumerate(shape)])
    rows = whole.movedim(axis, 0).reshape(1, -1, shape[-1])
    return r.method("expand", r.attribute(rows, r._name_of(source)), r.batch(), *rows.shape[1:])


def _last(r: Raiser, layers: Sequence[fx.Node], place: int) -> fx.Node:
    """Return the last states of all layers as torch has them: layers and directions first."""
    each = [r.call(operator.getitem, node, place, word="state") for node in layers]
    joined = each[0] if len(each) == 1 else r.call(torch.cat, each, 1, word="states")
    return r.call(torch.permute, joined, (1, 0, 2), word="states")


def _cell(r: Raiser, a: dict[str, Any]) -> Any:
    """Return the results of one step: an LSTM's hidden and cell values, else the hidden values."""
    kind = _kind(r).removesuffix("_cell")
    states = list(a["hx"]) if isinstance(a["hx"], list | tuple) else [a["hx"]]
    parameters = [r.tensor(a[name]) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    given = [each for each in parameters if each is not None]
    if len(given) not in {2, 4}:
        raise NotRaised
    inputs, units = given[0].shape[1], given[1].shape[1]
    layer = Recurrent(_layer(kind, given, bias=len(given) == 4, directions=1))  # type: ignore[arg-type]
    first = []
    if not all(_is_zero(r, each) for each in states):
        first = [
            _laid_out(r, each, 0) or r.call(torch.reshape, r.activation(each), (-1, 1, units), word="state")
            for each in states
        ]
    x = r.call(torch.reshape, r.activation(a["input"]), (-1, 1, inputs), word="step")
    node = r.module(layer, x, *first, word=kind, owner=r.weight_name(a["w_ih"]))

    def part(place: int) -> fx.Node:
        return r.call(torch.flatten, r.call(operator.getitem, node, place, word="state"), 1, word="state")

    return [lambda: part(1), lambda: part(2)] if kind == "lstm" else part(1)


def _is_zero(r: Raiser, state: object) -> bool:
    if not isinstance(state, fx.Node):
        return False
    if state in r.known:
        return bool((r.known[state] == 0).all())
    if "expand" in str(state.target) or "repeat" in str(state.target):
        return _is_zero(r, state.args[0])
    return "zeros" in str(state.target)


HANDLERS: dict[str, Any] = {
    **dict.fromkeys(_LAYERS, _recurrent),
    "cpupack::recurrent_of_lengths": _of_lengths,
    **dict.fromkeys((f"{kind}_cell" for kind in _LAYERS), _cell),
}
