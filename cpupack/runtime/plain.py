"""Facts and results as plain data: dicts, lists and scalars, which JSON can hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def to_data(value: Any) -> Any:
    """Return ``value`` as dicts, lists and scalars, at any depth: a dataclass becomes a dict. Numbers stay as they are.

    Raises TypeError for anything that is neither a scalar, an array, a dataclass nor a container of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return to_data(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_data(each) for key, each in value.items()}
    if isinstance(value, frozenset | set):
        return [to_data(each) for each in sorted(value)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [to_data(each) for each in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def to_plain(value: Any) -> Any:
    """Return ``to_data(value)`` with None for each number that is not finite: JSON has no infinity and no NaN."""
    return _finite(to_data(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
