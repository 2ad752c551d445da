"""The metrics that cpupack knows by name, and the files of targets that they compare with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class KnownMetric:
    """A metric by name: the kind of task that it is for, whether larger (``max``) or smaller is better.

    ``targets`` is what ``[evaluation] targets`` may name for folders of images; with ``folders`` those of classes do
    without it.
    """

    kind: str
    goal: str
    targets: tuple[str, ...]
    folders: bool = False

    @property
    def needed(self) -> str:
        """The targets that it compares with, for messages."""
        *others, last = [f"{each}:..." for each in self.targets]
        return f"{', '.join(others)} or {last}" if others else last


METRICS = {
    "map": KnownMetric("detection", "max", ("coco",)),
    "map50": KnownMetric("detection", "max", ("coco",)),
    "miou": KnownMetric("segmentation", "max", ("masks",)),
    "mae": KnownMetric("regression", "min", ("csv", "jsonl", "maps")),
    "rmse": KnownMetric("regression", "min", ("csv", "jsonl", "maps")),
    "distance": KnownMetric("keypoints", "min", ("csv", "jsonl")),
    "f1": KnownMetric("multilabel", "max", ("csv", "jsonl")),
    "recall": KnownMetric("embedding", "max", ("csv", "jsonl"), folders=True),
}
NAMES = tuple(each for each in METRICS if each != "recall")
"""The metrics whose name is all of what a recipe says; of ``recall@5`` a number follows."""
TARGETS = {"coco": "FILE.json", "masks": "DIR", "maps": "DIR", "csv": "FILE.csv", "jsonl": "FILE.jsonl"}
"""The kinds of targets for folders of images, and what each of them names."""
TARGET_FILES = {"masks": ".png", "maps": ".npy"}
"""Targets that have a file for each image, and its ending."""
_RECALL = re.compile(r"recall@([1-9][0-9]{0,3})")


def known_metric(name: str) -> KnownMetric | None:
    """Return the metric of a name such as ``miou`` or ``recall@5``, None for any other text."""
    if _RECALL.fullmatch(name):
        return METRICS["recall"]
    return METRICS.get(name) if name != "recall" else None


def nearest_of(name: str) -> str | None:
    """Return the name that was probably meant."""
    near = get_close_matches(name.lower(), [*NAMES, "recall@1"], n=1)
    return near[0] if near else None


def recall_at(name: str) -> int:
    """Return the 5 of ``recall@5``."""
    found = _RECALL.fullmatch(name)
    assert found is not None
    return int(found[1])
