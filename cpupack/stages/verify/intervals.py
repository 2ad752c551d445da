"""Intervals of what is alike: other samples would give another share of the same pixels, boxes and labels.

They take a thousand draws of the samples, so they are computed for ``confident`` gates alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack import accuracy
from cpupack.accuracy import Interval
from cpupack.meaning import cosines_of, recalls_of
from cpupack.metric import OfRows, of_sums
from cpupack.runtime.tasks.base import Presenter
from cpupack.tasks.likeness import decisions_of_rows, likeness_of_rows

Named = Mapping[str, npt.NDArray[Any]]


def alike_intervals(presenter: Presenter | None, expected: Named, found: Named) -> dict[str, Interval]:
    """Return the intervals of gates on likeness and on decisions by the name of the gate, without those of no number.

    ``expected`` are FP32's outputs, ``found`` those of INT8.
    """
    measures: dict[str, OfRows] = {}
    if (alike := likeness_of_rows(presenter, expected, found)) is not None:
        measures["min_agreement"] = alike[1]
    if (decisions := decisions_of_rows(presenter, expected, found)) is not None:
        measures["min_decisions"] = decisions
    return _intervals(measures, len(next(iter(expected.values()))))


def pixel_interval(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> dict[str, Interval]:
    """Return the interval of the share of pixels with the same best class, of scores ``(n, classes, ...)``."""
    same = (expected.argmax(axis=1) == found.argmax(axis=1)).reshape(len(expected), -1).mean(axis=1)
    return _intervals({"min_agreement": of_sums(_counted(same), _mean)}, len(same))


def meaning_intervals(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> dict[str, Interval]:
    """Return the intervals of gates on embeddings ``(n, ...)``, as far as they are means over samples."""
    cosines = of_sums(_counted(cosines_of(expected, found)), _mean)
    intervals = _intervals(dict.fromkeys(("min_agreement", "min_cosine"), cosines), len(expected))
    recalls = recalls_of(expected, found)
    return intervals | (
        {} if recalls is None else _intervals({"min_recall": of_sums(_counted(recalls), _mean)}, len(recalls))
    )


def _intervals(measures: Mapping[str, OfRows], count: int) -> dict[str, Interval]:
    found = {}
    for name, measure in measures.items():
        try:
            found[name] = accuracy.bootstrap_interval(measure, count)
        except ValueError:  # on most draws there is nothing to measure; the gate says that it has no interval
            continue
    return found if count > 1 else {}


def _counted(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([values, np.ones(len(values))], axis=1)


def _mean(sums: npt.NDArray[Any]) -> float:
    return float(sums[0] / sums[1])
