"""The sizes of inputs that an exported program was made for. Beyond them its answers are wrong without an error: the
numbers that follow from a size, such as the divisor of a mean, and the branches by it are those of the export.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import nn
from torch.export import ExportedProgram

from cpupack.model.exported_arguments import Arguments

_ANY: ContextVar[bool] = ContextVar("any_range", default=False)


@contextmanager
def any_range() -> Iterator[None]:
    """Run programs beyond the least and the greatest size of their export, to see how their activations grow.

    The sizes of the recipe are run without it.
    """
    token = _ANY.set(True)
    try:
        yield
    finally:
        _ANY.reset(token)


class ExportedSizeError(ValueError):
    """An input has a size that the program was not exported for: like any other failure of a model's code."""


def check_sizes_of_calls(module: nn.Module, program: ExportedProgram, arguments: Arguments) -> None:
    """Have every call of a program's module compare the sizes of its inputs, but for the batch, with those of the
    export, in place. A call with others raises ExportedSizeError.
    """
    user = set(program.graph_signature.user_inputs)
    shapes = {
        node.name: tuple(value.shape)
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in user and isinstance(value := node.meta.get("val"), torch.Tensor)
    }
    ranges = {str(symbol): (each.lower, each.upper) for symbol, each in program.range_constraints.items()}

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            return
        known: dict[str, int] = {}
        for name, value in zip(arguments.tensors, arguments.values(args, kwargs), strict=True):
            if name is not None and isinstance(value, torch.Tensor) and value.ndim == len(shapes[name]):
                _check(name, shapes[name], value, ranges, known)

    module.register_forward_pre_hook(check, with_kwargs=True)


def _check(
    name: str,
    shape: tuple[Any, ...],
    value: torch.Tensor,
    ranges: Mapping[str, tuple[Any, Any]],
    known: dict[str, int],
) -> None:
    """Raise ExportedSizeError for a size that the program does not take. ``known`` has the symbols so far."""
    for dim, (wanted, size) in enumerate(zip(shape, value.shape, strict=True)):
        if dim == 0:  # the batch: that each sample is computed by itself is proved elsewhere
            continue
        if isinstance(wanted, int):
            told = None if size == wanted else f"it was exported for {wanted}"
        else:
            told = _beyond(wanted.node.expr, int(size), ranges, known)
        if told is not None:
            raise ExportedSizeError(
                f"dimension {dim} of the input {name} is {size}, and {told}; with other sizes the program computes "
                "something else. Export it again with dynamic_shapes that have them"
            )


def _beyond(wanted: Any, size: int, ranges: Mapping[str, tuple[Any, Any]], known: dict[str, int]) -> str | None:
    """Return why a size is not what an expression like ``2*s0`` may be, None where it may."""
    found = _solved(wanted, size)
    if found is None:
        return None
    symbol, root = found
    if root is None:
        return f"it was exported for sizes of the form {wanted}"
    low, high = ranges.get(symbol, (0, sympy.oo))
    if not (low <= root <= high or _ANY.get()):
        return f"it was exported for {wanted} with {symbol} from {low} to {high}"
    if known.setdefault(symbol, root) != root:
        return f"it was exported for {wanted}, with {symbol} the same as in other inputs, where it is {known[symbol]}"
    return None


@lru_cache(maxsize=1024)
def _solved(wanted: Any, size: int) -> tuple[str, int | None] | None:
    """Return the symbol of an expression and the whole number that makes it ``size``, None for that where none does.

    None for an expression of several symbols, which one size does not tell.
    """
    if len(wanted.free_symbols) != 1:
        return None
    (symbol,) = wanted.free_symbols
    if wanted == symbol:
        return str(symbol), size
    roots = [root for root in sympy.solve(wanted - size, symbol) if root.is_integer and root >= 0]
    return str(symbol), int(roots[0]) if roots else None
