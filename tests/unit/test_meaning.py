"""Embeddings are judged by their directions, the order of similarities, and who is found first."""

from __future__ import annotations

import numpy as np
import pytest

from cpupack.meaning import meaning_of, spearman

RNG = np.random.default_rng(0)


def test_equal_embeddings_are_perfect() -> None:
    values = RNG.standard_normal((20, 8)).astype(np.float32)
    found = meaning_of(values, values)
    assert (found.mean_cosine, found.worst_cosine, found.spearman, found.recall, found.neighbours) == (1, 1, 1, 1, 10)


def test_lengths_do_not_matter_and_one_turned_text_is_the_worst() -> None:
    values = np.eye(4, 8, dtype=np.float32) + 0.1
    other = values * np.array([[1.0], [2.0], [3.0], [1.0]], np.float32)
    other[3] *= -1
    found = meaning_of(values, other)
    assert found.worst_cosine == pytest.approx(-1.0)
    assert found.mean_cosine == pytest.approx(0.5)  # three of 1 and one of -1


def test_spearman_of_ranks_with_a_tie() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(4.5 / 22.5**0.5)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1.0)
    assert spearman(np.array([1.0, 1.0, 1.0]), np.array([1.0, 2.0, 3.0])) == 0.0


def test_recall_counts_neighbours_that_stay() -> None:
    angles = np.radians([0.0, 1.0, 90.0, 92.0])
    before = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    after = before[[0, 2, 1, 3]]  # the two in the middle have changed places
    found = meaning_of(before, after)
    assert found.neighbours == 3  # of four texts each has three others, so all stay
    assert found.recall == 1.0
    assert found.spearman is not None
    assert found.spearman < 0.9


def test_labels_say_who_should_be_found() -> None:
    values = np.repeat(np.eye(12, dtype=np.float32), 2, axis=0)  # 24 texts in pairs of equal ones
    labels = np.repeat(np.arange(12), 2)
    lost = values.copy()
    lost[0] = 0.0
    lost[0, 11] = 1.0
    found = meaning_of(values, lost, labels)
    assert found.label_recall_fp32 == 1.0
    assert found.label_recall_int8 is not None
    assert found.label_recall_int8 <= 1.0


def test_one_text_has_no_pairs() -> None:
    found = meaning_of(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
    assert (found.spearman, found.recall) == (None, None)
