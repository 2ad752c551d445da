"""What stands beside samples of factories and texts: labels, which are class indices or their names, and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import CalibrationError
from cpupack.sources.classes import labels_of
from cpupack.sources.request import Array, Request

_MOST_CLASSES = 2**31


def class_labels(
    answers: Sequence[Any], names: Sequence[str], request: Request, hint: str
) -> npt.NDArray[np.int64] | None:
    """Return class indices, one for each of ``names``. A string is a name of ``[model] labels``.

    Returns None where the recipe does not ask for labels, or where they are not required and some answer is none.
    Raises CalibrationError, with ``hint``, where they are required.
    """
    if not request.labelled:
        return None
    if any(isinstance(answer, str) for answer in answers):
        labels = labels_of(request) or []
        numbers = {name: index for index, name in enumerate(labels) if labels.count(name) == 1}
        answers = [numbers.get(answer, answer) if isinstance(answer, str) else answer for answer in answers]
    for answer, name in zip(answers, names, strict=True):
        if _is_index(answer):
            continue
        if not request.required:
            return None
        raise CalibrationError(
            f"{request.spec}: {name} has no label, which accuracy needs"
            if answer is None
            else f"{request.spec}: the label of {name} is {answer!r}; it must be a class index, or a name "
            "that [model] labels has once",
            hint=hint,
        )
    return np.array([int(answer) for answer in answers], np.int64)


def metric_targets(answers: Sequence[Any], names: Sequence[str], request: Request, hint: str) -> Array | None:
    """Return the targets as one array, None where no metric needs them.

    Raises CalibrationError, with ``hint``, if one is missing, or if their shapes differ.
    """
    if not request.targets:
        return None
    arrays: list[Array] = []
    for answer, name in zip(answers, names, strict=True):
        if answer is None:
            raise CalibrationError(f"{request.spec}: {name} has no target, which the metric needs", hint=hint)
        try:
            arrays.append(np.asarray(answer))
        except ValueError as error:  # lists of different lengths
            raise CalibrationError(f"{request.spec}: the target of {name} is no array: {error}", hint=hint) from error
        if arrays[-1].shape != arrays[0].shape:
            raise CalibrationError(
                f"{request.spec}: the target of {name} has shape {arrays[-1].shape}, "
                f"and that of {names[0]} {arrays[0].shape}",
                hint="pad them to one shape",
            )
    return np.stack(arrays)


def _is_index(answer: Any) -> bool:
    if answer is None or isinstance(answer, bool | str):
        return False
    try:
        number = np.asarray(answer)
    except ValueError:
        return False
    return number.shape == () and number.dtype.kind in "iu" and 0 <= int(number) < _MOST_CLASSES
