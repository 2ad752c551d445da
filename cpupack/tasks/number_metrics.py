"""Metrics of numbers and places: how far values, maps of them and points are from what is true."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import VerificationError
from cpupack.runtime.tasks.base import Presenter, in_rows
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.keypoints import KeypointsPresenter, point_count
from cpupack.runtime.tasks.maps import RegressionMaps, map_count
from cpupack.runtime.tasks.regression import RegressionPresenter

Array = npt.NDArray[Any]


def errors(
    name: str, power: int, presenter: Presenter, outputs: Mapping[str, Array], targets: Array
) -> npt.NDArray[np.float64]:
    """Return the sum of |value - target| ** power and the number of values of each sample ``(n, 2)``.

    They are in the units of the values: outputs are scaled as ``predict`` does. Of maps of numbers, those whose target
    is NaN do not count.
    """
    assert isinstance(presenter, RegressionPresenter)
    if presenter.spec.maps:
        return _errors_of_maps(name, power, presenter, outputs, np.asarray(targets))
    rows = in_rows(outputs)
    found = np.array([[value.value for value in presenter.row({"": row}).values] for row in rows])
    expected = np.asarray(targets, np.float64).reshape(len(targets), -1)
    if expected.shape != found.shape:
        raise wrong_shape(name, f"{found.shape[1]} values for each sample", targets)
    return np.stack([(np.abs(found - expected) ** power).sum(axis=1), np.full(len(found), found.shape[1])], axis=1)


def _errors_of_maps(
    name: str, power: int, presenter: RegressionPresenter, outputs: Mapping[str, Array], targets: Array
) -> npt.NDArray[np.float64]:
    """Return what ``errors`` does for maps. Targets have the size of the outputs, or that of the model's input."""
    shapes = {key: each.shape[1:] for key, each in outputs.items()}
    count, own = map_count(shapes), next(iter(shapes.values()))[-2:]
    expected = targets[:, None] if targets.ndim == 3 else targets
    allowed = {own, presenter.input_size[::-1]} - {(1, 1)}
    if expected.ndim != 4 or expected.shape[1] != count or expected.shape[2:] not in allowed:
        sizes = " or ".join(f"{height}, {width}" for height, width in sorted(allowed))
        raise wrong_shape(name, f"maps (n, {count}, {sizes})", targets)
    sums = np.zeros((len(expected), 2))
    for row, target in enumerate(expected):
        height, width = target.shape[1:]
        # The size that a target has is that of the whole input: a smaller output is brought to it, as predict does.
        frame = None if target.shape[1:] == own else Frame.whole(width, height)
        found = presenter.present({key: each[row] for key, each in outputs.items()}, frame)
        assert isinstance(found, RegressionMaps)
        known = ~np.isnan(target)
        gaps = np.abs(found.values.astype(np.float64) - target)[known]
        sums[row] = (gaps**power).sum(), known.sum()
    return sums


def distances(presenter: Presenter, outputs: Mapping[str, Array], targets: Array) -> npt.NDArray[np.float64]:
    """Return the sum of the distances between found and true points of each sample, and their number, ``(n, 2)``.

    ``targets`` ``(n, points, 2)`` are x and y in pixels of the model's input, NaN where a point is not known. A point
    of which the model gives no finite place is as far away as the input's corners are from each other.
    """
    assert isinstance(presenter, KeypointsPresenter)
    count, size = point_count({name: each.shape[1:] for name, each in outputs.items()}), presenter.input_size
    expected = np.asarray(targets, np.float64).reshape(len(targets), -1, 2) if targets.size % 2 == 0 else targets
    if expected.ndim != 3 or expected.shape[1] != count:
        raise wrong_shape("distance", f"points (n, {count}, 2): x and y in pixels of the input", targets)
    known = np.asarray(np.isfinite(expected).all(axis=2), np.bool_)
    if known.any() and min(size) > 1 and np.nanmax(expected) <= 1:
        raise VerificationError(
            "[evaluation] metric distance: all points are from 0 to 1, so they look like shares of the input",
            hint=f"points are in pixels of the model's input of {size[0]} x {size[1]}",
        )
    every = dataclasses.replace(presenter, spec=dataclasses.replace(presenter.spec, threshold=-np.inf))
    sums = np.zeros((len(expected), 2))
    for row, (points, seen) in enumerate(zip(expected, known, strict=True)):
        places = np.full((count, 2), np.nan)
        for one in every.present({name: each[row] for name, each in outputs.items()}, None).points:
            places[one.index] = one.x, one.y
        far = np.nan_to_num(np.linalg.norm(places - points, axis=1), nan=float(np.hypot(*size)))
        sums[row] = far[seen].sum(), seen.sum()
    return sums


def wrong_shape(name: str, needed: str, targets: Array) -> VerificationError:
    """Return the error for targets of another shape than a metric needs."""
    return VerificationError(
        f"[evaluation] metric {name} compares with {needed}; the targets have shape {targets.shape}"
    )
