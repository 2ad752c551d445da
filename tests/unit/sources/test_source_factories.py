"""A factory's data, synthetic data, and a source that is neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.sources.factory import _apart
from helpers.tiny_models import Recorder

Open = Callable[..., Samples]


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


@pytest.mark.parametrize(
    "sample",
    [
        "torch.ones(4).bfloat16()",
        "torch.ones(4, requires_grad=True)",
        '{"input": np.ones(4)}',
        '{"x": torch.ones(4)}, 1',
        "(torch.ones(4),)",
    ],
)
def test_forms_of_a_sample(tmp_path: Path, read: Open, sample: str) -> None:
    factory(tmp_path, f"def make():\n    return [({sample}) for _ in range(3)]")
    found = read("python:data.py:make", shape=(4,), preprocess=None)
    np.testing.assert_array_equal(found.data, np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ('{"pixels": np.ones(4), "label": 1}', "item 0 is a dict with pixels, label, and the model has one input"),
        ("object()", "item 0 is a object, not an array of numbers"),
        ('"row.csv"', "item 0 is a str of <U7, not an array of numbers"),
        ("[[1.0], [1.0, 2.0]], 1", "item 0 is no array: setting an array element with a sequence"),
        ("torch.ones(2, 2).to_sparse()", "item 0 is no array: got a sparse tensor"),
    ],
)
def test_what_is_no_sample_is_named(tmp_path: Path, read: Open, sample: str, message: str) -> None:
    factory(tmp_path, f"def make():\n    return [({sample})]")
    with pytest.raises(CalibrationError, match=message):
        read("python:data.py:make", shape=(4,), preprocess=None)


def test_images_may_be_named_by_their_paths(tmp_path: Path, read: Open) -> None:
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "one.png")
    body = f"def make():\n    yield '{tmp_path}/one.png'\n    yield Path('gone.png')"
    factory(tmp_path, f"from pathlib import Path\n{body}")
    table = {"resize": 4, "crop": 4}
    assert (read("python:data.py:make", shape=(3, 4, 4), preprocess=table, samples=1).data == 7).all()
    with pytest.raises(CalibrationError, match=r"item 1: gone\.png: no such file"):
        read("python:data.py:make", shape=(3, 4, 4), preprocess=table)


def test_a_loader_gives_samples_and_a_dataset_ends_at_its_length(tmp_path: Path, read: Open) -> None:
    """A loader gives batches, and a Dataset need not raise IndexError after its last sample."""
    body = """
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 5
    def __getitem__(self, number):
        return torch.full((4,), float(number % 5)), number % 5
def dataset():
    return Rows()
def loader():
    return torch.utils.data.DataLoader(Rows(), batch_size=2)
class Endless:
    def __getitem__(self, number):
        if number == 5:
            raise IndexError
        return torch.full((4,), float(number)), number
def no_length():
    return Endless()
def by_name():
    return {"data": np.zeros((5, 4))}
"""
    factory(tmp_path, body)
    for name in ("dataset", "loader", "no_length"):
        found = read(f"python:data.py:{name}", shape=(4,), preprocess=None, labelled=True, samples=9)
        np.testing.assert_array_equal(found.data, np.arange(5.0)[:, None].repeat(4, 1))
        assert found.labels is not None
        assert found.labels.tolist() == [0, 1, 2, 3, 4]
    batch = {"x": torch.arange(6.0).reshape(3, 2), "name": ["a", "b", "c"], "pair": [torch.arange(3), torch.arange(3)]}
    assert [each["name"] for each in _apart(batch)] == ["a", "b", "c"]
    assert [each["pair"][1].item() for each in _apart(batch)] == [0, 1, 2]
    with pytest.raises(CalibrationError, match="returned dict") as caught:
        read("python:data.py:by_name", shape=(4,), preprocess=None)
    assert "np.savez" in (caught.value.hint or "")


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
        (
            "class Frame(dict):\n    columns = ['a']\n    def to_dict(self):\n        pass\n"
            "def make():\n    return Frame(a=[1])",
            {},
            "returned Frame",
        ),
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


def test_synthetic_images_look_natural(read: Open, progress: Recorder) -> None:
    found = read("synthetic", shape=(3, 64, 64), preprocess={"crop": 64}, samples=24)
    assert found.data.shape == (24, 64, 64, 3)
    assert found.synthetic
    assert any("good only to measure speed" in warning for warning in progress.warnings)
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
    with pytest.raises(CalibrationError, match='unknown data source "pictures:x"'):
        read("pictures:x")


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
    with pytest.raises(CalibrationError, match="item 1 has no target, which the metric needs"):
        read("python:data.py:some", **wanted)
    with pytest.raises(CalibrationError, match=r"the target of item 1 has shape \(2,\), and that of item 0 \(1,\)"):
        read("python:data.py:ragged", **wanted)
