"""Layers that keep no state of their own in ``forward``: their states as inputs and outputs of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.pasts import Past, Pasts, pasts_of
from cpupack.runtime.tensor_spec import TensorSpec

_LAYERS = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
_BY_HAND = 'or let forward take and return its state, and name it in [[input]] state = "..."'
_ONE_AT_A_TIME = threading.RLock()  # hooks belong to the module, not to a thread


@dataclass(frozen=True)
class Carried:
    """A recurrent layer or cell whose states are inputs and outputs: its path in the model, and its states' names."""

    path: str
    names: tuple[str, ...]
    is_cell: bool = False

    @property
    def axis(self) -> int:
        """Where torch has the batch of a state: ``(layers, n, values)``, and ``(n, values)`` of a cell."""
        return 0 if self.is_cell else 1


def carried_states(
    module: nn.Module,
    source: str,
    run: Callable[[Sequence[torch.Tensor]], Any],
    tensors: Sequence[torch.Tensor],
    batch_dims: Sequence[int],
) -> tuple[tuple[Carried | Past, ...], tuple[TensorSpec, ...], tuple[int, ...]]:
    """Return what has a state in a model, the states as inputs that begin with zeros, and where each has the batch.

    These are recurrent layers and cells, and what comes before causal convolutions. ``run`` calls the model with its
    inputs, of which ``tensors`` are some, with the batch in ``batch_dims``. Raises ModelError for a model that has
    none, or one that cannot be fed chunk by chunk.
    """
    layers: list[Carried | Past] = []
    specs: list[TensorSpec] = []
    axes: list[int] = []
    for path, each in module.named_modules():
        if not isinstance(each, _LAYERS + _CELLS):
            continue
        if getattr(each, "bidirectional", False):
            raise ModelError(
                f"[model] stream: {path or source} is bidirectional: its answer to a step depends on all later steps, "
                "so it cannot be fed chunk by chunk",
                hint="stream a model of one direction, or leave stream out and package it for whole sequences",
            )
        layer, shapes = _carried(path, each)
        layers.append(layer)
        specs += [TensorSpec(own, shape, default=0.0, state=f"{own}_out") for own, shape in shapes.items()]
        axes += [layer.axis] * len(shapes)
    pasts = pasts_of(run, tensors, batch_dims, source)
    if not layers and not pasts:
        raise ModelError(
            f"[model] stream: {source} has no LSTM, GRU or RNN layer and no convolution with padding before the first "
            "step alone, so it has no state to carry",
            hint=f"leave stream out, {_BY_HAND}",
        )
    return (*layers, *pasts), (*specs, *(each.spec for each in pasts)), (*axes, *(0 for _ in pasts))


def _carried(path: str, layer: Any) -> tuple[Carried, dict[str, tuple[int, ...]]]:
    """Return a layer or a cell, and the shape of each of its states."""
    name = path.replace(".", "_") or "state"
    if isinstance(layer, _CELLS):
        shapes: dict[str, tuple[int, ...]] = {f"{name}_h": (layer.hidden_size,)}
        if isinstance(layer, nn.LSTMCell):
            shapes[f"{name}_c"] = (layer.hidden_size,)
        return Carried(path, tuple(shapes), is_cell=True), shapes
    shapes = {f"{name}_h": (layer.num_layers, layer.proj_size or layer.hidden_size)}
    if isinstance(layer, nn.LSTM):
        shapes[f"{name}_c"] = (layer.num_layers, layer.hidden_size)
    return Carried(path, tuple(shapes)), shapes


@contextmanager
def carrying(
    module: nn.Module, carried: Sequence[Carried | Past], states: Mapping[str, torch.Tensor]
) -> Iterator[dict[str, torch.Tensor]]:
    """Have each layer begin with its states as torch has them, and each past be its state; the dict gets the next ones.

    Raises ModelError where a layer is called more than once, or begins with states of its own, and where a cell takes
    another state than it gave.
    """
    found: dict[str, torch.Tensor] = {}
    layers = [each for each in carried if isinstance(each, Carried)]
    pasts = [each for each in carried if isinstance(each, Past)]
    with _ONE_AT_A_TIME:
        handles = []
        try:
            for layer in layers:
                target = module.get_submodule(layer.path)
                begin, end = _hooks(layer, states, found)
                handles.append(target.register_forward_pre_hook(begin, with_kwargs=True))
                handles.append(target.register_forward_hook(end))
            with Pasts(pasts, states) if pasts else nullcontext() as before:
                yield found
            if before is not None:
                found.update(before.found)
        finally:
            for each in handles:
                each.remove()
    missing = next((each for each in carried if each.names[0] not in found), None)
    if isinstance(missing, Past):
        raise ModelError(
            f"[model] stream: forward does not pad as in its first run, so {missing.names[0]} has no next value",
            hint="forward must pad in the same way for every input",
        )
    if missing is not None:
        raise ModelError(
            f"[model] stream: forward does not call {missing.path}, so its state has no next value",
            hint="leave the layer out of the model",
        )


def _hooks(layer: Carried, states: Mapping[str, torch.Tensor], found: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        own = args[1] if len(args) > 1 else kwargs.get("hx")
        if layer.is_cell and layer.names[0] in found:
            _refuse_other_state(layer, own, found)
            return (x, own), {}
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
        last = result if layer.is_cell else result[1]
        found.update(zip(layer.names, last if isinstance(last, tuple) else (last,), strict=True))

    return begin, end


def _refuse_other_state(layer: Carried, own: Any, found: Mapping[str, torch.Tensor]) -> None:
    """Refuse a cell that is given another state than its last one: only ``forward`` knows what became of that."""
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return
    given = own if isinstance(own, tuple | list) else (own,)
    same = (each is not None and torch.equal(each, found[name]) for each, name in zip(given, layer.names, strict=True))
    if not all(same):
        raise ModelError(
            f"[model] stream: forward gives the cell {layer.path} another state than its last one",
            hint=f"pass on what the cell returns, {_BY_HAND}",
        )


def _refuse_own_start(layer: Carried, own: Any) -> None:
    """Refuse a layer that begins with other states than zeros: only the first chunk would begin with them."""
    if own is None or torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        return
    if any(bool((each != 0).any()) for each in (own if isinstance(own, tuple | list) else (own,))):
        raise ModelError(
            f"[model] stream: forward has {layer.path} begin with states that are not zeros",
            hint=f"let it begin with zeros, {_BY_HAND}",
        )
