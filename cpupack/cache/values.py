"""The plain values in a graph as JSON and back: numbers, names, types, tuples, references. Nothing else can be kept."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cpupack.graph.vocabulary import FUNCTIONS

_SCALARS = (bool, int, float, str, type(None))
_TYPES = (torch.dtype, torch.layout, torch.memory_format)
_SPACES = ("aten", "torchvision")
"""Namespaces of the operators that a graph may call."""
_ON_SIZES: tuple[Any, ...] = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod, operator.neg,
    operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.and_, operator.or_,
    math.floor, math.ceil, math.trunc, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_int, torch.sym_float,
)  # fmt: skip
"""What torch.export leaves of arithmetic on sizes."""


class NotStorableError(Exception):
    """Something that the cache has no form for, such as a module of the user's own class."""


def _name_of(function: Any) -> str:
    return f"{getattr(function, '__module__', None) or 'torch'}.{function.__name__}"


_FUNCTIONS: Mapping[str, Any] = {
    _name_of(each): each for each in (*FUNCTIONS, *_ON_SIZES) if not isinstance(each, torch._ops.OpOverload)
}


def encode(value: Any, reference: Callable[[Any], str | None] = lambda value: None) -> Any:
    """Return a value as JSON. ``reference`` names objects that are kept elsewhere. Raises NotStorableError."""
    name = reference(value)
    if name is not None:
        return {"at": name}
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if type(value) in _SCALARS:
        return value
    if type(value) in (tuple, torch.Size):
        return {"tuple": [encode(each, reference) for each in value]}
    if isinstance(value, list):  # also fx's own lists and dicts
        return [encode(each, reference) for each in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, reference), encode(each, reference)] for key, each in value.items()]}
    if type(value) is slice:
        return {"slice": [encode(each, reference) for each in (value.start, value.stop, value.step)]}
    if isinstance(value, _TYPES):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise NotStorableError(f"a {type(value).__name__} in the graph")


def decode(raw: Any, resolve: Callable[[str], Any]) -> Any:
    """Return the value of a JSON form. ``resolve`` finds the objects that ``reference`` named. Raises ValueError."""
    if isinstance(raw, list):
        return [decode(each, resolve) for each in raw]
    if not isinstance(raw, dict):
        return raw
    ((kind, value),) = raw.items()
    match kind:
        case "at":
            return resolve(value)
        case "float":
            return float(value)
        case "tuple":
            return tuple(decode(each, resolve) for each in value)
        case "dict":
            return {decode(key, resolve): decode(each, resolve) for key, each in value}
        case "slice":
            return slice(*(decode(each, resolve) for each in value))
        case "torch":
            found = getattr(torch, value)
            if isinstance(found, _TYPES):
                return found
        case "device":
            return torch.device(value)
        case "ellipsis":
            return Ellipsis
    raise ValueError(f"no form of a value: {kind}")


def encode_function(function: Any) -> str:
    """Return the name of a function that a graph calls. Raises NotStorableError for one that graphs never call."""
    if isinstance(function, torch._ops.OpOverload):
        if function.namespace in _SPACES:
            return f"{function.namespace}::{function._schema.name.partition('::')[2]}.{function._overloadname}"
        raise NotStorableError(f"the operator {function}")
    name = _name_of(function) if hasattr(function, "__name__") else str(function)
    if _FUNCTIONS.get(name) is not function:
        raise NotStorableError(f"the function {name}")
    return name


def decode_function(name: str) -> Any:
    """Return the function of a name. Raises ValueError for another than graphs call."""
    space, colons, rest = name.partition("::")
    if not colons:
        if name not in _FUNCTIONS:
            raise ValueError(f"no function of a graph: {name}")
        return _FUNCTIONS[name]
    operator_name, _, overload = rest.partition(".")
    if space not in _SPACES:
        raise ValueError(f"no operator of a graph: {name}")
    try:
        return getattr(getattr(getattr(torch.ops, space), operator_name), overload or "default")
    except AttributeError as error:
        raise ValueError(f"no operator of a graph: {name}") from error
