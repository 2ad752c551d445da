"""The runner's fast way to pixels, compared with the reference preprocessing within the stated bounds."""

from __future__ import annotations

import ctypes
import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime.engine import library as native_library
from cpupack.runtime.errors import InputError
from cpupack.runtime.images import fast, preprocess, resize
from cpupack.runtime.images.preprocess import PreprocessSpec

needs_kernels = pytest.mark.skipif(native_library.describe()["problem"] is not None, reason="needs the native kernels")
SPEC = PreprocessSpec(resize=64, crop=56)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return RGB with shapes, edges and some noise at every scale, as photographs have."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / min(width, height)
    waves = [127 + 90 * np.sin(a * x + b * y + c) for a, b, c in random.uniform(-12, 12, (3, 3))]
    pixels = np.stack(waves, axis=-1)
    for _ in range(12):
        top, left = random.integers(0, height), random.integers(0, width)
        rows, columns = random.integers(1, 2 + height // 3), random.integers(1, 2 + width // 3)
        pixels[top : top + rows, left : left + columns] = random.integers(0, 256, 3)
    return (pixels + random.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def reference(source: object, spec: PreprocessSpec = SPEC) -> np.ndarray:
    return preprocess.to_pixels(preprocess.decode_image(source), spec)


def difference(source: object, spec: PreprocessSpec = SPEC) -> np.ndarray:
    found, expected = fast.load_pixels(source, spec), reference(source, spec)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, expected.shape, True)
    return np.abs(found.astype(int) - expected)


@pytest.fixture(params=["kernels", "pillow"])
def resizer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Resize with the native kernels, or as on a host without them."""
    if request.param == "pillow":
        monkeypatch.setattr(fast, "_library", lambda: None)
    elif native_library.describe()["problem"] is not None:
        pytest.skip("needs the native kernels")
    return request.param


@pytest.mark.parametrize(("width", "height"), [(160, 120), (120, 160), (100, 64), (64, 64), (60, 70), (501, 63)])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpegs_differ_by_a_level_at_most(resizer: str, width: int, height: int, subsampling: str) -> None:
    data = jpeg(picture(width, height), subsampling=subsampling)
    assert difference(data).max() <= fast.EXACT_BOUND


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic", "lanczos"])
@pytest.mark.parametrize(("width", "height"), [(160, 120), (120, 160), (90, 179), (60, 190), (180, 70), (41, 33)])
def test_other_filters_are_pillows(interpolation: str, width: int, height: int) -> None:
    for spec in (
        PreprocessSpec(resize=64, crop=56, interpolation=interpolation),
        PreprocessSpec(resize=(30, 70), interpolation=interpolation),
    ):
        assert difference((picture(width, height) >> 7) * np.uint8(255), spec).max() <= fast.EXACT_BOUND


@pytest.mark.parametrize(("factor", "side"), [(2, 400), (4, 800), (8, 1600)])
def test_large_jpegs_are_decoded_smaller_within_the_bound(resizer: str, factor: int, side: int) -> None:
    width, height = side * 4 // 3, side
    target = preprocess.resized_size(width, height, SPEC)
    assert fast._reduction((width, height), target) == factor
    found = difference(jpeg(picture(width, height)))
    assert 0 < found.mean() <= fast.REDUCED_MEAN_BOUND


def test_a_jpeg_is_decoded_whole_when_little_would_be_left() -> None:
    wide = int(64 * 2 * fast.REDUCED_GAP) - 1
    assert fast._reduction((wide, wide), (64, 64)) == 1
    assert fast._reduction((wide + 1, wide + 1), (64, 64)) == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert difference(jpeg(picture(160, 100), exif=exif)).max() <= fast.EXACT_BOUND


@pytest.mark.parametrize(
    ("width", "height", "spec"),
    [
        (40, 30, PreprocessSpec(crop=56)),  # a border around it
        (100, 90, PreprocessSpec(crop=(50, 60))),
        (100, 90, PreprocessSpec(resize=(48, 64))),
        (100, 90, PreprocessSpec(resize=(90, 100), crop=80)),  # the size it has
        (30, 20, PreprocessSpec(resize=64, crop=56)),  # enlarged
        (100, 90, PreprocessSpec()),
        (100, 90, PreprocessSpec(resize=64, crop=56, mode="L")),
        (100, 90, PreprocessSpec(resize=64, crop=56, mode="BGR")),
        (40, 100, PreprocessSpec(resize=64, crop=(90, 56))),  # a border above, a crop at the sides
        (100, 90, PreprocessSpec(resize=(48, 64), fit="pad", pad_value=(114,))),
        (120, 40, PreprocessSpec(resize=(48, 64), fit="pad", pad_value=(1, 2, 3), mode="BGR")),
        (30, 20, PreprocessSpec(resize=(48, 64), fit="pad", place="start")),  # enlarged
    ],
)
def test_every_recipe(resizer: str, width: int, height: int, spec: PreprocessSpec) -> None:
    assert difference(jpeg(picture(width, height)), spec).max() <= fast.EXACT_BOUND


def test_other_images(resizer: str) -> None:
    pixels = picture(120, 90)
    grey = io.BytesIO()
    Image.fromarray(pixels).convert("L").save(grey, "JPEG")
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    read_only = pixels[::2, ::-1]
    read_only.flags.writeable = False
    sources = [grey.getvalue(), cmyk.getvalue(), png.getvalue(), pixels, read_only, pixels[..., 0]]
    for source in [*sources, Image.fromarray(pixels), memoryview(png.getvalue())]:
        assert difference(source).max() <= fast.EXACT_BOUND


def test_the_answer_is_the_callers_own() -> None:
    """The memory that a thread keeps for its next image is never part of a result."""
    specs = [SPEC, PreprocessSpec(), PreprocessSpec(crop=40)]
    for spec in specs:
        first = fast.load_pixels(jpeg(picture(90, 80)), spec)
        kept = first.copy()
        fast.load_pixels(jpeg(picture(90, 80, seed=1)), spec)
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("cut", [3, 20, 300, -200])
def test_damaged_files_fail_as_in_the_reference(cut: int) -> None:
    data = jpeg(picture(160, 120))[:cut]
    with pytest.raises(InputError) as expected:
        reference(data)
    with pytest.raises(InputError) as found:
        fast.load_pixels(data, SPEC)
    assert str(found.value) == str(expected.value)


def test_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="too large"):
        fast.load_pixels(jpeg(picture(160, 120)), SPEC)


# --- decoders


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    fast._simplejpeg.cache_clear()
    monkeypatch.setattr(monkeypatch, "undo", _cleared(monkeypatch.undo))
    return monkeypatch


def _cleared(undo: object) -> object:
    def both() -> None:
        undo()
        fast._simplejpeg.cache_clear()

    return both


def test_pillow_decodes_where_simplejpeg_is_not(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "simplejpeg", None)  # import raises ImportError
    assert fast.describe(SPEC).jpeg.startswith("Pillow ")
    assert "pip install simplejpeg" in fast.describe(SPEC).jpeg_reason
    assert difference(jpeg(picture(160, 120))).max() <= fast.EXACT_BOUND
    assert difference(jpeg(picture(1066, 800))).mean() <= fast.REDUCED_MEAN_BOUND


def test_a_directory_of_that_name_is_not_it(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "simplejpeg", types.ModuleType("simplejpeg"))
    assert fast.describe(SPEC).jpeg.startswith("Pillow ")


def test_simplejpeg_gives_the_same_pixels() -> None:
    simplejpeg = pytest.importorskip("simplejpeg")
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for progressive in (False, True):
            data = jpeg(picture(167, 121), subsampling=subsampling, progressive=progressive)
            np.testing.assert_array_equal(simplejpeg.decode_jpeg(data), np.asarray(preprocess.decode_image(data)))
    assert fast.describe(SPEC).jpeg == f"simplejpeg {simplejpeg.__version__}"


def test_what_resizes_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = PreprocessSpec(resize=64, interpolation="nearest")
    assert fast.describe(nearest).resize == "Pillow"
    assert "no nearest filter" in fast.describe(nearest).resize_reason
    monkeypatch.setattr(fast, "_library", lambda: None)
    assert fast.describe(SPEC).resize == "Pillow"
    monkeypatch.setattr(fast, "_library", lambda: object())
    assert fast.describe(SPEC).resize == "native kernels"


# --- the kernel


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    if native_library.describe()["problem"] is not None:
        pytest.skip("needs the native kernels")
    return native_library.open_library()


@pytest.mark.parametrize("seed", range(8))
def test_any_window_of_any_size(library: ctypes.CDLL, seed: int) -> None:
    """Also where vectors end after the image, and where one output has hundreds of taps."""
    random = np.random.default_rng(seed)
    for number in range(40):
        height, width = random.integers(1, 300 if number % 3 else 12, 2)
        new_height, new_width = random.integers(1, 200 if number % 2 else 9, 2)
        rows, columns = random.integers(1, new_height + 1), random.integers(1, new_width + 1)
        top, left = random.integers(0, new_height - rows + 1), random.integers(0, new_width - columns + 1)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if number % 4 == 0:
            pixels = (pixels >> 7) * np.uint8(255)  # the extremes
        guarded = np.full((rows + 2, columns, 3), 77, np.uint8)
        window = resize.Window(*map(int, (new_height, new_width, top, left, rows, columns)))
        resize.resize(library, pixels, window, guarded[1:-1], "bilinear")
        whole = Image.fromarray(pixels).resize((int(new_width), int(new_height)), Image.Resampling.BILINEAR)
        expected = np.asarray(whole)[top : top + rows, left : left + columns]
        assert np.abs(guarded[1:-1].astype(int) - expected).max() <= fast.EXACT_BOUND
        assert (guarded[0] == 77).all()
        assert (guarded[-1] == 77).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
def test_filters_with_negative_factors_are_pillows_where_proportions_stay(interpolation: str) -> None:
    if native_library.describe()["problem"] is not None:
        pytest.skip("needs the native kernels")
    random = np.random.default_rng(5)
    for _ in range(60):
        height, width = map(int, random.integers(60, 400, 2))
        spec = PreprocessSpec(resize=int(random.integers(16, 200)), interpolation=interpolation)
        pixels = random.integers(0, 2, (height, width, 3)).astype(np.uint8) * np.uint8(255)
        assert difference(pixels, spec).max() <= fast.EXACT_BOUND


def test_a_constant_image_stays_so(library: ctypes.CDLL) -> None:
    for value in (0, 1, 128, 254, 255):
        out = np.empty((31, 17, 3), np.uint8)
        resize.resize(
            library, np.full((50, 90, 3), value, np.uint8), resize.Window(31, 17, 0, 0, 31, 17), out, "bilinear"
        )
        assert (out == value).all()


def test_arrays_that_the_kernel_would_misread_are_refused(library: ctypes.CDLL) -> None:
    pixels, out = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    window = resize.Window(4, 4, 0, 0, 4, 4)
    for wrong in (pixels[:, ::2], pixels.astype(np.int16), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ValueError, match="is not contiguous uint8"):
            resize.resize(library, wrong, window, out, "bilinear")
    with pytest.raises(ValueError, match=r"\(3, 4, 3\) is not contiguous uint8 \(4, 4, 3\)"):
        resize.resize(library, pixels, window, out[:3], "bilinear")
    with pytest.raises(ValueError, match="is not inside the image"):
        resize.Window(4, 4, 2, 0, 3, 4)
