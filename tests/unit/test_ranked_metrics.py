"""Average precision of labels, and the equal error rate of verification."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from torch import nn

from cpupack.artifacts import FloatModel
from cpupack.errors import VerificationError
from cpupack.metric import Metric
from cpupack.runtime.signature import INPUT, OutputSpec, Signature
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.tasks.metrics import task_metric


def metric(name: str, kind: str, size: int) -> Metric:
    signature = Signature((TensorSpec(INPUT, (4,)),), (OutputSpec("output", (size,)),))
    of = FloatModel(nn.Identity(), signature, "", False, None, 0, 0, 0, task=TaskSpec.of(kind))
    return task_metric(name, of, resampled=False)


def test_average_precision_is_the_mean_over_labels_that_some_sample_has() -> None:
    scores = np.array([[3.0, 1.0, 0.0], [2.0, 4.0, 0.0], [1.0, 3.0, 0.0], [0.0, 2.0, 0.0]], np.float32)
    truth = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    # Label 0: hits at ranks 1 and 3, (1/1 + 2/3) / 2. Label 1: its one hit is at rank 2. No sample has label 2.
    assert metric("average_precision", "multilabel", 3)(scores, truth) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_equal_scores_have_one_threshold() -> None:
    scores = np.array([[1.0], [1.0], [0.0]], np.float32)
    for truth in ([[1], [0], [0]], [[0], [1], [0]]):
        assert metric("average_precision", "multilabel", 1)(scores, np.array(truth)) == pytest.approx(0.5)


def test_labels_that_cannot_be_ranked() -> None:
    of = metric("average_precision", "multilabel", 2)
    with pytest.raises(VerificationError, match="no sample has any label"):
        of(np.zeros((3, 2), np.float32), np.zeros((3, 2)))
    with pytest.raises(VerificationError, match="a label is 0 or 1"):
        of(np.zeros((3, 2), np.float32), np.full((3, 2), 0.5))
    with pytest.raises(VerificationError, match="2 truth values for each sample"):
        of(np.zeros((3, 2), np.float32), np.zeros((3, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_the_equal_error_is_where_as_many_are_refused_as_accepted(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = random.integers(0, 4, 24)
    vectors = (random.standard_normal((4, 5))[classes] + 1.2 * random.standard_normal((24, 5))).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(float(unit[a] @ unit[b]), classes[a] == classes[b]) for a, b in itertools.combinations(range(24), 2)]
    rates = []
    for threshold, _ in pairs:
        refused = np.mean([cosine < threshold - 1e-6 for cosine, same in pairs if same])
        accepted = np.mean([cosine >= threshold - 1e-6 for cosine, same in pairs if not same])
        rates.append((abs(refused - accepted), (refused + accepted) / 2))
    found = metric("equal_error", "embedding", 5)(vectors, classes)
    assert found == pytest.approx(min(rates)[1], abs=1e-9)
    assert 0.02 < found < 0.5


def test_classes_that_lie_apart_have_no_error_and_draws_may_have_no_pair() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 2, axis=0)
    classes = np.array(["a", "a", "b", "b", "c", "c"])
    of = metric("equal_error", "embedding", 3)
    assert of(vectors, classes) == 0.0
    measure = of.measure(lambda rows: vectors[rows], classes)
    assert np.isnan(measure(np.array([0, 0, 0, 0, 2, 4])))  # a sample that is drawn twice is no pair
    assert measure(np.array([0, 1, 0, 1, 2, 4])) == 0.0
    for wrong in (classes[:1].repeat(6), np.arange(6)):
        with pytest.raises(VerificationError, match="needs pairs of samples of one class, and of two"):
            of(vectors, wrong)
    with pytest.raises(VerificationError, match="a class for each sample"):
        of(vectors, np.zeros((6, 2)))
