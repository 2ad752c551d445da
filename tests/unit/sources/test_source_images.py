"""Images as calibration and evaluation data: what comes out, and what is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from helpers.tiny_models import Recorder

Open = Callable[..., Samples]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB", **save: Any) -> Path:
    """Save a random picture and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


def test_nested_images_come_in_the_order_of_their_paths(tmp_path: Path, read: Open) -> None:
    names = ["b.png", "a/z.jpg", "a/deep/y.BMP", "c.webp"]
    for seed, name in enumerate(names):
        picture(tmp_path / "pics" / name, seed)
    (tmp_path / "pics" / "notes.txt").write_text("no image")
    (tmp_path / "pics" / ".hidden.png").write_text("no image")
    found = read("images:pics")
    assert found.names == ("a/deep/y.BMP", "a/z.jpg", "b.png", "c.webp")
    assert found.data.shape == (4, 8, 8, 3)
    assert found.origin == "images:pics"
    spec = PreprocessSpec(resize=8, crop=8)
    for name, pixels in zip(found.names, found.data, strict=True):
        assert np.array_equal(pixels, to_pixels(decode_image(tmp_path / "pics" / name), spec))


def test_the_choice_depends_on_the_seed_alone(tmp_path: Path, read: Open) -> None:
    for index in range(20):
        picture(tmp_path / "pics" / f"{index:02}.png", index)
    first, again, other = (read("images:pics", samples=5, seed=seed) for seed in (1, 1, 2))
    assert first.names == again.names
    assert np.array_equal(first.data, again.data)
    assert first.names != other.names
    assert list(first.names) == sorted(first.names)
    assert len(first) == 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_other_colour_modes_are_converted(tmp_path: Path, read: Open, mode: str) -> None:
    picture(tmp_path / "pics" / "x.tiff", mode=mode)
    assert read("images:pics").data.shape == (1, 8, 8, 3)


def test_grey_models_take_colour_images(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "pics" / "x.png")
    found = read("images:pics", shape=(1, 8, 8), preprocess={"resize": 8, "crop": 8, "mode": "L"})
    assert found.data.shape == (1, 8, 8, 1)


def test_too_few_images_are_a_warning(tmp_path: Path, read: Open, progress: Recorder) -> None:
    picture(tmp_path / "pics" / "x.png")
    assert len(read("images:pics", samples=300)) == 1
    assert progress.warnings == ["images:pics has 1 usable samples; 300 were asked for"]


def test_missing_and_empty_directories(tmp_path: Path, read: Open) -> None:
    with pytest.raises(CalibrationError, match="none is not a directory"):
        read("images:none")
    (tmp_path / "pics").mkdir()
    with pytest.raises(CalibrationError, match="holds no images") as caught:
        read("images:pics")
    assert "is empty" in str(caught.value)
    assert caught.value.exit_code == 4
    (tmp_path / "pics" / "notes.txt").touch()
    with pytest.raises(CalibrationError, match=r"it holds notes\.txt"):
        read("images:pics")


@pytest.fixture
def corrupt(tmp_path: Path) -> Path:
    """Return a directory with six good pictures, a truncated JPEG and a text file called .jpg."""
    folder = tmp_path / "pics"
    for index in range(6):
        picture(folder / f"{index}.jpg", index, size=(64, 64))
    data = (folder / "0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("not an image")
    return folder


def test_corrupt_images_are_all_named(corrupt: Path, read: Open) -> None:
    with pytest.raises(CalibrationError, match="2 of 8 images cannot be used") as caught:
        read("images:pics")
    assert str(corrupt / "cut.jpg") in caught.value.message
    assert str(corrupt / "text.jpg") in caught.value.message
    assert "skip_corrupt = true" in str(caught.value)


def test_corrupt_images_are_skipped_only_on_request(corrupt: Path, read: Open, progress: Recorder) -> None:
    found = read("images:pics", skip_corrupt=True)
    assert found.names == tuple(f"{index}.jpg" for index in range(6))
    assert found.skipped == ("cut.jpg", "text.jpg")
    assert len(progress.warnings) == 2
    assert str(corrupt / "cut.jpg") in progress.warnings[0]


def test_the_next_of_the_draw_replaces_a_skipped_image(corrupt: Path, read: Open) -> None:
    for seed in range(4):
        assert len(read("images:pics", samples=6, seed=seed, skip_corrupt=True)) == 6


def test_nothing_but_corrupt_images(tmp_path: Path, read: Open) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "x.png").write_text("no")
    with pytest.raises(CalibrationError, match="none of the 1 images"):
        read("images:pics", skip_corrupt=True)


def test_an_image_of_another_size_is_named(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "pics" / "a.png", size=(8, 8))
    picture(tmp_path / "pics" / "b.png", size=(9, 8))
    with pytest.raises(CalibrationError, match=r"b\.png is 8 x 9 after \[preprocess\], the model takes 8 x 8"):
        read("images:pics", preprocess={})


def test_links_are_followed_and_loops_are_not(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "real" / "x.png")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    assert read("images:pics").names == ("linked/x.png",)


def test_progress_is_told(tmp_path: Path, read: Open, progress: Recorder) -> None:
    for index in range(3):
        picture(tmp_path / "pics" / f"{index}.png")
    read("images:pics")
    assert progress.steps == [(1, 3), (2, 3), (3, 3)]


# class folders


def test_class_folders_are_counted_in_sorted_order(tmp_path: Path, read: Open) -> None:
    for name in ("dog/1.png", "cat/1.png", "cat/more/2.png", "eel/1.png"):
        picture(tmp_path / "pics" / name)
    found = read("images:pics", labelled=True)
    assert found.labels is not None
    assert list(zip(found.names, found.labels, strict=True)) == [
        ("cat/1.png", 0),
        ("cat/more/2.png", 0),
        ("dog/1.png", 1),
        ("eel/1.png", 2),
    ]
    assert found.class_names == ("cat", "dog", "eel")


def test_folders_named_after_labels_get_the_labels_index(tmp_path: Path, read: Open) -> None:
    for name in ("dog/1.png", "cat/1.png"):
        picture(tmp_path / "pics" / name)
    found = read("images:pics", labelled=True, labels=["dog", "fish", "cat"])
    assert found.labels is not None
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {"cat/1.png": 2, "dog/1.png": 0}
    (tmp_path / "labels.txt").write_text("cat\nfish\ndog\n")
    found = read("images:pics", labelled=True, labels="labels.txt")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 2]


def test_a_subset_of_unnamed_classes_is_refused(tmp_path: Path, read: Open) -> None:
    """Sorted order of some of the classes would give every one of them a wrong index."""
    picture(tmp_path / "pics" / "n01440764" / "1.png")
    with pytest.raises(CalibrationError, match="1 class folders for 3 labels; folders without a label: n01440764"):
        read("images:pics", labelled=True, labels=["tench", "goldfish", "shark"])


def test_an_ambiguous_label_is_refused(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "pics" / "crane" / "1.png")
    with pytest.raises(CalibrationError, match="2 labels are named 'crane'"):
        read("images:pics", labelled=True, labels=["crane", "owl", "crane"])


def test_numbers_in_text_order_are_a_warning(tmp_path: Path, read: Open, progress: Recorder) -> None:
    for index in range(11):
        picture(tmp_path / "pics" / str(index) / "1.png")
    found = read("images:pics", labelled=True)
    assert found.class_names[:3] == ("0", "1", "10")
    assert len(progress.warnings) == 1
    assert "folder 10 is class 2" in progress.warnings[0]


def test_images_without_a_class(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "pics" / "loose.png")
    with pytest.raises(CalibrationError, match=r"1 images are directly in .* \(loose\.png, \.\.\.\)"):
        read("images:pics", labelled=True)


def test_an_empty_class_keeps_its_index(tmp_path: Path, read: Open, progress: Recorder) -> None:
    picture(tmp_path / "pics" / "b" / "1.png")
    (tmp_path / "pics" / "a").mkdir()
    found = read("images:pics", labelled=True)
    assert found.labels is not None
    assert found.labels.tolist() == [1]
    assert progress.warnings == ["images:pics: class folders without images: a"]


def test_images_need_no_folders_where_no_label_is_required(tmp_path: Path, read: Open, progress: Recorder) -> None:
    picture(tmp_path / "pics" / "cat" / "0.png")
    picture(tmp_path / "pics" / "dog" / "0.png")
    labelled = read("images:pics", labelled=True, required=False)
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [0, 1]
    assert read("images:pics", targets=True).targets.tolist() == [0, 1]
    strange = read("images:pics", labelled=True, required=False, labels=["ant", "bee", "cat"])
    assert strange.labels is None
    assert progress.warnings[0].startswith("accuracy is not measured: images:pics: 2 class folders for 3 labels")
    picture(tmp_path / "pics" / "loose.png")
    assert read("images:pics", labelled=True, required=False).labels is None
    with pytest.raises(CalibrationError, match="1 images are directly in"):
        read("images:pics", targets=True)
