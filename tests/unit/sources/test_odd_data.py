"""Data as people have it: names, tables and arrays that are read right, or refused in words."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.comparison.options import image_files
from cpupack.errors import CalibrationError, UsageError
from cpupack.lock.names import candidates, written
from cpupack.recipe.labels import LabelsError, read_labels
from cpupack.runtime.errors import InputError
from cpupack.runtime.names import files_below
from helpers.odd_images import no_images, odd_images
from helpers.tiny_models import Recorder
from helpers.unreadable import make_unreadable

Open = Callable[..., Samples]


def photo(path: Path, colour: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, colour, colour)).save(path, "PNG")


# --- folders of images

NAMES = [
    "a b.png",
    "new\nline.png",
    "é😀.png",
    'quote"\\.png',
    "-dash.PNG",
    "tab\t.png",
    "\udcff\udcfe.png",
    "x" * 200 + ".png",
]


def test_any_name_of_a_file_will_do(tmp_path: Path, read: Open) -> None:
    for number, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, number)
    found = read("images:photos")
    assert sorted(found.names) == sorted(NAMES)
    assert {int(each) for each in found.data[:, 0, 0, 0]} == set(range(len(NAMES)))


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_finds_each_name_again(name: str) -> None:
    written(name).encode("utf-8")  # which is what a lock is written in
    assert name in list(candidates(written(name)))


def test_what_is_no_image_by_its_name_is_left_out_and_said(tmp_path: Path, read: Open, progress: Recorder) -> None:
    photo(tmp_path / "photos" / "a.png")
    for name in ("Thumbs.db", ".hidden.png", "IMG_1.HEIC", "IMG_2.heic", "noext", "rows.h5", "film.mpg", "logo.eps"):
        (tmp_path / "photos" / name).write_bytes(b"x")
    (tmp_path / "photos" / ".cache").mkdir()
    photo(tmp_path / "photos" / ".cache" / "b.png")
    (tmp_path / "photos" / "folder.png").mkdir()
    assert read("images:photos").names == ("a.png",)
    (warned,) = [each for each in progress.warnings if "Pillow" in each]
    assert "2 .heic, 1 .eps left out" in warned
    assert any("1 .db" in each and "without an ending" in each for each in progress.notes)


def test_a_folder_of_heic_alone_says_what_to_do(tmp_path: Path, read: Open) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.HEIC").touch()
    with pytest.raises(CalibrationError) as raised:
        read("images:photos")
    assert "convert its pictures to JPEG or PNG" in (raised.value.hint or "")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, read: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its images would be missed without a word, and the rest calibrate or judge the model."""
    for name in ("one/a.png", "two/b.png"):
        photo(tmp_path / "photos" / name)
    make_unreadable(monkeypatch, tmp_path / "photos/two")
    with pytest.raises(CalibrationError, match="photos/two cannot be read: Permission denied"):
        read("images:photos", samples=1)


def test_a_folder_that_cannot_be_read_is_named_by_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one/a.jpg", "two/b.jpg"):
        photo(tmp_path / name)
    assert len(image_files(tmp_path)) == len(list(files_below(tmp_path))) == 2
    make_unreadable(monkeypatch, tmp_path / "two")
    with pytest.raises(UsageError, match="two cannot be read: Permission denied"):
        image_files(tmp_path)  # of `compare --end-to-end`
    with pytest.raises(InputError, match="two cannot be read: Permission denied"):
        list(files_below(tmp_path))  # of `NAME batch` and `NAME bench`


def test_pipes_links_to_nothing_and_circles(tmp_path: Path, read: Open, progress: Recorder) -> None:
    photo(tmp_path / "photos" / "a.png")
    os.mkfifo(tmp_path / "photos" / "pipe.png")  # reading it would wait for ever
    (tmp_path / "photos" / "gone.png").symlink_to("nothing.png")
    (tmp_path / "photos" / "self.png").symlink_to("self.png")
    (tmp_path / "photos" / "up").symlink_to("..")
    with pytest.raises(CalibrationError) as raised:
        read("images:photos")
    assert "3 of 4 images cannot be used" in raised.value.message
    for words in ("pipe.png is a pipe or a device", "gone.png: no such file", "self.png"):
        assert words in raised.value.message
    assert read("images:photos", skip_corrupt=True).names == ("a.png",)


@pytest.mark.parametrize("folder", ["\udcff", "two\nlines"])
def test_a_class_whose_name_is_no_text(tmp_path: Path, read: Open, folder: str) -> None:
    photo(tmp_path / "photos" / folder / "a.png")
    with pytest.raises(CalibrationError, match="no line of text in UTF-8"):
        read("images:photos", labelled=True)


def test_every_odd_image_calibrates_or_is_named(tmp_path: Path, read: Open, progress: Recorder) -> None:
    good, bad = odd_images(), no_images()
    (tmp_path / "photos").mkdir()
    for name, data in {**good, **{f"bad_{name}": data for name, (data, _) in bad.items()}}.items():
        (tmp_path / "photos" / name).write_bytes(data)
    found = read("images:photos", skip_corrupt=True)
    assert set(found.names) == set(good)
    assert {each.removeprefix("bad_") for each in found.skipped} == {
        name for name in bad if not name.endswith((".heic", ".jxl", ".svg", ".eps", ".h5", ".mpg"))
    }


# --- arrays

FLOATS = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_width_and_order(tmp_path: Path, read: Open, dtype: str, order: str) -> None:
    data = np.asarray(FLOATS.astype(dtype), order=order)  # type: ignore[call-overload]
    np.savez(tmp_path / "d.npz", data=data)
    found = read("arrays:d.npz", preprocess=None).data
    assert found.dtype == np.float32
    assert np.array_equal(found, FLOATS.astype(dtype).astype(np.float32))


def save(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def cut_head(path: Path) -> None:
    """Write an archive whose array has a head that ends in the middle of its shape."""
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", file.getvalue().replace(b"(2, 3)", b"(2, (3"))


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"no array")  # numpy gives its bytes


@pytest.mark.parametrize(
    ("make", "words", "hint"),
    [
        (lambda path: save(path, data=np.array([1, None], object)), "pickles and not run", "numbers"),
        (lambda path: path.write_bytes(pickle.dumps({"data": 1})), "not an archive of numpy", "savez"),
        (lambda path: path.write_text("1,2,3"), "not an archive of numpy", "savez"),
        (lambda path: cut_head(path), "cannot be read as .npz", ""),
        (lambda path: no_array(path), "data is no array", ""),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "format"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "pointer of Git LFS", "pull"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "an HTML page", "download"),
        (lambda path: path.write_bytes(b"\x93NUMPY\1\0"), "single .npy array", "savez"),
        (lambda path: save(path, **{f"a{n}": FLOATS for n in range(40)}), "and 32 more", "savez"),
    ],
)
def test_files_that_hold_no_samples(tmp_path: Path, read: Open, make: Callable, words: str, hint: str) -> None:
    make(tmp_path / "d.npz")
    with pytest.raises(CalibrationError, match=words) as raised:
        read("arrays:d.npz", preprocess=None)
    assert hint in (raised.value.hint or "")
    assert "allow_pickle" not in raised.value.message


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(4, dtype=np.uint64) + 2**63, "no class of any model"),  # as int64 they would be negative
        (np.arange(4, dtype=np.float64), "must be 4 integers"),
        (np.arange(4) - 1, "is negative"),
        (np.arange(3), "must be 4 integers"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, read: Open, labels: np.ndarray, words: str) -> None:
    np.savez(tmp_path / "d.npz", data=FLOATS, labels=labels)
    with pytest.raises(CalibrationError, match=words) as raised:
        read("arrays:d.npz", preprocess=None, labelled=True)
    assert (raised.value.hint is not None) == (labels.dtype.kind == "f")


NORMAL = {"resize": 8, "crop": 8, "mean": [0.5], "std": [0.25]}


@pytest.mark.parametrize(("low", "high", "warned"), [(-2, 2, False), (-3, 3, False), (0, 1, True), (0, 255, True)])
def test_floats_that_look_like_pixels_are_said(
    tmp_path: Path, read: Open, progress: Recorder, low: float, high: float, warned: bool
) -> None:
    """(0 - 0.5) / 0.25 is -2, (1 - 0.5) / 0.25 is 2. Floats are not normalized, so pixels as floats are a mistake."""
    data = np.linspace(low, high, FLOATS.size, dtype=np.float32).reshape(FLOATS.shape)
    np.savez(tmp_path / "d.npz", data=data)
    assert np.array_equal(read("arrays:d.npz", preprocess=NORMAL).data, data)
    assert any("are not normalized" in each for each in progress.warnings) == warned


@pytest.mark.parametrize("preprocess", [None, {"resize": 8, "crop": 8}])
def test_absurd_numbers_of_samples_are_refused_before_memory_is_taken(
    read: Open, preprocess: dict[str, Any] | None
) -> None:
    with pytest.raises(CalibrationError, match="GiB of memory"):
        read("synthetic", samples=2**31 - 1, preprocess=preprocess)


# --- labels


@pytest.mark.parametrize(
    "data",
    [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat \ndog\t\n\n \n", b"cat\rdog"],
    ids=["plain", "windows", "blank ends", "old mac"],
)
def test_labels_are_the_same_from_any_editor(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    assert read_labels(tmp_path / "labels.txt") == ("cat", "dog")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("cat\ndog\n".encode("utf-16"), "is not UTF-8 text"),
        ("Bär\n".encode("latin-1"), r"is not UTF-8 text \(byte 1\)"),
        (b"cat\n\ndog\n", "line 2 is empty"),
    ],
)
def test_labels_that_cannot_be_right(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    with pytest.raises(LabelsError, match=words):
        read_labels(tmp_path / "labels.txt")


def test_folders_fit_labels_with_a_byte_order_mark(tmp_path: Path, read: Open) -> None:
    """With the mark in the first label, the folder would have no label: dog would become class 0."""
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbfzebra\r\ndog\r\n")
    for folder in ("zebra", "dog"):
        photo(tmp_path / "photos" / folder / "a.png")
    found = read("images:photos", labels="labels.txt", labelled=True)
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"zebra/a.png": 0, "dog/a.png": 1}
