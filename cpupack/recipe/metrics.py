"""The metrics that cpupack knows by name, and the files of targets that they compare with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class KnownMetric:
    """A metric by name: the kind of task that it is for (and ``also`` others), whether larger (``max``) or smaller is
    better.

    ``targets`` is what ``[evaluation] targets`` may name for folders of images; with ``folders`` those of classes do
    without it.
    """

    kind: str
    goal: str
    targets: tuple[str, ...]
    folders: bool = False
    also: tuple[str, ...] = ()

    @property
    def needed(self) -> str:
        """The targets that it compares with, for messages."""
        *others, last = [f"{each}:..." for each in self.targets]
        return f"{', '.join(others)} or {last}" if others else last


METRICS = {
    "map": KnownMetric("detection", "max", ("coco",)),
    "map50": KnownMetric("detection", "max", ("coco",)),
    "miou": KnownMetric("segmentation", "max", ("masks",), also=("masks",)),
    "dice": KnownMetric("segmentation", "max", ("masks",), also=("masks",)),
    "mae": KnownMetric("regression", "min", ("csv", "jsonl", "maps")),
    "rmse": KnownMetric("regression", "min", ("csv", "jsonl", "maps")),
    "distance": KnownMetric("keypoints", "min", ("csv", "jsonl")),
    "f1": KnownMetric("multilabel", "max", ("csv", "jsonl")),
    "average_precision": KnownMetric("multilabel", "max", ("csv", "jsonl")),
    "recall": KnownMetric("embedding", "max", ("csv", "jsonl"), folders=True),
    "equal_error": KnownMetric("embedding", "min", ("csv", "jsonl"), folders=True),
    "psnr": KnownMetric("image", "max", ("images",)),
    "ssim": KnownMetric("image", "max", ("images",)),
}
NAMES = tuple(each for each in METRICS if each != "recall")
"""The metrics whose name is all of what a recipe says; of ``recall@5`` a number follows."""
TARGETS = {
    "coco": "FILE.json",
    "masks": "DIR",
    "maps": "DIR",
    "images": "DIR",
    "csv": "FILE.csv",
    "jsonl": "FILE.jsonl",
}
"""The kinds of targets for folders of images, and what each of them names."""
TARGET_FILES = {"masks": ".png", "maps": ".npy"}
"""Targets that have a file for each image, and its ending."""
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the pictures of ``images:DIR``, the first one that exists, after that of the image itself."""
_OTHER_NAMES = {
    "ap": "map", "ap50": "map50", "map_50": "map50", "map@50": "map50", "map@0.5": "map50",
    "iou": "miou", "mean_iou": "miou", "jaccard": "miou", "dice_score": "dice", "dsc": "dice",
    "l1": "mae", "mse": "rmse", "l2": "rmse", "mpjpe": "distance", "pck": "distance", "nme": "distance",
    "macro_ap": "average_precision", "f1_score": "f1", "eer": "equal_error", "recall": "recall@1", "r@1": "recall@1",
}  # fmt: skip
"""What others call a metric, or one that is near to it."""
_RECALL = re.compile(r"recall@([1-9][0-9]{0,3})")


def known_metric(name: str) -> KnownMetric | None:
    """Return the metric of a name such as ``miou`` or ``recall@5``, None for any other text."""
    if _RECALL.fullmatch(name):
        return METRICS["recall"]
    return METRICS.get(name) if name != "recall" else None


def nearest_of(name: str) -> str | None:
    """Return the name that was probably meant."""
    known = _OTHER_NAMES.get(name.lower().replace("-", "_").replace(" ", "_"))
    near = get_close_matches(name.lower(), [*NAMES, "recall@1"], n=1)
    return known or (near[0] if near else None)


def recall_at(name: str) -> int:
    """Return the 5 of ``recall@5``."""
    found = _RECALL.fullmatch(name)
    assert found is not None
    return int(found[1])
