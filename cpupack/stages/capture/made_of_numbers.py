"""Has torch.export know tensors that code makes of numbers, so that it may take numbers out of them again.

``dims = torch.arange(1, x.ndim).tolist()`` and ``int(torch.full((batch,), x.shape[1]).max())`` depend on no sample.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

_BATCHES = (2, 5)
"""A number is known where it is the same for batches of both sizes."""
_MOST = 4096
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SHAPED = frozenset(["full_like", "ones_like", "zeros_like", "new_full", "new_ones", "new_zeros", "new_tensor"])
"""What takes the shape and the type alone of its first argument."""
_MADE = _SHAPED | frozenset(
    [
        "arange",
        "full",
        "ones",
        "zeros",
        "linspace",
        "eye",
        "tensor",
        "as_tensor",
        "scalar_tensor",
        "tril_indices",
        "triu_indices",
    ]
)
"""What makes a tensor of numbers."""
_READ = frozenset(
    [
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__contains__",
        "is_nonzero",
        "equal",
        "allclose",
    ]
)
_RANDOM = ("rand", "normal", "bernoulli", "multinomial", "poisson", "dropout", "empty", "exponential")


class _UnknownError(Exception):
    """What a function takes is not known, or is too large."""


class MadeOfNumbers(TorchFunctionMode):
    """Computes such tensors beside the graph, for two batch sizes, and answers what asks for their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[
            int, tuple[torch.Tensor, tuple[torch.Tensor, ...]]
        ] = {}  # the tensor, so its id stays its own

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        name = str(getattr(func, "__name__", ""))
        if name in _READ:
            found = self._computed(func, args, options, shapes=False)
            if found is not None and _same(*found):
                return found[0]
        before = [each for each in tree_leaves((args, options)) if isinstance(each, torch.Tensor)]
        result = func(*args, **options)
        if _works_in_place(name, options):
            if any(id(each) in self._known for each in before):
                self._known.clear()  # views of it have changed as well
        elif name in _MADE or (before and not any(each in name for each in _RANDOM)):
            self._follow(result, self._computed(func, args, options, shapes=name in _SHAPED))
        return result

    def _follow(self, result: Any, values: tuple[Any, ...] | None) -> None:
        if values is None:
            return
        leaves = [tree_flatten(each)[0] for each in (result, *values)]
        if len({len(each) for each in leaves}) > 1:
            return
        for tensor, *known in zip(*leaves, strict=True):
            if isinstance(tensor, torch.Tensor) and all(isinstance(each, torch.Tensor) for each in known):
                self._known[id(tensor)] = tensor, tuple(known)

    def _computed(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], *, shapes: bool
    ) -> tuple[Any, ...] | None:
        """Return the results of ``func`` for both batch sizes, None where they are not known."""
        try:
            with _disable_current_modes(), torch.no_grad():
                return tuple(
                    self._result(func, args, options, number, shapes=shapes) for number in range(len(_BATCHES))
                )
        except (_UnknownError, RuntimeError, TypeError, ValueError, LookupError):
            return None

    def _result(
        self, func: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any], number: int, *, shapes: bool
    ) -> Any:
        def value(of: Any) -> Any:
            if isinstance(of, _SYMBOLS):
                return _number(of, _BATCHES[number])
            if not isinstance(of, torch.Tensor):
                return of
            if id(of) in self._known:
                return self._known[id(of)][1][number]
            raise _UnknownError

        def first(of: Any) -> Any:
            if not shapes or not isinstance(of, torch.Tensor) or id(of) in self._known:
                return tree_map(value, of)
            return torch.empty([value(size) for size in of.shape], dtype=of.dtype)

        given = [*map(first, args[:1]), *tree_map(value, args[1:])]
        result = func(*given, **tree_map(value, options))
        if any(isinstance(each, torch.Tensor) and each.numel() > _MOST for each in tree_leaves(result)):
            raise _UnknownError
        return result


def _number(symbol: Any, batch: int) -> Any:
    if free_unbacked_symbols(symbol):
        raise _UnknownError
    expression = symbol.node.expr
    found = expression.subs(dict.fromkeys(expression.free_symbols, batch))
    kinds = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}
    return next(made(found) for kind, made in kinds.items() if isinstance(symbol, kind))


def _works_in_place(name: str, options: dict[str, Any]) -> bool:
    return name in {"__setitem__", "__set__"} or "out" in options or (name.endswith("_") and not name.endswith("__"))


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other) if type(one) is type(other) else False
