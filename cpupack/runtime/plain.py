"""What a program knows, as JSON can say it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Return ``value`` as JSON can say it, at any depth: dataclasses as objects, what is not finite as None.

    Raises TypeError for what is neither data nor a container of it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, frozenset | set):
        return [to_plain(each) for each in sorted(value)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [to_plain(each) for each in value]
    raise TypeError(f"{type(value).__name__} is no data: {value!r}")
