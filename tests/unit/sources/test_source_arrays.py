"""Arrays as calibration and evaluation data: what comes out, and what is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from helpers.tiny_models import Recorder

Open = Callable[..., Samples]


def save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


@pytest.mark.parametrize("key", ["data", "images", "x"])
def test_pixels_of_the_models_size_are_taken_as_they_are(tmp_path: Path, read: Open, key: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    save(tmp_path / "a.npz", **{key: pixels})
    found = read("arrays:a.npz", preprocess={"resize": 10, "crop": 8})
    assert np.array_equal(found.data, pixels)
    assert found.preprocess == PreprocessSpec(resize=10, crop=8)
    assert found.names == tuple(f"row {row}" for row in range(5))


def test_other_pixels_go_through_preprocess(tmp_path: Path, read: Open) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 16, 3), np.uint8)
    save(tmp_path / "a.npz", data=pixels)
    found = read("arrays:a.npz")
    spec = PreprocessSpec(resize=8, crop=8)
    assert np.array_equal(found.data[1], to_pixels(decode_image(pixels[1]), spec))


def test_grey_pixels_need_no_channel_axis(tmp_path: Path, read: Open) -> None:
    save(tmp_path / "a.npz", data=np.zeros((2, 8, 8), np.uint8))
    assert read("arrays:a.npz", shape=(1, 8, 8), preprocess={"mode": "L", "crop": 8}).data.shape == (2, 8, 8, 1)


def test_floats_are_the_models_input(tmp_path: Path, read: Open) -> None:
    data = np.random.default_rng(0).standard_normal((6, 4))
    save(tmp_path / "a.npz", data=data, labels=np.arange(6, dtype=np.uint8))
    found = read("arrays:a.npz", shape=(4,), preprocess=None, labelled=True, samples=3, seed=1)
    rows = [int(name.removeprefix("row ")) for name in found.names]
    assert rows == sorted(rows)
    assert found.labels is not None
    assert found.labels.tolist() == rows
    assert np.array_equal(found.data, data[rows].astype(np.float32))
    assert found.preprocess is None


def test_an_image_model_also_takes_normalized_floats(tmp_path: Path, read: Open) -> None:
    save(tmp_path / "a.npz", data=np.zeros((2, 3, 8, 8), np.float16))
    found = read("arrays:a.npz")
    assert found.preprocess is None
    assert found.tensor(slice(0, 2)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"data": np.zeros((2, 8, 8, 1), np.uint8)}, r"row 0 has 1 channels .* the model takes 3"),
        ({"data": np.zeros((2, 8, 8, 4), np.uint8)}, r"row 0 has 4 channels .* the model takes 3"),
        ({"data": np.zeros((2, 3, 8, 8), np.uint8)}, r"it looks channels-first"),
        ({"data": np.zeros((2, 8, 8, 3), np.int64)}, r"samples have shape \(8, 8, 3\), the model takes \(3, 8, 8\)"),
        ({"data": np.zeros((2, 3, 8, 8), np.int64)}, "samples are int64, the model takes float32"),
        ({"data": np.zeros((0, 8, 8, 3), np.uint8)}, "the array data of .* is empty"),
        ({"pictures": np.zeros(3)}, "must have one array named data or images or x; it has pictures"),
        ({"data": np.zeros(3), "x": np.zeros(3)}, "must have one array named"),
        ({"data": np.array([{}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_unusable_arrays(tmp_path: Path, read: Open, arrays: dict[str, Any], said: str) -> None:
    save(tmp_path / "a.npz", **arrays)
    with pytest.raises(CalibrationError, match=said):
        read("arrays:a.npz")


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite"), (1e300, "infinite")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, read: Open, value: float, said: str) -> None:
    data = np.zeros((20, 4))
    data[17, 2] = value
    save(tmp_path / "a.npz", data=data)
    with pytest.raises(CalibrationError, match=f"row 17 contains {said}"):
        read("arrays:a.npz", shape=(4,), preprocess=None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, 'no array "labels"'),
        (np.zeros(3, np.int64), r"int64 of shape \(3,\); they must be 2 integers"),
        (np.zeros(2), "float64 of shape"),
        (np.array([0, -1]), "label -1 of row 1 is negative"),
    ],
)
def test_unusable_labels(tmp_path: Path, read: Open, labels: Any, said: str) -> None:
    save(tmp_path / "a.npz", data=np.zeros((2, 4)), **({} if labels is None else {"labels": labels}))
    with pytest.raises(CalibrationError, match=said):
        read("arrays:a.npz", shape=(4,), preprocess=None, labelled=True)


def test_files_that_are_no_npz(tmp_path: Path, read: Open) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        read("arrays:none.npz")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(CalibrationError, match=r"is not an archive of numpy"):
        read("arrays:text.npz")
    save(tmp_path / "cut.npz", data=np.zeros((50, 4)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:900])
    with pytest.raises(CalibrationError, match=r"cannot be read as \.npz"):
        read("arrays:cut.npz")
    np.save(tmp_path / "one.npy", np.zeros((2, 4)))
    with pytest.raises(CalibrationError, match=r"is a single \.npy array"):
        read("arrays:one.npy")


def test_labels_that_are_not_required_are_taken_where_they_are(tmp_path: Path, read: Open, progress: Recorder) -> None:
    data = np.zeros((3, 4), np.float32)
    wanted = {"shape": (4,), "preprocess": None, "labelled": True, "required": False}
    np.savez(tmp_path / "with.npz", data=data, labels=[0, 2, 1])
    np.savez(tmp_path / "without.npz", data=data)
    np.savez(tmp_path / "others.npz", data=data, labels=[0.5, 2.0, 1.0])
    found = read("arrays:with.npz", **wanted)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2, 1]
    assert read("arrays:without.npz", **wanted).labels is None
    assert progress.warnings == []
    assert read("arrays:others.npz", **wanted).labels is None
    assert progress.warnings == [
        "arrays:others.npz: accuracy is not measured: labels are float64 of shape (3,); "
        "they must be 3 integers, one for each sample"
    ]


def test_targets_of_arrays_have_any_shape_and_follow_their_rows(tmp_path: Path, read: Open) -> None:
    wanted = {"shape": (4,), "preprocess": None, "targets": True}
    data, masks = np.arange(40, dtype=np.float32).reshape(10, 4), np.arange(60).reshape(10, 2, 3)
    np.savez(tmp_path / "masks.npz", data=data, targets=masks, labels=np.zeros(10, int))
    found = read("arrays:masks.npz", **wanted, samples=4, seed=3)
    rows = (found.data[:, 0] / 4).astype(int)
    assert found.targets is not None
    assert np.array_equal(found.targets, masks[rows])
    np.savez(tmp_path / "labels.npz", data=data, labels=np.arange(10))
    assert read("arrays:labels.npz", **wanted).targets.tolist() == list(range(10))
    np.savez(tmp_path / "none.npz", data=data)
    with pytest.raises(CalibrationError, match=r'no array "targets" \(or "labels"\), which the metric needs'):
        read("arrays:none.npz", **wanted)
    np.savez(tmp_path / "few.npz", data=data, targets=masks[:9])
    with pytest.raises(CalibrationError, match=r"targets have shape \(9, 2, 3\); their first dimension must be the 10"):
        read("arrays:few.npz", **wanted)
