"""Calibration and evaluation data through ``open_source``: what comes out, and what is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.progress import SilentProgress
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from cpupack.sources import open_source

Open = Callable[..., Samples]


class Recorder(SilentProgress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int]] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, done: int, total: int, what: str = "") -> None:
        self.steps.append((done, total))


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def read(tmp_path: Path, progress: Recorder) -> Open:
    """Return a function that opens a source of a recipe in ``tmp_path``; keywords change the model or the request."""

    def open_it(
        spec: str,
        *,
        shape: tuple[int, ...] = (3, 8, 8),
        preprocess: dict[str, Any] | None = {"resize": 8, "crop": 8},  # noqa: B006 - never written to
        labels: list[str] | str | None = None,
        samples: int | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
        labelled: bool = False,
        required: bool = True,
        targets: bool = False,
    ) -> Samples:
        data: dict[str, Any] = {
            "schema": 1,
            "package": {"name": "net"},
            "model": {"source": "python:net.py:make", "weights": "random", "input_shape": list(shape)},
        }
        if labels is not None:
            data["model"]["labels"] = labels
        if preprocess is not None:
            data["preprocess"] = preprocess
        loaded = LoadedRecipe(recipe=Recipe.model_validate(data), path=tmp_path / "recipe.toml", text="")
        return open_source(
            spec,
            loaded,
            samples=samples,
            seed=seed,
            skip_corrupt=skip_corrupt,
            labelled=labelled,
            progress=progress,
            required=required,
            targets=targets,
        )

    return open_it


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB", **save: Any) -> Path:
    """Save a random picture and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


# images


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
    with pytest.raises(CalibrationError, match="1 class folders for 3 labels, and some are no label: n01440764"):
        read("images:pics", labelled=True, labels=["tench", "goldfish", "shark"])


def test_an_ambiguous_label_is_refused(tmp_path: Path, read: Open) -> None:
    picture(tmp_path / "pics" / "crane" / "1.png")
    with pytest.raises(CalibrationError, match="'crane' is the name of 2 labels"):
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


# arrays


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
    with pytest.raises(CalibrationError, match=r"cannot be read as \.npz"):
        read("arrays:text.npz")
    save(tmp_path / "cut.npz", data=np.zeros((50, 4)))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:900])
    with pytest.raises(CalibrationError, match=r"cannot be read as \.npz"):
        read("arrays:cut.npz")
    np.save(tmp_path / "one.npy", np.zeros((2, 4)))
    with pytest.raises(CalibrationError, match=r"is a single \.npy array"):
        read("arrays:one.npy")


# python factories


def factory(directory: Path, body: str) -> None:
    (directory / "data.py").write_text(f"import numpy as np\nimport torch\nfrom PIL import Image\n{body}\n")


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("def make():\n    return np.arange(12.0).reshape(3, 4)", {}),
        ("def make():\n    return torch.arange(12.0).reshape(3, 4)", {}),
        ("def make():\n    for row in np.arange(12.0).reshape(3, 4):\n        yield row, 1", {"labelled": True}),
        ("def make():\n    while True:\n        yield np.ones(4)", {"samples": 3}),
        (
            "class make(torch.utils.data.TensorDataset):\n"
            "    def __init__(self):\n        super().__init__(torch.zeros(3, 4), torch.tensor([1, 1, 1]))",
            {"labelled": True},
        ),
    ],
)
def test_factories(tmp_path: Path, read: Open, body: str, options: dict[str, Any]) -> None:
    factory(tmp_path, body)
    found = read("python:data.py:make", shape=(4,), preprocess=None, **options)
    assert found.data.shape == (3, 4)
    assert found.data.dtype == np.float32
    assert (found.labels is not None) == bool(options.get("labelled"))
    if found.labels is not None:
        assert found.labels.tolist() == [1, 1, 1]


def test_factories_may_give_pixels(tmp_path: Path, read: Open) -> None:
    factory(tmp_path, "def make():\n    yield Image.new('L', (20, 30))\n    yield np.zeros((8, 8, 3), np.uint8)")
    assert read("python:data.py:make").data.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        ("def other():\n    pass", {}, "'make'"),
        (
            "def make():\n    raise KeyError('gone')",
            {},
            r"make failed: KeyError: 'gone' \(.*data\.py:5: raise KeyError",
        ),
        ("def make():\n    yield np.zeros(4)\n    1 / 0", {}, r"ZeroDivisionError: .*data\.py:6: 1 / 0"),
        ("def make():\n    return 3", {}, "returned int"),
        ("def make():\n    return []", {}, "gave no samples"),
        ("def make():\n    return [np.zeros(5)]", {}, r"samples have shape \(5,\), the model takes \(4,\)"),
        ("def make():\n    return [np.zeros(4), np.full(4, np.nan)]", {}, "item 1 contains NaN"),
        ("def make():\n    return [np.zeros(4)]", {"labelled": True}, "item 0 has no label"),
        ("def make():\n    return [(np.zeros(4), 'cat')]", {"labelled": True}, "the label of item 0 is 'cat'"),
        ("def make():\n    return [Image.new('L', (4, 4))]", {}, r"item 0 is a PIL image, and the recipe has no"),
        ("1 / 0", {}, "importing .*data.py failed: ZeroDivisionError"),
    ],
)
def test_unusable_factories(tmp_path: Path, read: Open, body: str, options: dict[str, Any], said: str) -> None:
    factory(tmp_path, body)
    with pytest.raises(CalibrationError, match=said) as caught:
        read("python:data.py:make", shape=(4,), preprocess=None, **options)
    assert caught.value.exit_code == 4


# synthetic


def test_synthetic_images_look_natural(read: Open, progress: Recorder) -> None:
    found = read("synthetic", shape=(3, 64, 64), preprocess={"crop": 64}, samples=24)
    assert found.data.shape == (24, 64, 64, 3)
    assert found.synthetic
    assert any("speed work only" in warning for warning in progress.warnings)
    grey = found.data.mean(axis=-1)
    # Neighbouring pixels of photographs correlate above 0.9 (Field 1987); those of white noise do not.
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    correlation = (centred[:, :, 1:] * centred[:, :, :-1]).mean() / (centred**2).mean()
    assert correlation > 0.85
    # Amplitude falls about as 1/f: fit log amplitude over log frequency, over all images.
    spectrum = np.abs(np.fft.rfft2(centred)).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64)[None, :])
    band = (frequency > 2 / 64) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(spectrum[band]), 1)[0]
    assert -1.7 < slope < -0.7
    # Channels go together, and the range of pixels is used without being clipped away.
    red, green = (centred_channel(found.data, channel) for channel in (0, 1))
    assert (red * green).mean() / np.sqrt((red**2).mean() * (green**2).mean()) > 0.7
    assert 60 < found.data.mean() < 170
    assert ((found.data == 0) | (found.data == 255)).mean() < 0.15


def centred_channel(data: np.ndarray[Any, Any], channel: int) -> np.ndarray[Any, Any]:
    values = data[..., channel].astype(np.float64)
    return np.asarray(values - values.mean(axis=(1, 2), keepdims=True))


def test_synthetic_samples_depend_on_seed_and_index_alone(read: Open) -> None:
    few, many, other = (read("synthetic", samples=count, seed=seed) for count, seed in ((3, 5), (6, 5), (3, 6)))
    assert np.array_equal(few.data, many.data[:3])
    assert not np.array_equal(few.data, other.data)
    assert not np.array_equal(few.data[0], few.data[1])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_synthetic_images_of_any_size(read: Open, size: int) -> None:
    found = read("synthetic", shape=(1, size, size + 1), preprocess={"mode": "L", "crop": [size, size + 1]}, samples=2)
    assert found.data.shape == (2, size, size + 1, 1)


def test_synthetic_arrays_are_standard_normal(read: Open) -> None:
    found = read("synthetic", shape=(50,), preprocess=None, samples=200)
    assert found.data.dtype == np.float32
    # 10000 values: five standard errors of the mean are 0.05, of the deviation 0.035.
    assert abs(found.data.mean()) < 0.05
    assert abs(found.data.std() - 1) < 0.035


def test_synthetic_data_has_no_labels(read: Open) -> None:
    with pytest.raises(CalibrationError, match="no labels of its own"):
        read("synthetic", samples=2, labelled=True)


def test_unknown_source(read: Open) -> None:
    with pytest.raises(CalibrationError, match='no data source "pictures:x"'):
        read("pictures:x")


# labels that no gate needs, and targets


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
    with pytest.raises(CalibrationError, match=r'no array "targets" \(or "labels"\), and the metric needs one'):
        read("arrays:none.npz", **wanted)
    np.savez(tmp_path / "few.npz", data=data, targets=masks[:9])
    with pytest.raises(CalibrationError, match=r"targets have shape \(9, 2, 3\); their first dimension must be the 10"):
        read("arrays:few.npz", **wanted)


def test_targets_of_a_factory(tmp_path: Path, read: Open) -> None:
    wanted = {"shape": (4,), "preprocess": None, "labelled": True, "required": False, "targets": True}
    (tmp_path / "data.py").write_text(
        "import numpy as np\n"
        "def boxes():\n    yield from ((np.zeros(4, np.float32), np.full((2, 4), n)) for n in range(3))\n"
        "def some():\n    yield np.zeros(4, np.float32), 1.5\n    yield np.zeros(4, np.float32)\n"
        "def ragged():\n    yield from ((np.zeros(4, np.float32), np.zeros(n)) for n in (1, 2))\n"
    )
    found = read("python:data.py:boxes", **wanted)
    assert found.labels is None
    assert found.targets is not None
    assert found.targets[:, 0, 0].tolist() == [0, 1, 2]
    with pytest.raises(CalibrationError, match="item 1 has no target, and the metric needs one"):
        read("python:data.py:some", **wanted)
    with pytest.raises(CalibrationError, match=r"the target of item 1 has shape \(2,\), and that of item 0 \(1,\)"):
        read("python:data.py:ragged", **wanted)
