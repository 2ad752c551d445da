"""Inputs and outputs by name: rows that hold them, and what is said about those that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.errors import InputError, IntegrityError, RunnerError
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.items import check_files, load_row, parsed_values
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.rows import array_of, by_name, pack
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec

SPEC = PreprocessSpec(resize=(2, 3), mean=(0.5,), std=(0.25,))
SIGNATURE = Signature(
    (
        TensorSpec("image", (3, 2, 3), preprocess=SPEC),
        TensorSpec("ids", (4,), "int64", vocabulary=10),
        TensorSpec("mask", (4,), "bool", default=True),
        TensorSpec("age", ()),
    ),
    (OutputSpec("scores", (3,), "softmax"), OutputSpec("map", (2, 2), "argmax", 1), OutputSpec("size", ())),
)
IMAGE = np.arange(36, dtype=np.float32).reshape(2, 3, 2, 3)
IDS = np.array([[1, 2, 3, 9], [0, 0, 1, 1]])
AGE = np.array([30.5, 7], np.float32)


def given(**changes: Any) -> dict[str, Any]:
    found = {"image": IMAGE, "ids": IDS, "age": AGE, **changes}
    return {name: value for name, value in found.items() if value is not None}


def test_a_row_has_all_inputs_side_by_side() -> None:
    rows = pack(SIGNATURE, given())
    assert rows.shape == (2, 18 + 4 + 4 + 1)
    assert rows.dtype == np.float32
    # Images lie by positions: the three channels of a pixel together.
    np.testing.assert_array_equal(rows[:, :18], IMAGE.transpose(0, 2, 3, 1).reshape(2, 18))
    np.testing.assert_array_equal(rows[:, 18:22], IDS)
    np.testing.assert_array_equal(rows[:, 22:26], 1)
    np.testing.assert_array_equal(rows[:, 26], AGE)


def test_pixels_are_normalized() -> None:
    pixels = np.full((2, 2, 3, 3), 255, np.uint8)
    np.testing.assert_array_equal(pack(SIGNATURE, given(image=pixels))[:, :18], (1 - 0.5) / 0.25)


def test_outputs_come_out_of_a_row_by_name() -> None:
    row = np.array([[0, 0, 0, 1, 5, 2, 4, 8]], np.float32)
    found = SIGNATURE.unpack(row)
    assert {name: (each.shape, str(each.dtype)) for name, each in found.items()} == {
        "scores": ((1, 3), "float32"), "map": ((1, 2), "int64"), "size": ((1,), "float32"),
    }  # fmt: skip
    np.testing.assert_allclose(found["scores"], 1 / 3)
    np.testing.assert_array_equal(found["map"], [[1, 0]])  # over rows of [[1, 5], [2, 4]]
    np.testing.assert_array_equal(found["size"], [8])


def test_sigmoid_of_large_values_does_not_overflow() -> None:
    only = Signature((TensorSpec("x", (2,)),), (OutputSpec("y", (3,), "sigmoid"),))
    with np.errstate(over="raise", invalid="raise"):
        np.testing.assert_array_equal(only.result(np.array([[-1e4, 0, 1e4]], np.float32)), [[0, 0.5, 1]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: by_name(SIGNATURE, (IMAGE, IDS), {"age": AGE}),
        lambda: by_name(SIGNATURE, ({"image": IMAGE, "ids": IDS, "age": AGE},), {}),
        lambda: by_name(SIGNATURE, ({"image": IMAGE, "ids": IDS},), {"age": AGE}),
        lambda: by_name(SIGNATURE, (IMAGE, IDS, np.ones((2, 4), bool), AGE), {}),
    ],
)
def test_every_way_to_call_gives_the_same_row(call: Callable[[], dict[str, Any]]) -> None:
    np.testing.assert_array_equal(pack(SIGNATURE, call()), pack(SIGNATURE, given()))


def test_tensors_and_lists_are_taken_too() -> None:
    changes = {"image": torch.from_numpy(IMAGE), "ids": torch.from_numpy(IDS), "age": AGE.tolist()}
    np.testing.assert_array_equal(pack(SIGNATURE, given(**changes)), pack(SIGNATURE, given()))
    np.testing.assert_array_equal(pack(SIGNATURE, given(ids=IDS.astype(np.int32))), pack(SIGNATURE, given()))


class Column:
    """Like a column of pandas: no array, and its floats have 64 bits."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values, np.float64 if np.asarray(values).dtype.kind == "f" else None)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


@pytest.mark.parametrize(
    "age",
    [
        torch.from_numpy(AGE).requires_grad_(),
        [torch.tensor(float(each), requires_grad=True) for each in AGE],
        torch.complex(torch.zeros(2), -torch.from_numpy(AGE)).conj().imag,
        Column(AGE),
        Column(np.array([int(each) if each == int(each) else float(each) for each in AGE], object)),
    ],
    ids=["with gradient", "list with gradients", "negative view", "column", "column of objects"],
)
def test_numbers_in_every_state_are_taken(age: Any) -> None:
    np.testing.assert_array_equal(pack(SIGNATURE, given(age=age)), pack(SIGNATURE, given()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": None}, 'the input "ids" is missing; the model takes image float32 (n, 3, 2, 3) or images, ids int64'),
        ({"ids": None, "age": None}, 'the inputs "ids", "age" are missing'),
        ({"image": (IMAGE, IDS, AGE), "ids": None, "age": None}, 'the inputs "ids", "age" are missing'),
        ({"ids": IDS.astype(np.float32)}, 'input "ids": got float32 (2, 4); expected int64 (n, 4)'),
        ({"mask": np.full((2, 4), 2)}, 'input "mask": has 2; bool holds 0 and 1'),
        ({"mask": torch.full((2, 4), -1)}, 'input "mask": has -1; bool holds 0 and 1'),
        ({"mask": np.ones((2, 4), np.float32)}, 'input "mask": got float32 (2, 4); expected bool (n, 4)'),
        ({"mask": [[0, 1, 2, 1]] * 2}, 'input "mask": has 2; bool holds 0 and 1'),
        ({"age": [3, None]}, 'input "age": has null or None where a number is expected'),
        ({"age": [3, {"x": 1}]}, 'input "age": has dict where a number is expected'),
        ({"age": AGE.astype(np.float64)}, 'input "age": got float64 (2,); expected float32 (n,)'),
        ({"image": IMAGE[0]}, "or uint8 (n, 2, 3, 3); add the batch dimension: image[None]"),
        ({"ids": IDS[:1]}, "the inputs have different numbers of samples: image 2, ids 1, age 2"),
        ({"ids": [[1, 2, 3, 4], [1, 2]]}, 'input "ids": rows of different lengths (2, 4); pad them to (n, 4)'),
        ({"ids": [[1, 2, 3, [4]]]}, 'input "ids": lists beside numbers; expected numbers of the shape (n, 4)'),
        ({"ids": IDS + 1}, 'input "ids": sample 0 has 10; the model takes 0 to 9'),
        ({"ids": IDS - 1}, 'input "ids": sample 1 has -1; the model takes 0 to 9'),
        ({"age": np.array([1, np.nan], np.float32)}, 'input "age": sample 1 has nan; it must be finite'),
        ({"age": AGE[:0]}, 'input "age": got float32 (0,), an empty batch; expected float32 (n,) with n >= 1'),
        ({"age": "old"}, 'input "age": got str; expected an array, a tensor or lists'),
        ({"age": torch.zeros(2).to_sparse()}, 'input "age": got a sparse tensor'),
        ({"age": torch.zeros(2, device="meta")}, 'input "age": got a tensor on the device meta, which has no values'),
        ({"age": torch.zeros(2).bfloat16()}, "got bfloat16 (2,), which numpy has not; convert it: float()"),
        ({"age": torch.zeros(2).cfloat().conj()}, 'input "age": got complex64 (2,); expected float32 (n,)'),
        ({"ids": [[1, 2, 3, 10**30]] * 2}, f'input "ids": has {10**30}, which no int64 holds'),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        pack(SIGNATURE, given(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named", "words"),
    [
        ((), {}, "no input is given; the model takes image"),
        ((1, 2, 3, 4, 5), {}, "got 5 inputs; the model takes image"),
        ((IMAGE,), {"image": IMAGE}, 'the input "image" is given twice'),
        ((), {"imgae": IMAGE}, 'the model has no input "imgae"; did you mean "image"? it takes image'),
        (({"x": 1},), {}, 'the model has no input "x"; it takes image'),
    ],
)
def test_a_call_that_does_not_fit(arguments: tuple[Any, ...], named: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        by_name(SIGNATURE, arguments, named)
    assert words in str(caught.value)


def test_whole_numbers_that_float32_has_not_are_refused() -> None:
    signature = Signature((TensorSpec("count", (), "int64"),), (OutputSpec("y", (1,)),))
    assert pack(signature, {"count": [2**24]})[0, 0] == 2**24
    with pytest.raises(InputError, match="sample 0 has 16777217; the model takes -16777216 to 16777216"):
        pack(signature, {"count": [2**24 + 1]})


def test_a_sample_is_read_from_files_numbers_and_lists(tmp_path: Path) -> None:
    picture, array = tmp_path / "one.png", tmp_path / "ids.npy"
    Image.new("RGB", (1, 1), (255, 255, 255)).save(picture)  # one pixel becomes the model's size
    np.save(array, IDS[0])
    row = load_row(SIGNATURE, {"image": str(picture), "ids": array, "age": 30.5}, check_finite=True)
    np.testing.assert_array_equal(row[:18], 2)
    np.testing.assert_array_equal(row[18:], pack(SIGNATURE, given())[0, 18:])
    archive = tmp_path / "one.npz"
    np.savez(archive, image=np.full((5, 7, 3), 255, np.uint8), ids=IDS[0], age=np.float32(30.5))
    np.testing.assert_array_equal(load_row(SIGNATURE, str(archive), check_finite=True), row)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"image": "no.png", "ids": [1, 2, 3, 4], "age": 1}, 'input "image": no.png: no such file'),
        ({"image": IMAGE[0], "ids": "no.npy", "age": 1}, 'input "ids": no.npy: no such file'),
        ({"image": IMAGE[0], "ids": [1, 2], "age": 1}, 'input "ids": got int64 (2,); expected int64 (4,)'),
        (
            {"image": IMAGE[0], "ids": IDS, "age": 1},
            "got int64 (2, 4); expected int64 (4,); a batch is a list of samples",
        ),
        ({"image": IMAGE[0], "ids": IDS[0] + 0.5, "age": 1}, 'input "ids": got float64 (4,); expected int64 (4,)'),
        ("photo.png", "expected a dict of the inputs (image, ids, mask, age), or an .npz file of them"),
        ("no.npz", "no.npz: no such file"),
    ],
)
def test_a_sample_that_does_not_fit_is_told(item: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_row(SIGNATURE, item, check_finite=True)
    assert words in str(caught.value)


def test_values_of_a_command_line(tmp_path: Path) -> None:
    picture = tmp_path / "a=b.png"
    Image.new("RGB", (3, 2)).save(picture)
    found = parsed_values(SIGNATURE, [f"image={picture}", "ids=[1,2,3,4]", "age=-3", "mask=[true,true,true,false]"])
    assert found == {"image": str(picture), "ids": [1, 2, 3, 4], "age": -3, "mask": [True, True, True, False]}
    for text, words in (
        ("age", "must be NAME=VALUE with a name of image, ids"),
        ("agee=3", 'did you mean "age"?'),
        ("age=old", "age is float32 (); give an .npy file, a number, or a list"),
        ("mask=yes", "mask is bool (4,); give an .npy file, true, false, or a list"),
        ("image=no.png", "no.png: no such file"),
    ):
        with pytest.raises(InputError) as caught:
            parsed_values(SIGNATURE, [text])
        assert words in str(caught.value)
    with pytest.raises(InputError, match="given twice"):
        parsed_values(SIGNATURE, ["age=1", "age=2"])


def test_a_mask_may_be_a_list_of_zeros_and_ones() -> None:
    rows = pack(SIGNATURE, given(mask=[[1, 0, 1, 1], [0, 0, 1, 0]]))
    assert rows[:, 22:26].tolist() == [[1, 0, 1, 1], [0, 0, 1, 0]]


def test_files_of_one_input_are_not_enough() -> None:
    check_files(SIGNATURE, ["all.npz", "more.npz"])
    with pytest.raises(InputError) as caught:
        check_files(SIGNATURE, ["cat.png"])
    assert str(caught.value) == (
        "cat.png is one input, and the model needs 3: --input image=... --input ids=... --input age=..., "
        "or an .npz file of all"
    )


def test_random_rows_have_values_that_the_model_takes() -> None:
    rows = random_rows(SIGNATURE.inputs, np.random.default_rng(0), 200)
    again = random_rows(SIGNATURE.inputs, np.random.default_rng(0), 200)
    np.testing.assert_array_equal(rows, again)
    ids, mask = rows[:, 18:22], rows[:, 22:26]
    assert set(np.unique(ids)) == set(range(10))
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert mask.any(1).all()  # attention over nothing is NaN


def test_a_signature_survives_its_manifest() -> None:
    inputs, outputs = ([each.to_dict() for each in group] for group in (SIGNATURE.inputs, SIGNATURE.outputs))
    assert Signature.from_dicts(inputs, outputs) == SIGNATURE
    for damaged in ({"name": "x"}, {**inputs[1], "shape": [0]}, {**inputs[1], "dtype": "int7"}, inputs[0]):
        with pytest.raises(IntegrityError, match="damaged"):
            Signature.from_dicts([*inputs[:1], damaged], outputs)


@pytest.mark.parametrize("value", [[0.5, True], [[1, 2], [3, False]], [(True, 1)]])
def test_truth_values_among_numbers_are_refused(value: Any) -> None:
    """numpy takes them for 0 and 1. Ones alone are no numbers of a float input, and a mask for ids."""
    with pytest.raises(InputError, match='input "x": has true or false among its numbers'):
        array_of(TensorSpec("x", (2,)), value)
    assert array_of(TensorSpec("ids", (2,), "int64"), [[True, False]]).dtype == bool


def test_lists_that_are_nested_too_deeply_are_refused() -> None:
    deep: Any = 1.0
    for _ in range(20_000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    for value in (deep, [[1.0], deep], endless):
        with pytest.raises(InputError, match='input "x": '):
            array_of(TensorSpec("x", (4,)), value)


def test_whole_numbers_that_float32_rounds_are_refused() -> None:
    """2^24 + 1 is 2^24 in float32, in which the engine gives an output of whole numbers."""
    spec = OutputSpec("count", (2,), whole="int64")
    assert spec.finish(np.array([[2**24 - 1, -3]], np.float32)).tolist() == [[2**24 - 1, -3]]
    assert spec.finish(np.zeros((0, 2), np.float32)).shape == (0, 2)
    for bad, said in ((2.0**24, "16777216"), (-(2.0**40), "1099511627776"), (np.nan, "nan"), (np.inf, "inf")):
        with pytest.raises(RunnerError, match=f'"count" has a whole number of {said}, and'):
            spec.finish(np.array([[1, bad]], np.float32))
