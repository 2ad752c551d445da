"""Numbers that callers hand to a runner."""

from __future__ import annotations

import operator
from typing import Any, overload

import numpy as np

from .errors import InputError

MOST_THREADS, MOST_SAMPLES = 1024, 65536
"""Threads and instances at most, and samples in one call of the kernels."""


@overload
def whole_number(name: str, value: int, most: int | None = None) -> int: ...


@overload
def whole_number(name: str, value: int | None, most: int | None = None) -> int | None: ...


def whole_number(name: str, value: Any, most: int | None = None) -> int | None:
    """Return an argument as an int, numpy's whole numbers too, and None as None. Raises InputError."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value!r}; it must be a whole number from 1")
    if most is not None and number > most:
        raise InputError(f"{name} is {number}; at most {most} is possible")
    return number
