"""SQNR, cosine, agreement and top-k on arrays whose answers follow by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cpupack.accuracy import agreement, cosine, sqnr_db, top_k

REFERENCE = np.float32([[3.0, 4.0], [0.0, -5.0]])


def test_sqnr_of_a_known_noise() -> None:
    # Signal 9 + 16 + 25 = 50; noise four times 0.5^2 = 1.
    assert sqnr_db(REFERENCE, REFERENCE + np.float32(0.5)) == pytest.approx(10.0 * math.log10(50.0))


def test_sqnr_of_equal_arrays_and_of_no_signal() -> None:
    assert sqnr_db(REFERENCE, REFERENCE) == math.inf
    assert sqnr_db(np.zeros(3, np.float32), np.ones(3, np.float32)) == -math.inf


def test_large_values_do_not_overflow() -> None:
    large = np.float32([1e30, -1e30])
    assert sqnr_db(large, large * np.float32(1.1)) == pytest.approx(20.0, abs=1e-3)  # 10 % noise
    assert cosine(large, large) == pytest.approx(1.0)


def test_cosine_of_known_angles() -> None:
    assert cosine(REFERENCE, REFERENCE * 2.0) == pytest.approx(1.0)
    assert cosine(REFERENCE, -REFERENCE) == pytest.approx(-1.0)
    assert cosine(np.float32([1.0, 0.0]), np.float32([1.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    assert cosine(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 1.0
    assert cosine(np.zeros(2, np.float32), np.ones(2, np.float32)) == 0.0


def test_agreement_is_the_share_of_equal_choices() -> None:
    other = np.float32([[5.0, 4.0], [0.0, -5.0]])
    assert agreement(REFERENCE, other) == 0.5
    assert agreement(REFERENCE, REFERENCE) == 1.0


def test_top_k_counts_labels_among_the_largest() -> None:
    outputs = np.float32([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    labels = np.array([2, 1, 0])
    assert top_k(outputs, labels, 1) == pytest.approx(1 / 3)
    assert top_k(outputs, labels, 2) == pytest.approx(2 / 3)
    assert top_k(outputs, labels, 3) == 1.0
    assert top_k(outputs, labels, 5) == 1.0  # fewer classes than k
