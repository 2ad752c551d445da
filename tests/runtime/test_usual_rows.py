"""Rows of arrays that need nothing done: the same rows, and the same errors, as of any other way to give the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.runtime.arrays import MOST_FLOAT, is_finite, like_inputs
from cpupack.runtime.errors import InputError
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec

SIGNATURE = Signature(
    (
        TensorSpec("x", (2, 3)),
        TensorSpec("ids", (4,), "int64", vocabulary=10),
        TensorSpec("mask", (4,), "bool"),
        TensorSpec("length", (), "int64", vocabulary=5, blank=0.0),
        TensorSpec("age", ()),
    ),
    (OutputSpec("y", (3,)),),
)
GIVEN: dict[str, Any] = {
    "x": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
    "ids": np.array([[1, 2, 3, 9], [0, 0, 1, 1]]),
    "mask": np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool),
    "length": np.array([1, 4]),
    "age": np.array([30.5, 7], np.float32),
}
ROWS = np.array(
    [[*range(6), 1, 2, 3, 9, 1, 1, 0, 0, 1, 30.5], [*range(6, 12), 0, 0, 1, 1, 1, 1, 1, 1, 4, 7]], np.float32
)


def strided(array: Any) -> Any:
    """Return the same values with others between them."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "form",
    [
        lambda array: array,
        np.asfortranarray,
        strided,
        read_only,
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: array.tolist(),
        torch.from_numpy,
        lambda array: array.astype(np.uint8) if array.dtype.kind in "bi" else array,
        lambda array: torch.from_numpy(array).long() if array.dtype.kind in "bi" else array,
        lambda array: torch.from_numpy(array).float().requires_grad_() if array.dtype.kind == "f" else array,
    ],
    ids=["array", "fortran", "strided", "read only", "big endian", "lists", "tensor", "uint8", "int64", "gradients"],
)
def test_a_row_is_the_same_in_every_form(form: Callable[[Any], Any]) -> None:
    found = pack(SIGNATURE, {name: form(each) for name, each in GIVEN.items()})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)


def test_arrays_of_the_caller_are_copied() -> None:
    found = pack(SIGNATURE, GIVEN)
    assert not any(np.shares_memory(found, each) for each in GIVEN.values())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("x", np.full((2, 2, 3), np.nan, np.float32), 'input "x": sample 0 has nan; it must be finite'),
        ("age", np.array([1, -np.inf], np.float32), 'input "age": sample 1 has -inf; it must be finite'),
        ("age", np.array([1, 2e30], np.float32), 'input "age": sample 1 has 2e+30'),
        ("x", np.ones((2, 3, 2), np.float32), 'input "x": got float32 (2, 3, 2); expected float32 (n, 2, 3)'),
        ("x", np.ones((2, 2, 3)), 'input "x": got float64 (2, 2, 3); expected float32 (n, 2, 3)'),
        ("x", np.ones((3, 2, 3), np.float32), "different numbers of samples: x 3, ids 2"),
        ("age", np.float32(3), 'input "age": got float32 (); expected float32 (n,)'),
        ("ids", np.full((2, 4), 10), 'input "ids": sample 0 has 10; the model takes 0 to 9'),
        ("length", np.array([1, 0]), 'input "length": sample 1 has 0, which makes a sequence without a step'),
    ],
)
def test_what_does_not_fit_is_told(name: str, value: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        pack(SIGNATURE, {**GIVEN, name: value})
    assert words in str(caught.value)


def test_an_empty_batch_is_told() -> None:
    with pytest.raises(InputError, match="an empty batch"):
        pack(SIGNATURE, {name: each[:0] for name, each in GIVEN.items()})


def test_values_that_are_not_finite_pass_where_nobody_looks() -> None:
    age = np.array([np.nan, np.inf], np.float32)
    np.testing.assert_array_equal(pack(SIGNATURE, {**GIVEN, "age": age}, check_finite=False)[:, -1], age)


@pytest.mark.parametrize("size", [1, 7, 4096, 4097])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (0.0, True), (1e20, True), (0.99 * MOST_FLOAT, True), (-0.99 * MOST_FLOAT, True), (1.01 * MOST_FLOAT, False),
        (-1.01 * MOST_FLOAT, False), (np.inf, False), (-np.inf, False), (np.nan, False),
    ],
)  # fmt: skip
def test_finite_is_what_the_limit_says(size: int, dtype: Any, value: float, fits: bool) -> None:
    """The square of 1e20 is infinite in float32, and the value is none the less finite. numpy's warnings are errors."""
    array = np.full(size, 1e20, dtype)
    array[-1] = value
    with np.errstate(all="raise"):
        assert is_finite(array) == fits


def test_results_are_tensors_where_an_input_is_one() -> None:
    result = {"y": np.ones(3, np.float32)}
    assert isinstance(like_inputs(result, {"a": 1, "b": torch.ones(1)})["y"], torch.Tensor)
    assert like_inputs(result, {"a": np.ones(1)}) is result
    assert torch.equal(like_inputs(result["y"], {"a": torch.ones(1)}), torch.ones(3))
