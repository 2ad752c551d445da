"""torchvision's detectors: what of them is a network, and what the runner computes from its outputs.

The network is backbone, neck and heads. It gives ``boxes`` (n, anchors, 4) and ``scores`` (n, anchors, classes) as the
heads have them. Anchors, decoding and suppression are arithmetic of the runner (``runtime/tasks/decode.py``). A
detector of two stages chooses boxes in the middle, inside its network (``two_stages.py``).
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model import two_stages
from cpupack.recipe import Recipe, Task
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks.decode import FASTER_RCNN, FCOS, RETINANET, SSD, Anchors
from cpupack.runtime.tasks.detection import BOXES, CENTERNESS, ROIS, SCORES
from cpupack.runtime.tasks.spec import TaskSpec

FASTER = "FasterRCNN"
_NAMES = {"bbox_regression": BOXES, "cls_logits": SCORES, "bbox_ctrness": CENTERNESS}
"""The heads' names of the outputs, and those of a wheel."""
_DECODERS = {"SSD": SSD, "RetinaNet": RETINANET, "FCOS": FCOS, FASTER: FASTER_RCNN}
"""The classes of torchvision's detectors, and the arithmetic that each needs after its network."""
_DETECTION = "torchvision.models.detection."
_FIXED = ("box_format", "angle", "layout", "objectness", "background", "scores")
"""Settings of [task] that a detector of torchvision brings itself."""
_CLOSE = 1e-6


@dataclass(frozen=True)
class Detector:
    """What the runner must know of a detector beside its network."""

    task: TaskSpec
    anchors: Anchors


def as_network(module: nn.Module, source: str) -> nn.Module:
    """Return a detector of torchvision as a module that gives what its heads give, and any other module as it is.

    A detector takes a list of images and answers with boxes; a network takes a batch. It becomes a subclass, so every
    module keeps its name. A class of the user's with a forward of its own stays as it is. Raises ModelError for
    detectors that also find masks or keypoints, and for settings that no kernel has.
    """
    kind: type[Any] = type(module)
    if not (kind.forward.__module__ or "").startswith(_DETECTION):  # code that torch.fx wrote has no module
        return module
    name = next((each.__name__ for each in kind.__mro__ if each.__name__ in _DECODERS and _is_theirs(each)), None)
    if name is None:
        return module
    if name == FASTER:
        two_stages.refuse_other_parts(module, source)
        own = {"forward": two_stages.forward, "_detects": name, "_anchors_of": {}}
    else:
        own = {"forward": _heads_alone, "_detects": name}
    module.__class__ = type(kind.__name__, (kind,), own)
    return module


def _heads_alone(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return {_NAMES[name]: value for name, value in model.head(_features(model, x)).items()}


def _is_theirs(kind: type) -> bool:
    return kind.__module__.startswith(_DETECTION)


def detector_of(module: nn.Module, recipe: Recipe, signature: Signature) -> Detector | None:
    """Return the anchors and settings of a module of ``as_network``, None for any other.

    A recipe whose [task] is of another kind takes the outputs as they are: None too. Raises ModelError for an input
    size or a normalization that is not the detector's, for settings of [task] that it brings itself, and for [[output]]
    that takes from it what decoding needs.
    """
    name: str | None = getattr(module, "_detects", None)
    if name is None or (recipe.task is not None and recipe.task.kind != "detection"):
        return None
    model: Any = module
    source = recipe.model.source
    if recipe.sizes is not None:
        raise ModelError(
            f"[sizes]: the anchors of {source} are those of one size of images",
            hint="leave [sizes] out and give input_shape numbers; [preprocess] resizes every image to them, and "
            "boxes are in pixels of the image",
        )
    (spec,) = signature.inputs
    _check_size(model, spec.shape, source)
    if spec.preprocess is not None:
        _check_normalization(model, spec.preprocess, source)
    _check_outputs(name, signature.outputs, source)
    settings = _settings(recipe.task)
    post = model.roi_heads if name == FASTER else model
    task = TaskSpec.of(
        "detection",
        **{"nms_iou": float(post.nms_thresh), "max_detections": int(post.detections_per_img), **settings},
        background=name in {"SSD", FASTER},
        decoder=_DECODERS[name],
    )
    return Detector(task, _of_proposals(model) if name == FASTER else _anchors(model, name, spec.shape))


def with_rows(module: nn.Module, signature: Signature) -> Signature:
    """Return the signature with what says which rows of a detector of two stages belong to which box."""
    names = [each.name for each in signature.outputs]
    if getattr(module, "_detects", None) != FASTER or ROIS not in names:
        return signature
    return Signature(signature.inputs, tuple(dataclasses.replace(each, rows_of=ROIS) for each in signature.outputs))


def _features(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    found = model.backbone(x)
    return [found] if isinstance(found, torch.Tensor) else list(found.values())


def _anchors(model: Any, name: str, shape: tuple[int, ...]) -> Anchors:
    images = importlib.import_module("torchvision.models.detection.image_list")
    zeros = torch.zeros(1, *shape)
    with torch.no_grad():
        features = _features(model, zeros)
        (boxes,) = model.anchor_generator(images.ImageList(zeros, [tuple(shape[1:])]), features)
    places = [each.shape[2] * each.shape[3] for each in features]
    if name == "SSD":
        each_place = model.anchor_generator.num_anchors_per_location()
        weights = model.box_coder.weights
    else:
        each_place = [len(boxes) // sum(places)] * len(places)
        weights = model.box_coder.weights if name == "RetinaNet" else (1.0, 1.0, 1.0, 1.0)
    levels = tuple(int(count * times) for count, times in zip(places, each_place, strict=True))
    one, two, three, four = (float(each) for each in weights)
    corners = np.ascontiguousarray(boxes.numpy(), np.float32)
    return Anchors(corners, (one, two, three, four), levels, int(model.topk_candidates))


def _of_proposals(model: Any) -> Anchors:
    """Return what decoding needs where the network itself gives the boxes that offsets are relative to."""
    one, two, three, four = (float(each) for each in model.roi_heads.box_coder.weights)
    kept = int(model.rpn.post_nms_top_n())
    return Anchors(np.empty((0, 4), np.float32), (one, two, three, four), (kept,), kept)


def _settings(task: Task | None) -> dict[str, Any]:
    if task is None:
        return {}
    given = task.model_dump(exclude={"kind"}, exclude_none=True)
    if wrong := [key for key in _FIXED if key in given]:
        raise ModelError(
            f"[task] {wrong[0]} has no effect: a detector of torchvision has its own decoding", hint="delete it"
        )
    return given


def _check_size(model: Any, shape: tuple[int, ...], source: str) -> None:
    height, width = shape[1:] if len(shape) == 3 else (0, 0)
    transform = model.transform
    if transform.fixed_size is not None:
        wide, high = transform.fixed_size
        if (height, width) != (high, wide):
            raise ModelError(
                f"[model] input_shape is {list(shape)}, and {source} works on images of {wide} x {high}",
                hint=f"set input_shape = [3, {high}, {wide}] and resize = [{high}, {wide}]",
            )
    elif not height or height % transform.size_divisible or width % transform.size_divisible:
        raise ModelError(
            f"[model] input_shape is {list(shape)}, and {source} works on multiples of {transform.size_divisible}",
            hint="set input_shape = [3, 800, 1088] and resize = [800, 1088], or smaller ones",
        )


def _check_normalization(model: Any, spec: PreprocessSpec, source: str) -> None:
    for key in ("mean", "std"):
        wanted = np.array(getattr(model.transform, f"image_{key}"), np.float64)
        given = np.resize(np.array(getattr(spec, key), np.float64), len(wanted))
        if np.abs(given - wanted).max() > _CLOSE:
            raise ModelError(
                f"[preprocess] {key} is {list(getattr(spec, key))}, and {source} normalizes by "
                f"{[float(each) for each in wanted]}",
                hint=f"set {key} = {[float(each) for each in wanted]}; other weights: image_{key} in [model] kwargs",
            )


def _check_outputs(name: str, outputs: tuple[OutputSpec, ...], source: str) -> None:
    needed = {BOXES, SCORES} | {"FCOS": {CENTERNESS}, FASTER: {ROIS}}.get(name, set())
    found = {each.name for each in outputs}
    changed = [each.name for each in outputs if each.apply is not None]
    if found != needed or changed:
        raise ModelError(
            f"[[output]] leaves {', '.join(sorted(found))}"
            + (f" and applies a function to {changed[0]}" if changed else "")
            + f"; decoding the boxes of {source} takes {', '.join(sorted(needed))} as the model gives them",
            hint='delete [[output]], or set [task] kind = "raw"',
        )
