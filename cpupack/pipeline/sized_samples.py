"""Samples of other sizes than the calibration data have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.accuracy import FloatArray
from cpupack.artifacts import Samples
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.runtime.rows import add_sizes
from cpupack.runtime.tensor_spec import TensorSpec, engine_input_shape, input_places


def cut_samples(samples: Samples, size: Size, sizes: OpenSizes) -> Samples:
    """Return samples of another size: their first rows and columns, again and again where they are too few."""
    axes = (1, 2) if samples.preprocess is not None else [1 + axis for axis in sizes.axes]
    data = samples.data
    for axis, wanted in zip(axes, size[-len(axes) :], strict=True):
        data = _taken(data, axis, wanted)
    return dataclasses.replace(samples, data=np.ascontiguousarray(data), targets=None)


def resized_rows(rows: FloatArray, before: Sequence[TensorSpec], after: Sequence[TensorSpec]) -> FloatArray:
    """Return rows of inputs of another size, whose samples are cut or repeated as ``cut_samples`` does."""
    found = np.zeros((len(rows), *engine_input_shape(after)), np.float32)
    places = zip(before, input_places(before), after, input_places(after), strict=True)
    for spec, place, wanted, there in places:
        order = (1, 2, 0) if spec.preprocess is not None else range(len(spec.shape))  # images lie by positions
        part = rows[:, place].reshape(-1, *(spec.shape[axis] for axis in order))
        for number, axis in enumerate(order, 1):
            part = _taken(part, number, wanted.shape[axis])
        found[:, there] = part.reshape(len(rows), -1)
    add_sizes(after, found)
    return found


def _taken(data: npt.NDArray[Any], axis: int, count: int) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.take(data, np.arange(count) % data.shape[axis], axis=axis)
    return found
