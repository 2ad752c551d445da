"""Intervals of gates on what is alike, for ``confident = true``. Without them such gates could never hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.accuracy import bootstrap_interval
from cpupack.errors import RecipeError
from cpupack.meaning import meaning_of
from cpupack.recipe.file import load_recipe
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.stages.verify.intervals import alike_intervals, meaning_intervals, pixel_interval
from cpupack.tasks.likeness import likeness, likeness_of_rows, same_decisions

RANDOM = np.random.default_rng(0)


def presenter(kind: str, **settings: Any) -> Any:
    return kinds.presenter(TaskSpec.of(kind, **settings), kinds.Model(None, (10, 10)))


def of_shares(shares: Any) -> tuple[float, float]:
    """Return the interval of a mean of one value for each sample."""
    return bootstrap_interval(lambda rows: float(np.mean(shares[rows])), len(shares))


def near(one: np.ndarray[Any, Any], noise: float) -> np.ndarray[Any, Any]:
    return one + noise * RANDOM.standard_normal(one.shape)


def test_pixels_and_embeddings_have_the_intervals_of_means_over_samples() -> None:
    maps = RANDOM.standard_normal((20, 3, 6, 5))
    other = near(maps, 0.5)
    shares = (maps.argmax(1) == other.argmax(1)).mean((1, 2))
    assert pixel_interval(maps, other)["min_agreement"] == pytest.approx(of_shares(shares))
    one = RANDOM.standard_normal((20, 8)).astype(np.float32)
    two = near(one, 0.3).astype(np.float32)
    found, meaning = meaning_intervals(one, two), meaning_of(one, two)
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert found["min_cosine"] == found["min_agreement"] == pytest.approx(of_shares(cosines), abs=1e-6)
    assert meaning.recall is not None
    for name, value in (("min_cosine", meaning.mean_cosine), ("min_recall", meaning.recall)):
        assert found[name][0] < value < found[name][1]
    assert meaning_intervals(one[:1], two[:1]) == {}


def test_boxes_labels_and_decisions_have_intervals_around_the_measured_share() -> None:
    low = RANDOM.uniform(0, 5, (15, 8, 2))
    boxes = np.concatenate([low, low + 4], axis=2)
    scores = RANDOM.uniform(-2, 2, (15, 8, 2))
    of = {"boxes": boxes, "scores": scores}
    for kind, expected, found, gate in (
        ("detection", of, {"boxes": near(boxes, 0.4), "scores": near(scores, 0.4)}, "min_agreement"),
        ("segmentation", {"": scores[:, None]}, {"": near(scores, 0.5)[:, None]}, "min_agreement"),
        ("multilabel", {"": scores[..., 0]}, {"": near(scores, 0.5)[..., 0]}, "min_decisions"),
    ):
        made = presenter(kind)
        alike = likeness(made, expected, found)
        value = same_decisions(made, expected, found) if alike is None else alike[1]
        assert value is not None
        below, above = alike_intervals(made, expected, found)[gate]
        assert 0.0 < below < value < above < 1.0
        assert alike_intervals(made, expected, expected)[gate] == (1.0, 1.0)
    assert alike_intervals(presenter("regression"), {"": scores[..., 0, 0]}, {"": scores[..., 0, 0]}) == {}


def test_a_draw_is_measured_like_samples_of_their_own() -> None:
    scores = RANDOM.standard_normal((6, 4, 5, 5))
    other, made = near(scores, 0.5), presenter("segmentation")
    rows = np.array([1, 1, 4, 5, 0, 1])
    measure = likeness_of_rows(made, {"": scores}, {"": other})
    drawn = likeness(made, {"": scores[rows]}, {"": other[rows]})
    assert measure is not None
    assert drawn is not None
    assert measure[1](rows) == pytest.approx(drawn[1])


def test_gates_that_have_no_interval_are_refused_beside_confident(tmp_path: Path) -> None:
    text = """schema = 1
[package]
name = "nets-int8"
[model]
source = "python:nets.py:net"
weights = "random"
input_shape = [4]
[task]
kind = "embedding"
[calibration]
source = "synthetic"
[evaluation]
min_spearman = 0.9
"""
    (tmp_path / "nets.py").write_text("")
    (tmp_path / "plain.toml").write_text(text)
    (tmp_path / "confident.toml").write_text(text + "confident = true\n")
    load_recipe(tmp_path / "plain.toml")
    with pytest.raises(RecipeError, match="min_spearman: has no interval, by which confident = true judges"):
        load_recipe(tmp_path / "confident.toml")
