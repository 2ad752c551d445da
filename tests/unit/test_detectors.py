"""torchvision's detectors by name: the runner's boxes are those of torchvision's own postprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.vision import import_torchvision
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.decode import read_anchors
from cpupack.stages.load import load
from cpupack.stages.package.write import write_arrays
from helpers.tiny_models import Recorder

LITE, LITE_MEAN = "ssdlite320_mobilenet_v3_large", {"mean": [0.5] * 3, "std": [0.5] * 3}
CLASSES = 5


def build(directory: Path, name: str, size: list[int], **tables: Any) -> FloatModel:
    model = {"source": f"torchvision:{name}", "weights": "random", "input_shape": [3, *size]}
    model |= {"kwargs": {"num_classes": CLASSES}} | tables.pop("model", {})
    recipe = Recipe.model_validate({"schema": 1, "package": {"name": "tiny"}, "model": model, **tables})
    return load(LoadedRecipe(recipe=recipe, path=directory / "recipe.toml", text=""), Recorder())


def nms(boxes: torch.Tensor, scores: torch.Tensor, most_iou: float) -> torch.Tensor:
    """Suppress by the definition, for builds of torchvision whose compiled operator does not load."""
    from torchvision.ops import box_iou

    kept: list[int] = []
    overlaps = box_iou(boxes, boxes)
    for row in torch.argsort(-scores, stable=True).tolist():
        if not any(overlaps[row, other] > most_iou for other in kept):  # NaN of two boxes without area is no overlap
            kept.append(row)
    return torch.tensor(kept, dtype=torch.int64)


def theirs(
    model: Any, name: str, outputs: dict[str, torch.Tensor], size: tuple[int, int], levels: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Return what torchvision's own class makes of the outputs of its heads for one image."""
    from torchvision.models.detection.image_list import ImageList

    names = {"boxes": "bbox_regression", "scores": "cls_logits", "centerness": "bbox_ctrness"}
    heads: Any = {names[key]: value for key, value in outputs.items()}
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, *size))
        anchors = model.anchor_generator(ImageList(torch.zeros(1, 3, *size), [size]), list(features.values()))
        if not name.startswith("ssd"):
            heads = {key: list(value.split(list(levels), dim=1)) for key, value in heads.items()}
            anchors = [list(each.split(list(levels))) for each in anchors]
        (found,) = model.postprocess_detections(heads, anchors, [size])
    return dict(found)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ssdlite320_mobilenet_v3_large", (320, 320)),
        ("ssd300_vgg16", (300, 300)),
        ("retinanet_resnet50_fpn", (64, 96)),
        ("retinanet_resnet50_fpn_v2", (64, 64)),
        ("fcos_resnet50_fpn", (64, 96)),
    ],
)
def test_boxes_are_those_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    import_torchvision()
    import torchvision

    monkeypatch.setattr(torchvision.ops.boxes, "nms", nms)
    model = build(tmp_path, name, list(size))
    assert model.task is not None
    assert model.anchors is not None
    random = np.random.default_rng(0)
    # Offsets some of which reach the bound on growth and leave the image, and classes of which few are sure.
    outputs = {
        spec.name: torch.from_numpy(
            (random.standard_normal((1, *spec.shape)) * 2 - 3 * (spec.name == "scores")).astype(np.float32)
        )
        for spec in model.signature.outputs
    }
    write_arrays(tmp_path / "task.npz", model.anchors.arrays())
    inner = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    inner.score_thresh = 0.3
    expected = theirs(inner, name, outputs, size, model.anchors.levels)
    presenter = kinds.presenter(model.task, kinds.Model(None, size[::-1], read_anchors(tmp_path / "task.npz")))
    found = presenter.present({key: value[0].numpy() for key, value in outputs.items()}, None)
    whole = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(dim=1)  # ours drops what lies outside the image
    expected = {key: value[whole] for key, value in expected.items()}
    assert len(found) == len(expected["scores"]) > 10
    np.testing.assert_allclose([one.score for one in found.found], expected["scores"].numpy(), rtol=1e-5)
    np.testing.assert_allclose([one.box for one in found.found], expected["boxes"].numpy(), rtol=1e-4, atol=1e-3)
    assert [one.index for one in found.found] == expected["labels"].tolist()


def test_the_network_gives_what_its_heads_give_and_keeps_the_names_of_its_modules(tmp_path: Path) -> None:
    import_torchvision()
    from torchvision.models import detection

    plain = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    model = build(tmp_path, "ssdlite320_mobilenet_v3_large", [320, 320], model={"weights": "plain.pt"})
    x = torch.randn(2, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heads = plain.head(list(plain.backbone(x).values()))
        row = model.module(x.flatten(1) if model.signature.takes_rows else x)
    found = model.signature.split(row.numpy())
    np.testing.assert_array_equal(found["boxes"], heads["bbox_regression"].numpy())
    np.testing.assert_array_equal(found["scores"], heads["cls_logits"].numpy())


def test_settings_of_the_recipe_come_before_those_of_the_detector(tmp_path: Path) -> None:
    name, size = "ssdlite320_mobilenet_v3_large", [320, 320]
    own = build(tmp_path, name, size).task
    assert own is not None
    assert (own.threshold, own.nms_iou, own.max_detections) == (0.3, 0.55, 300)
    changed = build(tmp_path, name, size, task={"kind": "detection", "threshold": 0.1, "nms_iou": 0.4}).task
    assert changed is not None
    assert (changed.threshold, changed.nms_iou, changed.max_detections) == (0.1, 0.4, 300)
    raw = build(tmp_path, name, size, task={"kind": "raw"})
    assert raw.anchors is None
    assert raw.kind == "raw"


@pytest.mark.parametrize(
    ("name", "size", "tables", "words"),
    [
        ("ssd300_vgg16", [320, 320], {}, r"works on images of 300 x 300"),
        ("retinanet_resnet50_fpn", [60, 64], {}, r"works on multiples of 32"),
        # Those of SSD that take a second to make: what is checked is the same.
        (LITE, [320, 320], {"preprocess": {"resize": [320, 320]}}, r"mean is \[0.0\], and torchvision:ssdlite320"),
        (
            LITE,
            [320, 320],
            {"preprocess": {"resize": [320, 320], **LITE_MEAN}, "task": {"kind": "detection", "box_format": "xywh"}},
            r"\[task\] box_format has no effect",
        ),
        (LITE, [320, 320], {"output": [{"name": "boxes", "drop": True}]}, r"\[\[output\]\] leaves scores"),
        (
            LITE,
            [320, 320],
            {"output": [{"name": "scores", "apply": "softmax", "dim": 2}]},
            r"applies a function to scores",
        ),
    ],
)
def test_what_does_not_fit_the_detector_is_an_error(
    tmp_path: Path, name: str, size: list[int], tables: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build(tmp_path, name, size, **tables)
    assert caught.value.hint
