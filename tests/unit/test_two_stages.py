"""Faster R-CNN: its boxes are torchvision's own, in FP32 and, within what INT8 costs, on the native engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import CalibratedModel, FloatModel, Samples
from cpupack.errors import ModelError, QuantizationError, RecipeError
from cpupack.graph.native_model import NativeModel
from cpupack.graph.proposals import NO_BOX, propose, steady_proposals
from cpupack.model.detectors import as_network
from cpupack.model.vision import import_torchvision
from cpupack.pipeline.prepare import prepare
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.engine import library
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.detection import Detections
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize
from cpupack.tasks.likeness import common_boxes
from helpers import tiny_models
from helpers.lowered import needs_kernels
from helpers.two_stages import MEAN, SIZE, STD, detector, own_forward

SOURCE = "from helpers.two_stages import detector\n"
FEW = {"rpn_post_nms_top_n_test": 400, "rpn_nms_thresh": 0.3}
"""Settings with which an image has fewer proposals than the network has rows."""


def recipe(**kwargs: Any) -> Recipe:
    model = {
        "source": "python:own_detector.py:detector", "weights": "factory", "kwargs": kwargs, "input_shape": [3, *SIZE]
    }  # fmt: skip
    images = {"resize": list(SIZE), "mean": MEAN, "std": STD}
    return Recipe.model_validate({"schema": 1, "package": {"name": "tiny"}, "model": model, "preprocess": images})


def loaded(directory: Path, spec: Recipe) -> FloatModel:
    (directory / "own_detector.py").write_text(SOURCE)
    return load(LoadedRecipe(recipe=spec, path=directory / "recipe.toml", text=""), SilentProgress())


def found_by(model: FloatModel, row: np.ndarray) -> list[Detections]:
    """Return what the runner makes of rows of outputs."""
    assert model.task is not None
    presenter: Any = kinds.presenter(model.task, kinds.Model(None, SIZE[::-1], model.anchors))
    outputs = model.signature.split(row)
    return [presenter.present({name: each[image] for name, each in outputs.items()}, None) for image in range(len(row))]


def images(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"convolutions": True}, FEW, {"rpn_score_thresh": 0.82}, {"rpn_score_thresh": 0.99},
        {"bbox_reg_weights": [2.0, 3.0, 4.0, 5.0], "box_detections_per_img": 7, "box_nms_thresh": 0.2},
    ],
    ids=["as it is", "convolutions", "few proposals", "likely proposals", "no proposals", "other decoding"],
)  # fmt: skip
def test_boxes_are_those_of_torchvisions_own_forward(tmp_path: Path, settings: dict[str, Any]) -> None:
    x = images(3)
    proposals, expected = own_forward(detector(**settings), x)
    model = loaded(tmp_path, recipe(**settings))
    with torch.no_grad():
        row = model.module(x).numpy()
    rois = model.signature.split(row)["rois"]
    for own, wanted in zip(rois, proposals, strict=True):
        np.testing.assert_allclose(own[: len(wanted)], wanted.numpy(), atol=1e-3)
        assert (own[len(wanted) :] == NO_BOX).all()
    fewer = [len(each) < rois.shape[1] for each in proposals]
    assert any(fewer) == (settings == FEW or "rpn_score_thresh" in settings)
    for found, wanted in zip(found_by(model, row), expected, strict=True):
        assert [one.index for one in found.found] == wanted["labels"].tolist()
        np.testing.assert_allclose([one.score for one in found.found], wanted["scores"].numpy(), rtol=1e-4)
        boxes = [one.box for one in found.found]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), wanted["boxes"].numpy(), rtol=1e-4, atol=1e-2)
    assert sum(map(len, found_by(model, row))) > 10 or settings == {"rpn_score_thresh": 0.99}


def calibrated(directory: Path, **settings: Any) -> tuple[FloatModel, CalibratedModel, Samples, Recipe]:
    spec = recipe(**settings)
    model, data = loaded(directory, spec), tiny_models.samples((3, *SIZE), 6)
    spec = spec.model_copy(update={"preprocess": None})  # the samples are floats
    fused = fuse(capture(model, data, spec, SilentProgress()), spec, SilentProgress())
    return model, calibrate(fused, data, 2, SilentProgress()), data, spec


@needs_kernels
@pytest.mark.parametrize("settings", [{}, {"convolutions": True, **FEW}], ids=["as it is", "convolutions, few"])
def test_the_native_engine_runs_both_stages_and_finds_the_same(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, stats, data, spec = calibrated(tmp_path, **settings)
    library.load()
    int8 = quantize(stats, model.module, spec, tiny_models.target("native"))
    assert isinstance(int8.module, NativeModel)  # one program, nothing for torch
    of_weights = [each for each in int8.layers if each.name.startswith(("backbone.", "rpn.", "roi_heads."))]
    assert {each.precision for each in of_weights} == {"int8"}
    assert {"cpupack::propose", "cpupack::regions"} <= {each.kernel for each in int8.layers}
    x = data.tensor(slice(0, 3))
    with torch.inference_mode():
        exact, row = model.module(x).numpy(), int8.module(x).numpy()
        alone = np.concatenate([int8.module(each[None]).numpy() for each in x])
    np.testing.assert_array_equal(row, alone)
    # Without rounding the same rows but for float32 sums; 15 roundings of 41 dB each add up to 29 dB, and proposals
    # that one of the two alone has cost more.
    expected, found = model.signature.compared(exact, row)
    assert min(sqnr_db(expected[name], found[name]) for name in expected) > 12.0
    rows = model.signature.split(row)["rois"]
    real = rows[..., 0] >= 0
    assert (rows[~real] == NO_BOX).all()
    assert real.all() == (not settings)
    presenter: Any = kinds.presenter(model.task, kinds.Model(None, SIZE[::-1], model.anchors))  # type: ignore[arg-type]
    share = common_boxes(presenter, model.signature.split(exact), model.signature.split(row))
    assert share is not None
    assert share > 0.7  # of the same class, and overlapping by half


def test_an_engine_of_torch_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model, stats, _, spec = calibrated(tmp_path)
    with pytest.raises(QuantizationError, match="no operator for what lies between the two stages") as caught:
        quantize(stats, model.module, spec, tiny_models.target("onednn"))
    assert 'engine = "native"' in str(caught.value.hint)


def test_a_gate_on_the_speed_over_fp32_is_an_error_for_fp32_is_not_timed(tmp_path: Path) -> None:
    (tmp_path / "own_detector.py").write_text(SOURCE)
    spec = recipe()
    spec = spec.model_copy(update={"evaluation": spec.evaluation.model_copy(update={"min_speedup": 1.5})})
    loads = LoadedRecipe(recipe=spec, path=tmp_path / "recipe.toml", text="")
    with pytest.raises(RecipeError, match="min_speedup cannot be measured for a detector of two stages"):
        prepare(loads, tmp_path, SilentProgress())


def test_settings_without_a_kernel_and_detectors_that_find_more_are_refused() -> None:
    import_torchvision()
    from torchvision.models import detection

    masks = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(ModelError, match="also finds masks") as caught:
        as_network(masks, "torchvision:maskrcnn_resnet50_fpn")
    assert "fasterrcnn_resnet50_fpn" in str(caught.value.hint)
    adaptive: Any = detector()
    adaptive.roi_heads.box_roi_pool.sampling_ratio = 0
    with pytest.raises(ModelError, match=r"sampling_ratio must be 1"):
        as_network(adaptive, "python:own.py:detector")


def test_a_class_with_a_forward_of_its_own_stays_as_it_is() -> None:
    class Own(type(detector())):  # type: ignore[misc]  # a class of torchvision
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model: Any = detector()
    model.__class__ = Own
    assert as_network(model, "own") is model
    assert type(model) is Own


def test_rounding_decides_nothing_among_steady_proposals() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [1, 0, 9, 8], [30, 30, 40, 40]])
    settings = ([3], 3, 3, 0.7, -9.0, 1e-3, 48, 48)
    scores, offsets = torch.tensor([[1.0, 1.0, 0.5]]), torch.zeros(1, 3, 4)
    other = scores + torch.tensor([[0.0, 1e-6, 0.0]])
    assert not torch.equal(propose(scores, offsets, anchors, *settings), propose(other, offsets, anchors, *settings))
    with steady_proposals():
        first = propose(scores, offsets, anchors, *settings)
        assert torch.equal(first, propose(other, offsets, anchors, *settings))
        changed = propose(scores.flip(1), offsets, anchors, *settings)
    assert not torch.equal(first, changed)


def test_rows_of_proposals_are_compared_box_by_box(tmp_path: Path) -> None:
    model = loaded(tmp_path, recipe(**FEW))
    assert {each.rows_of for each in model.signature.outputs} == {"rois"}
    with torch.no_grad():
        row = model.module(images(2)).numpy()
    parts = model.signature.split(row)
    order = np.random.default_rng(0).permutation(parts["rois"].shape[1])
    mixed = np.concatenate([each[:, order].reshape(2, -1) for each in parts.values()], axis=1)
    expected, found = model.signature.compared(row, mixed)
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name])
        assert np.abs(values).max() > 0
    none = row.copy()
    none[:, : parts["rois"][0].size] = NO_BOX
    _, found = model.signature.compared(row, none)
    assert all((values == 0).all() for values in found.values())
    again = dataclasses.replace(model.signature.outputs[1])
    assert type(again).from_dict(again.to_dict()) == again
