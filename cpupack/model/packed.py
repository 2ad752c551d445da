"""Packed sequences in a user's ``forward``: kept as padded tensors with their lengths, which a graph can hold.

torch sorts and cuts packed sequences by the lengths of a whole batch, so what it makes of them has other sizes for
each batch. While ``padded_sequences`` is entered, ``pack_padded_sequence`` only keeps the lengths, recurrent layers run
each sequence as far as it goes, and ``pad_packed_sequence`` gives back all steps, whatever is the greatest length of a
batch.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from cpupack.graph.recurrent import run_lengths

_LAYERS: tuple[Any, ...] = (nn.LSTM, nn.GRU, nn.RNN)


@dataclass
class Use:
    """Whether a ``forward`` packed a sequence."""

    packs: bool = False


class EmptySequenceError(ValueError):
    """A sequence without a step is packed. torch refuses it; so does ``refusing_empty``, for a model that is tried."""


_HERE = threading.local()  # ``use``, ``refuses``: of the thread that has entered
_LOCK = threading.Lock()
_ENTERED: list[Callable[[], None]] = []
"""What ends each time that somebody has entered: the last one to leave puts torch's own functions back."""


@contextmanager
def padded_sequences() -> Iterator[Use]:
    """Keep packed sequences as padded ones in this thread; other threads have torch's own."""
    before, use = getattr(_HERE, "use", None), Use()
    with _LOCK:
        _ENTERED.append(_replaced() if not _ENTERED else lambda: None)
    _HERE.use = use
    try:
        yield use
    finally:
        _HERE.use = before
        with _LOCK:
            _ENTERED.pop()()


@contextmanager
def refusing_empty() -> Iterator[None]:
    """Raise EmptySequenceError in this thread for a sequence of length 0, which padded ones otherwise may have."""
    _HERE.refuses = True
    try:
        yield
    finally:
        _HERE.refuses = False


def _replaced() -> Callable[[], None]:
    """Have torch's functions and layers ask ``_HERE``; return what puts them back.

    Users import the functions by name, so the functions themselves are changed.
    """
    functions: tuple[Any, ...] = (rnn.pack_padded_sequence, rnn.pad_packed_sequence)
    codes = [each.__code__ for each in functions]
    forwards = [kind.forward for kind in _LAYERS]
    own = [
        types.FunctionType(code, vars(rnn), None, each.__defaults__)
        for code, each in zip(codes, functions, strict=True)
    ]
    _ORIGINAL.update(zip(("pack", "pad"), own, strict=True))
    functions[0].__code__, functions[1].__code__ = _pack.__code__, _pad.__code__
    for kind, forward in zip(_LAYERS, forwards, strict=True):
        kind.forward = _forward_of(forward)

    def undo() -> None:
        for each, code in zip(functions, codes, strict=True):
            each.__code__ = code
        for kind, forward in zip(_LAYERS, forwards, strict=True):
            kind.forward = forward

    return undo


_ORIGINAL: dict[str, Any] = {}


# The code of these two runs in place of torch's, with the globals of its module: so they have its names and no types.


def _pack(input, lengths, batch_first=False, enforce_sorted=True):  # type: ignore[no-untyped-def]  # noqa: A002 - as torch's
    from cpupack.model.packed import pack

    return pack(input, lengths, batch_first, enforce_sorted)


def _pad(sequence, batch_first=False, padding_value=0.0, total_length=None):  # type: ignore[no-untyped-def]
    from cpupack.model.packed import pad

    return pad(sequence, batch_first, padding_value, total_length)


def pack(x: torch.Tensor, lengths: Any, batch_first: bool, enforce_sorted: bool) -> PackedSequence:
    """Return what ``pack_padded_sequence`` does; where it is kept padded, all steps with the batch first."""
    use = getattr(_HERE, "use", None)
    if use is None:
        packed: PackedSequence = _ORIGINAL["pack"](x, lengths, batch_first, enforce_sorted)
        return packed
    use.packs = True
    counts = torch.as_tensor(lengths).to(torch.int64)
    if getattr(_HERE, "refuses", False) and bool((counts < 1).any()):
        raise EmptySequenceError
    return tuple.__new__(PackedSequence, (x if batch_first else x.transpose(0, 1), counts, None, None))


def pad(sequence: PackedSequence, batch_first: bool, padding_value: float, total_length: int | None) -> Any:
    """Return what ``pad_packed_sequence`` does; where it is kept padded, all steps that went in."""
    if not is_padded(sequence):
        return _ORIGINAL["pad"](sequence, batch_first, padding_value, total_length)
    x, counts = sequence.data, sequence.batch_sizes
    inside = torch.arange(x.shape[1]) < counts[:, None]
    x = torch.where(inside.reshape(*inside.shape, *[1] * (x.dim() - 2)), x, padding_value)
    if total_length is not None and total_length < x.shape[1]:
        x = x[:, :total_length]
    elif total_length is not None and total_length > x.shape[1]:
        more = x.new_full((x.shape[0], total_length - x.shape[1], *x.shape[2:]), padding_value)
        x = torch.cat([x, more], 1)
    return x if batch_first else x.transpose(0, 1), counts


def is_padded(value: object) -> bool:
    """Whether a packed sequence is kept padded: torch's own has one dimension less."""
    return isinstance(value, PackedSequence) and value.data.dim() > 2


def _forward_of(forward: Any) -> Any:
    def run(self: Any, input: Any, hx: Any = None) -> Any:  # noqa: A002 - torch's name
        if not is_padded(input):
            return forward(self, input, hx)
        y, last = _run(self, input.data, input.batch_sizes, hx)
        return tuple.__new__(PackedSequence, (y, input.batch_sizes, None, None)), last

    return run


def _run(layer: Any, x: torch.Tensor, lengths: torch.Tensor, hx: Any) -> tuple[torch.Tensor, Any]:
    if not torch.compiler.is_exporting():
        with _with_torchs_own():
            return run_lengths(layer, x, lengths, hx)
    states = [] if hx is None else list(hx) if isinstance(hx, tuple | list) else [hx]
    kind = layer.mode.lower()
    y, hidden, cells = recurrent_of_lengths(
        x, lengths, states, layer._flat_weights, kind, layer.bias, layer.num_layers, layer.bidirectional,
    )  # fmt: skip
    return y, (hidden, cells) if kind == "lstm" else hidden


@contextmanager
def _with_torchs_own() -> Iterator[None]:
    before, _HERE.use = _HERE.use, None
    try:
        yield
    finally:
        _HERE.use = before


@torch.library.custom_op("cpupack::recurrent_of_lengths", mutates_args=())
def recurrent_of_lengths(
    input: torch.Tensor,  # noqa: A002 - as torch's own operators have it
    lengths: torch.Tensor,
    hx: list[torch.Tensor],
    params: list[torch.Tensor],
    kind: str,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A recurrent module over padded sequences, in an exported graph alone; capture makes layers of it."""
    raise NotImplementedError("it stands for recurrent layers in an exported graph, and is never run")


@recurrent_of_lengths.register_fake
def _(
    input: torch.Tensor,  # noqa: A002 - as torch names it
    lengths: torch.Tensor,
    hx: list[torch.Tensor],
    params: list[torch.Tensor],
    kind: str,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, steps, _ = input.shape
    directions, outputs = 2 if bidirectional else 1, params[1].shape[1]
    rows = num_layers * directions
    units = params[1].shape[0] // 4 if kind == "lstm" else 0
    return (
        input.new_empty(n, steps, directions * outputs),
        input.new_empty(rows, n, outputs),
        input.new_empty(rows, n, units),
    )
