"""The settings of a task, as the recipe's ``[task]`` and the manifest have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import IntegrityError

CLASSIFICATION, EMBEDDING, IMAGE, RAW = "classification", "embedding", "image", "raw"
MASKS = "masks"
TOKENS, ANSWER, FILL = "tokens", "answer", "fill"
OF_TEXT = (TOKENS, ANSWER, FILL)
"""Kinds whose results lie in a text."""

SETTINGS: dict[str, tuple[str, ...]] = {
    CLASSIFICATION: ("scores",),
    "multilabel": ("threshold", "scores"),
    "regression": ("units", "scale", "offset"),
    "embedding": (),
    "segmentation": ("threshold", "scores"),
    MASKS: ("threshold", "scores"),
    "detection": (
        "threshold", "scores", "box_format", "angle", "layout", "objectness", "background", "nms_iou", "class_agnostic",
        "max_detections",
    ),
    "keypoints": ("threshold", "coordinates", "skeleton"),
    "image": ("scale", "offset"),
    TOKENS: ("aggregation",),
    ANSWER: (),
    FILL: (),
    RAW: (),
}  # fmt: skip
"""The kinds of tasks, and which settings each of them has."""

SCORES = ("logits", "probabilities")
BOX_FORMATS = ("xyxy", "xywh", "cxcywh", "xyxy_normalized", "xywh_normalized", "cxcywh_normalized")
ANGLES = ("", "fifth", "last")
"""Where the angle of a box is: none, behind its four numbers, or behind its scores."""
LAYOUTS = ("rows", "columns")
COORDINATES = ("pixels", "normalized")
AGGREGATIONS = ("first", "simple")
LAST = "last"
"""Where the class that stands for nothing is, if it is not the first one."""
OF_EACH_LABEL = ("multilabel", MASKS, "detection")
"""Kinds whose threshold may be a list, a number for each label."""
_TOLD = ("thresholds", "squeezed", "maps", "volume")
"""What is written where it is not empty: no setting of a recipe by these names."""
DEFAULTS: dict[tuple[str, str], Any] = {
    ("multilabel", "threshold"): 0.5,
    ("segmentation", "threshold"): 0.5,
    (MASKS, "threshold"): 0.5,
    ("detection", "threshold"): 0.3,
    ("keypoints", "threshold"): 0.0,
}
"""The thresholds of kinds that have one."""


@dataclass(frozen=True)
class TaskSpec:
    """What the outputs are, and the settings of that kind. A setting that the kind does not have keeps its default.

    ``threshold`` (0..1) is the lowest score that counts. Where each label has its own, ``thresholds`` lists them and
    ``threshold`` is the lowest of all. ``scores`` says whether the outputs are logits or
    probabilities. ``units``, ``scale`` and ``offset`` hold one entry for each value, or are empty. ``box_format`` says
    what the four numbers of a box are, ``angle`` where that by which it is turned is, ``layout`` whether a box is a
    row or a column of the outputs, and
    ``objectness`` whether the first score is that of any object at all. ``background`` says whether a class stands for
    nothing: the first one, or the one that is ``LAST``. With ``class_agnostic`` a box may drop those of other classes.
    ``coordinates`` says what those of points are in. ``skeleton`` lists the pairs of points that a drawing joins.
    ``aggregation`` says whether a word has the label of its first token, or each token one of its own.
    ``decoder`` names the arithmetic of a detector whose constants are in a file of the
    package, empty for outputs that are boxes already. ``squeezed`` says that the map ``(height, width)`` of a
    segmentation is known to hold scores of one class, also where all of them are whole numbers. ``maps`` says that a
    regression has a number for each pixel, ``volume`` that a segmentation has a class for each voxel of a scan.
    """

    kind: str
    threshold: float = 0.0
    thresholds: tuple[float, ...] = ()
    scores: str = "logits"
    units: tuple[str, ...] = ()
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()
    box_format: str = "xyxy"
    angle: str = ""
    layout: str = "rows"
    objectness: bool = False
    background: bool | str = False
    nms_iou: float = 0.5
    class_agnostic: bool = False
    max_detections: int = 100
    coordinates: str = "pixels"
    skeleton: tuple[tuple[int, int], ...] = ()
    aggregation: str = "first"
    decoder: str = ""
    squeezed: bool = False
    maps: bool = False
    volume: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, SETTINGS),
            ("scores", self.scores, SCORES),
            ("box_format", self.box_format, BOX_FORMATS),
            ("angle", self.angle, ANGLES),
            ("layout", self.layout, LAYOUTS),
            ("background", self.background, (False, True, LAST)),
            ("coordinates", self.coordinates, COORDINATES),
            ("aggregation", self.aggregation, AGGREGATIONS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(map(str, allowed))}")

    @classmethod
    def of(cls, kind: str, **settings: Any) -> TaskSpec:
        """Return the settings of a kind with its own defaults. Lists become tuples, of thresholds ``thresholds``."""
        if isinstance(each := settings.get("threshold"), list | tuple):
            settings |= {"threshold": min(each), "thresholds": each}
        found = {name: value for (of_kind, name), value in DEFAULTS.items() if of_kind == kind} | settings
        return cls(kind, **{name: _frozen(value) for name, value in found.items()})

    @classmethod
    def from_dict(cls, section: Mapping[str, Any] | None, output_shape: tuple[int, ...]) -> TaskSpec:
        """Read the manifest's section. Without one (wheels of an older cpupack) the output's shape says the kind.

        Raises IntegrityError on damage.
        """
        if section is None:
            return cls(default_kind({"output": output_shape}))
        try:
            return cls(**{name: _frozen(value) for name, value in section.items()})
        except (TypeError, ValueError) as error:
            raise IntegrityError(f"the task section is damaged: {error}") from error

    def least_scores(self, labels: int) -> tuple[float, ...]:
        """Return the lowest score that counts of each of so many labels."""
        return self.thresholds or (self.threshold,) * labels

    @property
    def draws(self) -> bool:
        """Whether results can be drawn."""
        return self.maps or self.kind in ("segmentation", MASKS, "detection", "keypoints", IMAGE)

    @property
    def draws_alone(self) -> bool:
        """Whether a drawing is the result itself, so that it needs no image to lie over."""
        return self.maps or self.kind == IMAGE

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values of the settings that the kind has; ``from_dict`` reads them back."""
        kept = {"kind", "decoder", *SETTINGS[self.kind], *(name for name in _TOLD if getattr(self, name))}
        return {
            name: [list(each) if isinstance(each, tuple) else each for each in value]
            if isinstance(value, tuple)
            else value
            for name, value in dataclasses.asdict(self).items()
            if name in kept
        }


def default_kind(outputs: Mapping[str, tuple[int, ...]]) -> str:
    """Return the kind of a model whose recipe names none: one row of scores is a classification.

    A row of one score is none: by a softmax the only class has a probability of 1, whatever the score is.
    """
    (*_, shape) = outputs.values()
    return CLASSIFICATION if len(outputs) == 1 and len(shape) == 1 and shape[0] > 1 else RAW


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value
