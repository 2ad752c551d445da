"""What torch and Python do in a way that torch.export cannot follow, done in another way while it runs.

Each gives the same values. All are undone when the export ends.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses import fake_tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from cpupack.stages.capture.all_experts import computed_experts
from cpupack.stages.capture.flexible_attention import written_out_flexible_attention
from cpupack.stages.capture.quick_recurrences import quick_recurrences

_MOST_KNOWN = 4096
"""The values of a tensor that is read as numbers: strides, scales, sizes, a switch."""


@contextmanager
def exportable(computed: Collection[torch.Tensor]) -> Iterator[None]:
    """Have all of these ways. ``computed`` are the tensors whose values differ from call to call: inputs, states."""
    with ExitStack() as stack:
        stack.enter_context(_with_known_numbers(computed))
        for each in (
            _without_idle_autocast,
            _without_looking_at_masks,
            _with_dynamic_len,
            _without_subclasses,
            _with_written_out_takes,
            _with_written_out_rounding,
            _with_broadcast_masks,
            _with_caught_errors,
            _with_modules_that_stay,
            _without_checked_distributions,
            _without_gradients,
            _without_grad_modes,
            quick_recurrences,
            written_out_flexible_attention,
            computed_experts,
        ):
            stack.enter_context(each())
        yield


@contextmanager
def _with_known_numbers(computed: Collection[torch.Tensor]) -> Iterator[None]:
    """Have the model's own small tensors be known, so that code may take numbers out of them.

    ``for stride in self.strides: torch.full(size, stride)`` is YOLOv8's, ``if self.gate > 0`` and ``float(self.scale)``
    are others'. torch knows the values of such tensors of one element where the code itself makes them
    (torch/_subclasses/fake_tensor.py, "constant"), and computes with them as long as all operands are known.
    """
    kind: Any = fake_tensor.FakeTensorConverter
    plain = kind.from_real_tensor

    def made(self: Any, mode: Any, t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found = plain(self, mode, t, *args, **kwargs)
        small = t.layout is torch.strided and t.numel() <= _MOST_KNOWN and t.device.type == "cpu"
        if small and found.constant is None and not any(t is each for each in computed):
            found.constant = t.detach().clone()  # what works in place must not reach the model
            self.add_constant_storage_mapping(found)
        return found

    with _replaced(kind, "from_real_tensor", made), _replaced(fake_tensor, "CONSTANT_NUMEL_LIMIT", _MOST_KNOWN):
        yield


@contextmanager
def _without_idle_autocast() -> Iterator[None]:
    """Have ``torch.autocast(enabled=False)`` do nothing, as it does in a model that runs in FP32.

    torch.export would keep what is inside apart, in a graph of its own.
    """
    kind: Any = torch.autocast
    enter, leave = kind.__enter__, kind.__exit__

    def entered(self: Any) -> Any:
        return enter(self) if self._enabled else self

    def left(self: Any, *error: Any) -> Any:
        return leave(self, *error) if self._enabled else None

    kind.__enter__, kind.__exit__ = entered, left
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave


@contextmanager
def _without_looking_at_masks() -> Iterator[None]:
    """Have ``nn.Transformer`` not look whether a mask is the causal one: it adds the mask all the same.

    torch.export cannot follow a choice by the values of a tensor (torch/nn/modules/transformer.py).
    """
    kind: Any = transformer
    looks = kind._detect_is_causal_mask
    kind._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        kind._detect_is_causal_mask = looks


@contextmanager
def _with_dynamic_len() -> Iterator[None]:
    """Have ``len(x)`` of a tensor be ``x.shape[0]``, which may change with the batch: Python's is a plain number."""
    plain = builtins.len

    def sized(of: Any, /) -> Any:
        return of.shape[0] if isinstance(of, torch.Tensor) and of.ndim else plain(of)

    with _replaced(builtins, "len", sized):
        yield


@contextmanager
def _without_subclasses() -> Iterator[None]:
    """Have ``x.as_subclass(Image)`` be ``x``: classes of tensors that only carry a name or methods.

    One whose functions are others' than torch's gives another graph, which the proof refuses.
    """
    with _replaced(torch.Tensor, "as_subclass", lambda self, cls: self):
        yield


@contextmanager
def _with_written_out_takes() -> Iterator[None]:
    """Have ``take_along_dim`` be the ``gather`` that it is: torch asks for the size of the batch in between."""

    def made(plain: Callable[..., Any]) -> Callable[..., Any]:
        def taken(self: torch.Tensor, indices: torch.Tensor, dim: int | None = None, **out: Any) -> Any:
            if dim is None or out or self.ndim != indices.ndim:
                return plain(self, indices, dim, **out)
            along = dim % self.ndim
            others = [each for each in range(1, self.ndim) if each != along]
            if any(indices.shape[each] not in {1, self.shape[each]} for each in others):
                return plain(self, indices, dim)
            sizes = [-1 if each == along else size for each, size in enumerate(self.shape)]
            sizes[0] = -1 if indices.shape[0] != 1 else sizes[0]
            return torch.gather(self, along, indices.expand(sizes))

        return taken

    with ExitStack() as stack:
        for owner in (torch, torch.Tensor):
            stack.enter_context(_replaced(owner, "take_along_dim", made(owner.take_along_dim)))
        yield


@contextmanager
def _with_written_out_rounding() -> Iterator[None]:
    """Have ``fake_quantize``, as networks trained for INT8 call it, be the arithmetic that it is.

    torch.export knows no shape of its result. torch multiplies with the inverse scale, in float32.
    """

    def rounded(x: torch.Tensor, scale: Any, zero_point: Any, low: int, high: int) -> torch.Tensor:
        if isinstance(scale, torch.Tensor):
            inverse: Any = 1.0 / scale.float()
        else:
            inverse = float(np.float32(1) / np.float32(scale))
        if isinstance(zero_point, torch.Tensor) and zero_point.is_floating_point():
            codes = torch.round(x * inverse + zero_point)
        else:
            codes = torch.round(x * inverse) + zero_point
        result: torch.Tensor = (codes.clamp(low, high) - zero_point) * scale
        return result

    def of_channels(
        x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, low: int, high: int
    ) -> torch.Tensor:
        wide = [-1 if each == axis % x.ndim else 1 for each in range(x.ndim)]
        return rounded(x, scale.reshape(wide), zero_point.reshape(wide), low, high)

    def named(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        names = {"input": "x", "quant_min": "low", "quant_max": "high"}
        return lambda *args, **kwargs: function(*args, **{names.get(each, each): kwargs[each] for each in kwargs})

    with (
        _replaced(torch, "fake_quantize_per_tensor_affine", named(rounded)),
        _replaced(torch, "fake_quantize_per_channel_affine", named(of_channels)),
    ):
        yield


@contextmanager
def _with_broadcast_masks() -> Iterator[None]:
    """Have transformers lay out masks by broadcasting, as it does for most models: vmap leaves tensors of its own.

    A mask is a function of four numbers, of sample, head, query and key, and each step of it goes element by element.
    """
    library: Any = sys.modules.get("transformers.masking_utils")
    if not hasattr(library, "_vmap_expansion_sdpa"):
        yield
        return

    def expansion(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def laid_out(*numbers: torch.Tensor) -> torch.Tensor:
            spread = [each.reshape([-1 if axis == own else 1 for axis in range(4)]) for own, each in enumerate(numbers)]
            return function(*spread).expand([each.shape[0] for each in numbers])

        return laid_out

    with (
        _replaced(library, "_vmap_expansion_sdpa", expansion),
        _replaced(library, "TransformGetItemToIndex", nullcontext),  # which vmap needs, and export cannot follow
    ):
        yield


@contextmanager
def _with_caught_errors() -> Iterator[None]:
    """Have a call of a layer that fails leave no trace: ``try: layer(x, lengths) except TypeError: layer(x)``.

    torch notes the layers that it is inside of, and would still be inside of that one.
    """
    kind: Any = fx.Tracer
    plain = kind.call_module

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        outside = len(self.module_stack)
        try:
            return plain(self, *args, **kwargs)
        except BaseException:
            while len(self.module_stack) > outside:
                self.module_stack.popitem(last=True)
            raise

    with _replaced(kind, "call_module", called):
        yield


@contextmanager
def _with_modules_that_stay() -> Iterator[None]:
    """Have ``self.head.to(x.device)`` in ``forward`` do nothing where the module has that device and type already.

    torch would put each weight in its own place, which an export does not allow.
    """
    plain: Any = nn.Module._apply

    def applied(self: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        tensors = [*self.parameters(), *self.buffers()]
        moved = ((each, function(each)) for each in tensors)
        if all(one.device == other.device and one.dtype == other.dtype for one, other in moved):
            return self
        return plain(self, function, *args, **kwargs)

    with _replaced(nn.Module, "_apply", applied):
        yield


@contextmanager
def _without_checked_distributions() -> Iterator[None]:
    """Have ``torch.distributions`` not look at the values of their parameters, which raises errors and nothing else."""
    with _replaced(torch.distributions.Distribution, "_validate_args", value=False):
        yield


class GradientError(Exception):
    """``forward`` computes a gradient."""


@contextmanager
def _without_gradients() -> Iterator[None]:
    """Have a gradient that ``forward`` computes be an error, at that line: torch.export loses sight of the values."""

    def refused(*_: Any, **__: Any) -> Any:
        raise GradientError("forward computes a gradient, whose layers no exported graph has")

    with _replaced(torch.autograd, "_engine_run_backward", refused):  # what all ways to a gradient call
        yield


@contextmanager
def _without_grad_modes() -> Iterator[None]:
    """Have ``torch.enable_grad()`` do nothing, which changes no value.

    torch.export would keep what is inside apart, in a graph of its own. ``torch.distributions`` compute their
    parameters so: ``Categorical(logits=x).probs``.
    """
    kind: Any = torch.enable_grad

    def nothing(*_: object) -> None:
        return None

    with _replaced(kind, "__enter__", nothing), _replaced(kind, "__exit__", nothing):
        yield


class WithoutData(TorchFunctionMode):
    """Have ``x.data`` be ``x.detach()``, and a weight keep the value that it has.

    ``self.weight.data *= self.mask`` in ``forward`` is how masked convolutions and MADE are written. torch.export loses
    sight of what goes through ``data``. The model has run before, so the weights have the values that such lines give
    them; where a line gives others each time, the graph answers differently from the model, and that is seen.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        data: Any = torch.Tensor.data
        if func == data.__get__:
            return args[0].detach().clone() if isinstance(args[0], nn.Parameter) else args[0].detach()
        if func == data.__set__ and isinstance(args[0], nn.Parameter):
            return None
        if func == data.__set__ and args[0].shape == args[1].shape:
            args[0].detach().copy_(args[1])
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
