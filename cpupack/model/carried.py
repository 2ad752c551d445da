"""Recurrent layers that keep no state of their own in ``forward``: their states as inputs and outputs of the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.runtime.tensor_spec import TensorSpec

_LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_AXIS = 1
"""Where torch has the batch of a state: ``(layers, n, values)``."""
_BY_HAND = 'or let forward take and return its state, and name it in [[input]] state = "..."'
_ONE_AT_A_TIME = threading.RLock()  # hooks belong to the module, not to a thread


@dataclass(frozen=True)
class Carried:
    """A recurrent layer whose states are inputs and outputs: its path in the model, and its states' names."""

    path: str
    names: tuple[str, ...]


def carried_layers(module: nn.Module, source: str) -> tuple[tuple[Carried, ...], tuple[TensorSpec, ...]]:
    """Return the recurrent layers of a model and their states as inputs ``(layers, values)``, which begin with zeros.

    Raises ModelError for a model that has none, or one that cannot be fed chunk by chunk.
    """
    layers: list[Carried] = []
    specs: list[TensorSpec] = []
    for path, each in module.named_modules():
        if isinstance(each, _CELLS):
            raise ModelError(
                f"[model] stream: {source} has a {type(each).__name__} ({path}), whose state only forward knows",
                hint=f"use nn.{type(each).__name__.removesuffix('Cell')}, {_BY_HAND}",
            )
        if not isinstance(each, _LAYERS):
            continue
        if each.bidirectional:
            raise ModelError(
                f"[model] stream: {path or source} is bidirectional: its answer to a step depends on all later steps, "
                "so it cannot be fed chunk by chunk",
                hint="stream a model of one direction, or leave stream out and package it for whole sequences",
            )
        name = path.replace(".", "_") or "state"
        shapes = {f"{name}_h": (each.num_layers, each.proj_size or each.hidden_size)}
        if isinstance(each, nn.LSTM):
            shapes[f"{name}_c"] = (each.num_layers, each.hidden_size)
        layers.append(Carried(path, tuple(shapes)))
        specs += [TensorSpec(own, shape, default=0.0, state=f"{own}_out") for own, shape in shapes.items()]
    if not layers:
        raise ModelError(
            f"[model] stream: {source} has no LSTM, GRU or RNN layer, so it has no state to carry",
            hint=f"leave stream out, {_BY_HAND}",
        )
    return tuple(layers), tuple(specs)


@contextmanager
def carrying(
    module: nn.Module, layers: Sequence[Carried], states: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Have each of ``layers`` begin with its states ``(layers, n, values)``; the dict gets their next values.

    Raises ModelError where a layer is called more than once, or begins with states of its own.
    """
    found: dict[str, torch.Tensor] = {}
    with _ONE_AT_A_TIME:
        handles = []
        try:
            for layer in layers:
                target = module.get_submodule(layer.path)
                begin, end = _hooks(layer, states, found)
                handles.append(target.register_forward_pre_hook(begin, with_kwargs=True))
                handles.append(target.register_forward_hook(end))
            yield found
        finally:
            for each in handles:
                each.remove()
    missing = next((layer for layer in layers if layer.names[0] not in found), None)
    if missing is not None:
        raise ModelError(
            f"[model] stream: forward does not call {missing.path}, so its state has no next value",
            hint="leave the layer out of the model",
        )


def _hooks(layer: Carried, states: Mapping[str, torch.Tensor], found: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        own = args[1] if len(args) > 1 else kwargs.get("hx")
        if layer.names[0] in found:
            raise ModelError(
                f"[model] stream: forward calls {layer.path} more than once, so it has more than one state",
                hint=f"use a layer of its own for each call, {_BY_HAND}",
            )
        if isinstance(x, nn.utils.rnn.PackedSequence):
            raise ModelError(
                f"[model] stream: {layer.path} takes packed sequences; the chunks of a stream have no lengths",
                hint="call it with a tensor",
            )
        _refuse_own_start(layer, own)
        first = tuple(states[name] for name in layer.names)
        return (x, first if len(first) > 1 else first[0]), {}

    def end(_: nn.Module, __: Any, result: Any) -> None:
        last = result[1]
        found.update(zip(layer.names, last if isinstance(last, tuple) else (last,), strict=True))

    return begin, end


def _refuse_own_start(layer: Carried, own: Any) -> None:
    """Refuse a layer that begins with other states than zeros: only the first chunk would begin with them."""
    if own is None or torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return
    if any(bool((each != 0).any()) for each in (own if isinstance(own, tuple | list) else (own,))):
        raise ModelError(
            f"[model] stream: forward has {layer.path} begin with states that are not zeros",
            hint=f"let it begin with zeros, {_BY_HAND}",
        )
