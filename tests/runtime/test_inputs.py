"""What a user may hand over: each kind of input works, or fails with one line that names it and says what to do."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.arrays import MOST_FLOAT
from cpupack.runtime.errors import InputError, RunnerError
from cpupack.runtime.images import fast, preprocess
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels
from cpupack.runtime.rows import array_of
from cpupack.runtime.runner import Runner
from cpupack.runtime.tensor_spec import TensorSpec
from helpers.tiny_package import INPUT_SHAPE, PREPROCESS, RUNTIME
from helpers.waiting import PATIENCE_S

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SPEC = PreprocessSpec.from_dict(PREPROCESS)


def encoded(kind: str = "PNG", image: Image.Image | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes | None = None) -> Image.Image:
    return Image.open(io.BytesIO(data or encoded()))


@pytest.fixture(scope="module")
def runner(package_dir: Path) -> Iterator[Runner]:
    with Runner(package_dir, threads=1, instances=2, batch_size=4) as runner:
        yield runner


@pytest.fixture(scope="module")
def array_runner(array_package_dir: Path) -> Iterator[Runner]:
    with Runner(array_package_dir, threads=1, instances=1) as runner:
        yield runner


def fails(call: Callable[[], Any], match: str) -> None:
    """It is an InputError of one line. Messages of other libraries are in it, none instead of it."""
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- every way to give the same image ----


def test_every_source_of_an_image_gives_the_same_answer(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())

    class OwnPath:
        def __fspath__(self) -> str:
            return str(path)

    sources = [
        path, str(path), OwnPath(), encoded(), bytearray(encoded()), memoryview(encoded()), io.BytesIO(encoded()),
        opened(), Image.fromarray(PIXELS), PIXELS,
    ]  # fmt: skip
    wanted = runner.predict(PIXELS)
    assert runner.predict(sources) == [wanted] * len(sources)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        assert [runner.predict(file), runner.predict(raw)] == [wanted, wanted]


def test_pixels_may_be_a_tensor(runner: Runner) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    assert runner.predict(torch.from_numpy(pixels)) == runner.predict(pixels)


def test_one_object_given_many_times_is_decoded_once(runner: Runner) -> None:
    wanted = runner.predict(PIXELS)
    assert (
        runner.predict([opened()] * 1 + [image := opened()] * 20 + [file := io.BytesIO(encoded())] * 20)
        == [wanted] * 41
    )
    assert image.size == (32, 24)
    assert file.tell() == len(encoded())


# ---- images that cannot be decoded ----


def test_pil_images_that_cannot_be_decoded_say_so(runner: Runner) -> None:
    fails(lambda: runner.predict(opened(encoded()[:200])), "^PIL image cannot be decoded: .*truncated")
    closed = opened()
    closed.close()
    fails(lambda: runner.predict(closed), "^PIL image cannot be decoded: ")
    lost = opened()
    lost.fp.close()
    fails(lambda: runner.predict([PIXELS, lost]), "^input 1: PIL image cannot be decoded: ")
    fails(lambda: runner.predict(Image.new("F", (32, 32))), "'F' pixels of unknown range")


def test_lack_of_memory_is_no_damage_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders raise MemoryError for both. The file was said to be damaged, or closed."""

    def load(_: Any) -> None:
        raise MemoryError

    data, image = encoded(), Image.new("RGB", (8, 4))
    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    fails(lambda: decode_image(data), "damaged")
    fails(lambda: decode_image(image), "damaged")
    monkeypatch.setattr(preprocess, "lacks_memory", lambda error, image: True)
    fails(lambda: decode_image(data), r"cannot be decoded: not enough memory for its \d+ x \d+ pixels$")
    fails(lambda: decode_image(image), "^PIL image cannot be decoded: not enough memory for its 8 x 4 pixels$")
    monkeypatch.undo()
    assert not preprocess.lacks_memory(MemoryError(), image)
    assert not preprocess.lacks_memory(ValueError(), image)
    image._size = (2**24, 2**24)
    assert preprocess.lacks_memory(MemoryError(), image)


def test_a_pil_image_names_its_file(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(encoded()[:200])
    with Image.open(path) as cut:
        fails(lambda: runner.predict(cut), f"^PIL image {path} cannot be decoded")


def test_the_input_of_a_list_is_named(runner: Runner) -> None:
    fails(lambda: runner.predict([PIXELS, b"nothing", PIXELS]), "^input 1: image of 7 bytes is not an image")
    fails(
        lambda: runner.predict([PIXELS, PIXELS, None]), "^input 2: cannot read an image from NoneType; expected a path"
    )
    fails(lambda: runner.predict([PIXELS, 7]), "^input 1: cannot read an image from int")


def test_files_that_give_no_bytes_say_what_to_do(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    with path.open("rb") as file:
        file.read()
        fails(lambda: runner.predict(file), r"a\.png is empty, or was read to its end already: seek\(0\)")
    fails(lambda: runner.predict(file), r"a\.png cannot be read: read of closed file")
    fails(lambda: runner.predict(io.StringIO("text")), r"StringIO object gives str; open it in binary mode")
    with path.open("wb") as writing:
        fails(lambda: runner.predict(writing), r"a\.png cannot be read: ")


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("https://example.org/a.jpg", r"^https://example\.org/a\.jpg: no such file; it looks like a URL"),
        ("s3://bucket/a.jpg", r"^s3://bucket/a\.jpg: no such file; it looks like a URL"),
        ("data:image/png;base64,AA", r"no such file; it looks like a data URL: decode its base64"),
        ("", "^the path of an input is empty$"),
        ("a\0b.png", r"^'a\\x00b\.png' is not a path: embedded null byte"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("/", "is a directory"),
    ],
)
def test_paths_that_name_no_file(runner: Runner, path: str, match: str) -> None:
    fails(lambda: runner.predict(path), match)


# ---- limits ----


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def black_png(width: int, height: int) -> bytes:
    """A small file of a large grey image, compressed a row at a time."""
    packer, parts = zlib.compressobj(9), []
    for _ in range(height):
        parts.append(packer.compress(bytes(width + 1)))
    header = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"".join(parts) + packer.flush()) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20000, 1), (1, 20000)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_of_a_long_image_only_what_the_crop_keeps_is_computed(size: tuple[int, int], interpolation: str) -> None:
    """Resized whole it would have 256 x 5,120,000 pixels of 3 bytes, 3.9 GB."""
    spec = PreprocessSpec(resize=256, crop=224, interpolation=interpolation)
    ramp = np.linspace(0, 255, 20000).astype(np.uint8)
    image = Image.fromarray(np.repeat(ramp[:, None], 3, 1).reshape(size[1], size[0], 3))
    tracemalloc.start()
    try:
        for found in (fast.load_pixels(encoded(image=image), spec), to_pixels(image, spec)):
            assert found.shape == (224, 224, 3)
            # The crop is the middle: 224 of 5,120,000 columns are less than one of 20,000 source pixels.
            assert np.abs(found.astype(int) - 127).max() <= 1
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_part_equals_the_same_part_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one level: the factors of a part are rounded once more. The nearest filter may take the next pixel."""
    spec = PreprocessSpec(resize=40, crop=(32, 48))
    image = Image.fromarray(PIXELS)
    whole = to_pixels(image, spec)
    monkeypatch.setattr(preprocess, "MAX_WHOLE_PIXELS", 40 * 53 - 1)  # 24 x 32 is resized to 40 x 53
    assert np.abs(to_pixels(image, spec).astype(int) - whole).max() <= 1


def test_a_crop_wider_than_a_long_image_still_gets_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PreprocessSpec(resize=16, crop=(24, 24))
    image = Image.fromarray(np.full((4, 400, 3), 200, np.uint8))
    whole = to_pixels(image, spec)
    monkeypatch.setattr(preprocess, "MAX_WHOLE_PIXELS", 24 * 24)
    np.testing.assert_array_equal(to_pixels(image, spec), whole)
    assert whole[0].max() == 0
    assert whole[12].min() == 200


def test_pixels_that_resizing_would_make_are_limited() -> None:
    image = Image.fromarray(np.zeros((1, 20000, 3), np.uint8))
    spec = PreprocessSpec(resize=256)
    fails(
        lambda: to_pixels(image, spec), r"20000 x 1 pixels would be resized to 5120000 x 256; at most 16,777,216 pixels"
    )
    fails(lambda: fast.load_pixels(np.asarray(image), spec), "at most 16,777,216 pixels are made")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_of_a_file_are_limited_even_where_pillows_limit_is_lifted(
    monkeypatch: pytest.MonkeyPatch, runner: Runner
) -> None:
    bomb = black_png(60000, 3000)
    assert len(bomb) < 300_000
    fails(lambda: runner.predict(bomb), "too large|60000 x 3000 pixels")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    fails(lambda: runner.predict(bomb), "has 60000 x 3000 pixels; at most 178,956,970 are decoded")
    fails(lambda: runner.predict(Image.open(io.BytesIO(bomb))), "^PIL image has 60000 x 3000 pixels")


def test_bytes_are_limited(monkeypatch: pytest.MonkeyPatch, runner: Runner) -> None:
    monkeypatch.setattr(preprocess, "MAX_BYTES", 3 * 2**20)
    fails(lambda: runner.predict("/dev/zero"), "^/dev/zero has more than 3,145,728 bytes")
    fails(lambda: runner.predict(bytes(3 * 2**20 + 1)), "has more than 3,145,728 bytes")


def test_of_a_film_only_the_first_frame_is_decoded(runner: Runner) -> None:
    frames = [Image.fromarray(np.full((24, 32, 3), 3 * number, np.uint8)) for number in range(60)]
    file = io.BytesIO()
    frames[20].save(file, "GIF", save_all=True, append_images=frames)
    pixels = decode_image(file.getvalue()).convert("RGB")
    assert np.asarray(pixels).max() == 60
    assert len(runner.predict(file.getvalue())) == 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_every_mode_of_pixels_gives_an_answer(runner: Runner, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(runner.predict(Image.new(mode, (32, 24)))) == 4


def test_exif_turns_before_the_crop(runner: Runner) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the upright image is the stored one turned clockwise
    stored = Image.fromarray(PIXELS)
    assert runner.predict(encoded("PNG", stored, exif=exif)) == runner.predict(np.rot90(PIXELS, -1).copy())


# ---- numbers ----


@pytest.mark.parametrize("value", [2.5, "2", True, 0, -1, np.float64(2), [2], np.bool_(True)])
def test_numbers_that_are_no_whole_numbers_from_one_are_refused(
    runner: Runner, package_dir: Path, value: object
) -> None:
    for name in ("top_k", "batch_size"):
        fails(lambda name=name: runner.predict(PIXELS, **{name: value}), f"^{name} is .*whole number from 1")
    for name in ("threads", "instances", "batch_size"):
        fails(lambda name=name: Runner(package_dir, **{name: value}), f"^{name} is .*whole number from 1")


def test_numpys_whole_numbers_are_numbers(runner: Runner, package_dir: Path) -> None:
    assert len(runner.predict(PIXELS, top_k=np.int64(2), batch_size=np.uint8(3))) == 2
    with Runner(package_dir, threads=np.int32(1), instances=np.int64(1), batch_size=None) as other:
        assert (other.plan.threads, other.plan.instances) == (1, 1)
    fails(lambda: runner.predict(PIXELS, top_k=None), "top_k is None")


@pytest.mark.parametrize(("name", "most"), [("threads", 1024), ("instances", 1024), ("batch_size", 65536)])
def test_numbers_have_a_limit_that_is_said(package_dir: Path, name: str, most: int) -> None:
    fails(lambda: Runner(package_dir, **{name: most + 1}), f"{name} is {most + 1}; at most {most} is possible")


# ---- values that INT8 cannot hold ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -2 * MOST_FLOAT])
def test_float_input_that_is_not_finite_is_refused(
    array_runner: Runner, array_package_dir: Path, tmp_path: Path, value: float
) -> None:
    batch = np.zeros((3, *INPUT_SHAPE), np.float32)
    batch[1, 2, 3, 4] = value
    fails(
        lambda: array_runner(batch),
        r"^sample 1 of the batch has -?(nan|inf|3e\+38|3\.0.*e\+38|2.*e\+30); float input must be",
    )
    fails(lambda: array_runner.predict(list(batch)), "^input 1: the array: it has a value that is not finite")
    np.save(tmp_path / "a.npy", batch[1])
    fails(lambda: array_runner.predict(tmp_path / "a.npy"), r"a\.npy: it has a value that is not finite")
    with Runner(array_package_dir, threads=1, instances=1, check_finite=False) as unchecked:
        assert unchecked(batch).shape == (3, 4)


def test_the_largest_values_are_taken(array_runner: Runner) -> None:
    assert array_runner(np.full((1, *INPUT_SHAPE), MOST_FLOAT, np.float32)).shape == (1, 4)


def test_other_forms_of_the_same_numbers_change_nothing(array_runner: Runner, tmp_path: Path) -> None:
    """Files of other programs have ``>f4``, float32 with the first byte of each number in front; JSON has lists."""
    batch = np.random.default_rng(0).standard_normal((2, *INPUT_SHAPE)).astype(np.float32)
    turned = batch.astype(">f4")
    np.testing.assert_array_equal(array_runner(turned), array_runner(batch))
    np.save(tmp_path / "turned.npy", turned[0])
    for one in (turned[0], tmp_path / "turned.npy", {"input": batch[0].tolist()}):
        assert array_runner.predict(one) == array_runner.predict(batch[0])
    assert np.array_equal(array_of(TensorSpec("ids", (2,), "int64"), np.array([[1, 2]], ">i8")), [[1, 2]])
    assert array_of(TensorSpec("x", (2,)), np.array([[1, 2]], ">f4")).dtype == np.float32


def test_a_directory_is_no_array(array_runner: Runner, tmp_path: Path) -> None:
    fails(lambda: array_runner.predict(tmp_path), f"{tmp_path} is a directory; this model takes .npy files")


def test_masked_arrays_are_refused_because_their_mask_would_be_lost(array_runner: Runner) -> None:
    masked = np.ma.masked_array(np.zeros((1, *INPUT_SHAPE), np.float32), mask=True)
    fails(lambda: array_runner(masked), "got MaskedArray; expected a torch tensor or a plain numpy array")


# ---- other processes and copies ----


def test_a_copied_runner_opens_the_package_again(runner: Runner) -> None:
    for other in (copy.deepcopy(runner), copy.copy(runner), pickle.loads(pickle.dumps(runner))):
        with other:
            assert other is not runner
            assert other.plan == runner.plan
            assert other.predict(PIXELS) == runner.predict(PIXELS)
    assert len(runner.predict(PIXELS)) == 4


def test_a_runner_works_in_a_spawned_process(package_dir: Path) -> None:
    """As multiprocessing, Ray and joblib send it: the class comes from the package, which must be importable there."""
    code = (
        "import multiprocessing, sys; import numpy as np; import tiny_int8\n"
        "def work(runner): return runner.predict(np.zeros((20, 20, 3), np.uint8))\n"
        "if __name__ == '__main__':\n"
        "    with tiny_int8.Runner(threads=1, instances=1) as runner:\n"
        "        with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "            print(pool.apply(work, (runner,)) == work(runner))\n"
    )
    script = package_dir.parent / f"spawn_{os.getpid()}.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(package_dir.parent)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert RUNTIME.is_dir()


def test_a_pickled_runner_says_when_the_package_changed(
    runner: Runner, edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(runner)
    other = edited(version="1.0.1")
    monkeypatch.setattr(Runner, "_place", lambda _self: (other,))
    moved = pickle.dumps(runner)
    with pytest.raises(RunnerError, match=r"pickled for tiny-int8 1\.0\.0, and this process has tiny-int8 1\.0\.1"):
        pickle.loads(moved)
    pickle.loads(data).close()
