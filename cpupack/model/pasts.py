"""Zeros before a causal convolution's first step: in a stream they are the last steps of the chunk before.

A causal convolution has a padding of zeros on one side of the steps: by ``F.pad(x, (4, 0))``, by a module that does so,
by ``torch.cat([torch.zeros(...), x], -1)``, or by ``padding=4`` with the last 4 results cut off. While a ``Pasts`` is
entered, each such padding is replaced by what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cpupack.errors import ModelError
from cpupack.runtime.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Padding:
    """A call that has zeros before the first of ``steps``, ``count`` of them, in the dimension ``dim`` from the end."""

    dim: int
    count: int
    shape: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of what is padded."""
        return self.shape[self.dim]


@dataclass(frozen=True)
class Past:
    """The padding of call ``number`` is a state: the name of its input, and its shape for a sample."""

    number: int
    names: tuple[str]
    shape: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        """The state as an input, which begins with zeros."""
        (name,) = self.names
        return TensorSpec(name, self.shape, default=0.0, state=f"{name}_out")


Call = tuple[Padding, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]
"""A padding, what is padded, and the call for what already has what came before."""

_ZEROS = frozenset({torch.zeros, torch.zeros_like, torch.Tensor.new_zeros})
_KEEPS_ZEROS = frozenset(
    {
        torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.float, torch.Tensor.expand, torch.Tensor.repeat,
        torch.Tensor.unsqueeze, torch.Tensor.detach, torch.Tensor.contiguous,
    }
)  # fmt: skip
_JOINS = frozenset({torch.cat, torch.concat, torch.concatenate})
_READS = frozenset({torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__})


class Pasts(TorchFunctionMode):
    """Sees the causal paddings of a run in ``seen``, and replaces those of ``pasts`` by the ``states`` of their names.

    ``found`` has the next value of each state.
    """

    def __init__(self, pasts: Sequence[Past] = (), states: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        self._pasts = {each.number: each.names[0] for each in pasts}
        self._states = states or {}
        self.seen: list[Padding] = []
        self.found: dict[str, torch.Tensor] = {}
        self._zeros: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ZEROS or (func in _KEEPS_ZEROS and self._is_zeros(args[0])):
            self._zeros.append(func(*args, **kwargs))
            return self._zeros[-1]
        if func not in (_JOINS | _READS) and func.__name__ != "__get__" and any(self._is_zeros(each) for each in args):
            self._zeros.clear()  # something may be written into them, or into a view of them
        if func in _JOINS:
            call = self._joined(*args, **kwargs)
        else:
            call = _PARSED[func](*args, **kwargs) if func in _PARSED else None
        if call is None:
            return func(*args, **kwargs)
        padding, x, run = call
        name = self._pasts.get(len(self.seen))
        self.seen.append(padding)
        if name is None:
            return func(*args, **kwargs)
        if tuple(self._states[name].shape[1:]) != _without_batch(padding):
            raise ModelError(
                f"[model] stream: the causal padding {name} has another shape than in the first run of forward",
                hint="forward must pad in the same way for every input",
            )
        longer = torch.cat([self._states[name], x], padding.dim)
        self.found[name] = longer.narrow(padding.dim, longer.shape[padding.dim] - padding.count, padding.count)
        return run(longer)

    def _is_zeros(self, x: object) -> bool:
        return any(x is each for each in self._zeros)

    def _joined(self, tensors: Any = (), dim: Any = 0, *_: object, **named: Any) -> Call | None:
        """Return what ``torch.cat([zeros, x], dim)`` is: the zeros were made as such, whatever the values of others."""
        dim = named.get("axis", dim)
        if len(tensors) != 2 or not isinstance(dim, int) or not self._is_zeros(tensors[0]) or "out" in named:
            return None
        first, x = tensors
        axis = dim % x.ndim - x.ndim
        if axis == -x.ndim or first.ndim != x.ndim or self._is_zeros(x):
            return None
        return Padding(axis, int(first.shape[axis]), tuple(x.shape)), x, lambda longer: longer


def pasts_of(
    run: Callable[[Sequence[torch.Tensor]], Any],
    tensors: Sequence[torch.Tensor],
    batch_dims: Sequence[int],
    source: str,
) -> list[Past]:
    """Return the causal paddings of a model over steps: what is padded grows with the input.

    ``run`` calls the model with its inputs, of which ``tensors`` are some with the batch in ``batch_dims``. Raises
    ModelError for a model that has such a padding and takes no longer input, so that nobody knows what its steps are.
    """
    with Pasts() as once:
        run(tensors)
    if not once.seen:
        return []
    batch, runs_longer = tensors[0].shape[batch_dims[0]], False
    for number in range(max(each.ndim for each in tensors) - 1):
        try:
            with Pasts() as twice:
                run([longer([each, each], number, axis) for each, axis in zip(tensors, batch_dims, strict=True)])
        except Exception:  # noqa: BLE001, S112 - user code on a shape that it may not take
            continue
        runs_longer = True
        if len(twice.seen) != len(once.seen):
            continue
        grown = [
            (number, one)
            for number, (one, two) in enumerate(zip(once.seen, twice.seen, strict=True))
            if two.steps > one.steps and one.shape[0] == batch
        ]
        if grown:
            return [Past(number, (f"past_{place}",), _without_batch(one)) for place, (number, one) in enumerate(grown)]
    if any(one.shape[0] == batch for one in once.seen) and not runs_longer:
        raise ModelError(
            f"[model] stream: {source} pads on one side, and runs on chunks of one length alone, so nobody knows "
            "whether it pads steps",
            hint="let forward take chunks of any length, or let it take and return what it has seen, and name it in "
            '[[input]] state = "..."',
        )
    return []


def longer(chunks: Sequence[torch.Tensor], number: int, batch_dim: int) -> torch.Tensor:
    """Return tensors one after the other in their dimension ``number`` but for the batch; without one, the first."""
    axis = number + (number >= batch_dim)
    return torch.cat(list(chunks), axis) if axis < chunks[0].ndim else chunks[0]


def _without_batch(padding: Padding) -> tuple[int, ...]:
    shape = list(padding.shape)
    shape[padding.dim] = padding.count
    return tuple(shape[1:])


def _pad(input: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Call | None:  # noqa: A002 - torch's name
    sides = [(-1 - place, int(pad[2 * place]), int(pad[2 * place + 1])) for place in range(len(pad) // 2)]
    before = [(dim, left) for dim, left, right in sides if left > 0 and right == 0]
    if mode != "constant" or value or len(before) != 1:
        return None
    ((dim, count),) = before
    rest = list(pad)
    rest[2 * (-1 - dim)] = 0

    def run(longer: torch.Tensor) -> torch.Tensor:
        return functional.pad(longer, rest) if any(rest) else longer

    return Padding(dim, count, tuple(input.shape)), input, run


def _conv1d(
    input: Any,  # noqa: A002 - torch's name
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    if isinstance(padding, str):
        return None
    step, count, apart = (int(each[0]) if isinstance(each, tuple | list) else int(each)
                          for each in (stride, padding, dilation))  # fmt: skip
    if step != 1 or count == 0 or count != apart * (weight.shape[-1] - 1):
        return None  # not one whose last results are cut off

    def run(longer: torch.Tensor) -> torch.Tensor:
        return functional.pad(functional.conv1d(longer, weight, bias, 1, 0, apart, groups), (0, count))

    return Padding(-1, count, tuple(input.shape)), input, run


_PARSED: dict[Any, Callable[..., Call | None]] = {functional.pad: _pad, torch.conv1d: _conv1d}
