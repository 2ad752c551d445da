"""The metrics that cpupack knows by name, and the files of targets that they compare with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class KnownMetric:
    """A metric by name: the kind of task that it is for, whether larger (``max``) or smaller is better.

    ``targets`` is what ``[evaluation] targets`` must name for folders of images, None for class folders.
    """

    kind: str
    goal: str
    targets: str | None


METRICS = {
    "map": KnownMetric("detection", "max", "coco"),
    "map50": KnownMetric("detection", "max", "coco"),
    "miou": KnownMetric("segmentation", "max", "masks"),
    "mae": KnownMetric("regression", "min", "csv"),
    "f1": KnownMetric("multilabel", "max", "csv"),
    "recall": KnownMetric("embedding", "max", None),
}
TARGETS = ("coco", "masks", "csv")
_RECALL = re.compile(r"recall@([1-9][0-9]{0,3})")


def known_metric(name: str) -> KnownMetric | None:
    """Return the metric of a name such as ``miou`` or ``recall@5``, None for any other text."""
    if _RECALL.fullmatch(name):
        return METRICS["recall"]
    return METRICS.get(name) if name != "recall" else None


def nearest_of(name: str) -> str | None:
    """Return the name that was probably meant."""
    near = get_close_matches(name.lower(), [*(each for each in METRICS if each != "recall"), "recall@1"], n=1)
    return near[0] if near else None


def recall_at(name: str) -> int:
    """Return the 5 of ``recall@5``."""
    found = _RECALL.fullmatch(name)
    assert found is not None
    return int(found[1])
