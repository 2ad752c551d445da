"""Has torch.export take recurrent layers as one call each, without going through their steps.

export asks for the shapes of what a layer gives, and torch finds them by computing each step on tensors without values:
40 s for a GRU of 256 steps, which the graph then has as one call all the same. Here only the shapes are made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

_ATEN = torch.ops.aten
_LAYERS: tuple[Any, ...] = (_ATEN.lstm.input, _ATEN.gru.input, _ATEN.rnn_tanh.input, _ATEN.rnn_relu.input)


@contextlib.contextmanager
def quick_recurrences() -> Iterator[None]:
    """While it holds, calls of ``torch.lstm`` and its like on tensors without values take no time.

    It replaces what torch/_decomp/decompositions.py registers for them.
    """
    kept = [dict(each.py_kernels) for each in _LAYERS]
    try:
        for layer in _LAYERS:
            for key, kernel in layer.py_kernels.items():
                layer.py_kernels[key] = partial(_shapes, kernel)
            layer._dispatch_cache.clear()
        yield
    finally:
        for layer, kernels in zip(_LAYERS, kept, strict=True):
            layer.py_kernels.update(kernels)
            layer._dispatch_cache.clear()


def _shapes(
    kernel: Callable[..., Any],
    values: torch.Tensor,
    state: torch.Tensor | Sequence[torch.Tensor],
    params: Any,
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """Return tensors of the shapes of results: of all steps, and of the last states, as torch.nn documents them."""
    states = [state] if isinstance(state, torch.Tensor) else list(state)
    if train or not all(isinstance(each, FakeTensor) for each in (values, *states)):
        return kernel(values, state, params, biases, layers, dropout, train, bidirectional, batch_first)
    steps = values.new_empty((*values.shape[:-1], states[0].shape[-1] * (2 if bidirectional else 1)))
    return (steps, *(each.new_empty(each.shape) for each in states))
