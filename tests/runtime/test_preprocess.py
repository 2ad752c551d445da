"""The image path against torchvision's, and every way an image can be unusable."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cpupack.runtime.errors import InputError, IntegrityError
from cpupack.runtime.images.fast import load_pixels
from cpupack.runtime.images.preprocess import INTERPOLATIONS, PreprocessSpec, decode_image, normalize, to_pixels

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """White noise: every wrong filter, offset and rounding shows."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def transforms() -> Any:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision, the reference, is not installed")
    from cpupack.model.vision import import_torchvision

    import_torchvision()
    return importlib.import_module("torchvision.transforms")


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (50, 50), (37, 91), (20, 31), (7, 5)])
@pytest.mark.parametrize(
    ("resize", "crop"), [(32, 24), (33, 24), (24, 31), (None, 40), ((30, 20), None), (32, (9, 30))]
)
def test_geometry_is_torchvisions(transforms: Any, size: tuple[int, int], resize: Any, crop: Any) -> None:
    image = noise(*size)
    steps = [transforms.Resize(resize)] if resize else []
    steps += [transforms.CenterCrop(crop)] if crop else []
    expected = np.asarray(transforms.Compose(steps)(image))
    np.testing.assert_array_equal(to_pixels(image, PreprocessSpec(resize=resize, crop=crop)), expected)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_filters_are_torchvisions(transforms: Any, name: str) -> None:
    mode = transforms.InterpolationMode[name.upper()]
    image = noise(61, 47)
    expected = np.asarray(transforms.Resize(32, interpolation=mode)(image))
    np.testing.assert_array_equal(to_pixels(image, PreprocessSpec(resize=32, interpolation=name)), expected)


@pytest.mark.parametrize("place", ["center", "start"])
@pytest.mark.parametrize(
    ("size", "inner"),  # widths and heights by hand: times min(48 / width, 32 / height), rounded
    [((96, 32), (48, 16)), ((20, 40), (16, 32)), ((48, 32), (48, 32)), ((37, 91), (13, 32)), ((301, 1), (48, 1))],
)
def test_a_padded_image_keeps_its_shape(size: tuple[int, int], inner: tuple[int, int], place: str) -> None:
    image = noise(*size)
    spec = PreprocessSpec(resize=(32, 48), fit="pad", pad_value=(9, 8, 7), place=place)
    resized = np.asarray(image.resize(inner, INTERPOLATIONS["bilinear"]))
    left, top = ((48 - inner[0]) // 2, (32 - inner[1]) // 2) if place == "center" else (0, 0)
    for mode, order in (("RGB", slice(None)), ("BGR", slice(None, None, -1))):
        expected = np.full((32, 48, 3), (9, 8, 7), np.uint8)  # the colour of the padding is in the model's order
        expected[top : top + inner[1], left : left + inner[0]] = resized[..., order]
        np.testing.assert_array_equal(to_pixels(image, dataclasses.replace(spec, mode=mode)), expected)


def test_normalize_is_torchvisions_bit_for_bit(transforms: Any) -> None:
    image = noise(31, 17)
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*IMAGENET.values())])(image)
    spec = PreprocessSpec(**IMAGENET)
    got = normalize(to_pixels(image, spec)[None], spec)
    np.testing.assert_array_equal(got[0], expected.numpy())


def test_normalize_gives_channels_last_float32() -> None:
    got = normalize(np.zeros((2, 5, 4, 3), np.uint8), PreprocessSpec())
    assert got.shape == (2, 3, 5, 4)
    assert got.dtype == np.float32
    assert torch.from_numpy(got).is_contiguous(memory_format=torch.channels_last)


def test_one_mean_serves_all_channels() -> None:
    pixels = np.full((1, 2, 2, 3), 255, np.uint8)
    np.testing.assert_array_equal(
        normalize(pixels, PreprocessSpec(mean=(0.5,), std=(0.25,))), np.full((1, 3, 2, 2), 2.0)
    )


def test_pixels_are_contiguous_with_a_channel_axis() -> None:
    grey = to_pixels(noise(9, 8), PreprocessSpec(mode="L"))
    assert (grey.shape, grey.dtype, grey.flags.c_contiguous) == ((8, 9, 1), np.uint8, True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    image = noise(6, 4)
    exif = image.getexif()
    exif[0x0112] = orientation
    stored = decode_image(encoded(image, "PNG", exif=exif))
    expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(to_pixels(stored, PreprocessSpec()), expected)


def test_orientation_six_is_a_quarter_turn_clockwise() -> None:
    image = noise(6, 4)
    exif = image.getexif()
    exif[0x0112] = 6
    stored = decode_image(encoded(image, "PNG", exif=exif))
    np.testing.assert_array_equal(to_pixels(stored, PreprocessSpec()), np.rot90(np.asarray(image), k=-1))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own warnings about the damage
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_does_not_cost_the_image(kind: str) -> None:
    """With flipped bytes in the EXIF block, the pixels are intact, or Pillow cannot open the file: a clear error."""
    image = noise(8, 8)
    exif = image.getexif()
    exif[0x010E], exif[0x8298] = "a description", "a copyright"
    data = encoded(image, kind, exif=exif)
    start, length = data.find(b"MM\x00*"), len(exif.tobytes())
    assert start > 0
    rng = np.random.default_rng(0)
    whole = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(start, start + length - 6, 3):
            damaged[position] ^= int(rng.integers(1, 256))
        try:
            whole += to_pixels(decode_image(bytes(damaged)), PreprocessSpec()).size == 8 * 8 * 3
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    assert whole > 150


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = noise(8, 8, "L").convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(to_pixels(decode_image(data), PreprocessSpec()), np.asarray(image.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    image = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert to_pixels(image, PreprocessSpec(mode="L")).ravel().tolist() == [0, 0, 1, 255]


def test_float_images_have_no_known_range() -> None:
    with pytest.raises(InputError, match="unknown range"):
        to_pixels(Image.fromarray(np.ones((4, 4), np.float32)), PreprocessSpec())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_every_source_gives_the_same_image(tmp_path: Path, kind: str) -> None:
    image = noise(8, 6).quantize(64).convert("RGB")  # few enough colours for GIF
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "no_suffix_needed"
    path.write_bytes(data)
    for source in (data, path, str(path), image, np.asarray(image)):
        np.testing.assert_array_equal(to_pixels(decode_image(source), PreprocessSpec()), np.asarray(image))


def test_grey_arrays_with_and_without_channel_axis() -> None:
    grey = np.asarray(noise(5, 4, "L"))
    for array in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(to_pixels(decode_image(array), PreprocessSpec(mode="L"))[:, :, 0], grey)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.png: no such file"):
        decode_image(tmp_path / "nothing.png")


def test_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        decode_image(tmp_path)


def test_text_file_is_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture")
    with pytest.raises(InputError, match=r"notes\.jpg is not an image"):
        decode_image(path)


def test_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(InputError, match=r"empty\.png is empty"):
        decode_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path: Path, kind: str, share: float) -> None:
    data = encoded(noise(64, 64), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=rf"half\.{kind.lower()} is a (truncated|damaged)"):
        decode_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's own remarks about the damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP"])
def test_damaged_bytes_raise_nothing_else(kind: str) -> None:
    """Whatever Pillow makes of flipped bytes, it is an image or one clear error."""
    data = encoded(noise(32, 32), kind)
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 4):
            damaged[position] ^= int(rng.integers(1, 256))
        try:
            to_pixels(decode_image(bytes(damaged)), PreprocessSpec(resize=8))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32; expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), "4 channels; expected 1 or 3"),
        (np.zeros((3, 8, 8), np.uint8), "channels-first"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\); expected \(height, width, channels\)"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
        (np.zeros(7, np.uint8), "shape"),
        (np.ma.masked_array(np.zeros((4, 4, 3), np.uint8)), r"masked array; expected a plain one: filled\(0\)"),
    ],
)
def test_unusable_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_image(array)
    with pytest.raises(InputError, match=message):
        load_pixels(array, PreprocessSpec(resize=8))  # the path by the kernels took a masked array


def test_unusable_type() -> None:
    with pytest.raises(InputError, match="cannot read an image from dict"):
        decode_image({})  # type: ignore[arg-type]  # the point of the test


def test_spec_survives_its_dict() -> None:
    spec = PreprocessSpec(resize=(40, 30), crop=24, interpolation="bicubic", **IMAGENET)
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    assert PreprocessSpec.from_dict({**spec.to_dict(), "resize": 40}).resize == 40
    padded = PreprocessSpec(resize=(40, 30), fit="pad", pad_value=(1, 2, 3), place="start", mode="BGR")
    assert PreprocessSpec.from_dict(json.loads(json.dumps(padded.to_dict()))) == padded


@pytest.mark.parametrize(
    ("resize", "crop", "size"),
    [(40, None, None), ((40, 30), None, (40, 30)), (40, 24, (24, 24)), (None, (9, 8), (9, 8))],
)
def test_output_size(resize: Any, crop: Any, size: Any) -> None:
    assert PreprocessSpec(resize=resize, crop=crop).output_size == size


@pytest.mark.parametrize(
    "damage",
    [
        {"mode": "CMYK"},
        {"interpolation": "magic"},
        {"mean": [0.1, 0.2]},
        {"std": None},
        {"resize": "big"},
        {"crop": [1, 2, 3]},
        {"crop": 0},
        {"crop": True},
        {"fit": "pad"},
        {"fit": "squeeze"},
        {"place": "left"},
        {"pad_value": [256]},
        {"pad_value": None},
        {"fit": "pad", "resize": [8, 8], "crop": 4},
    ],
)
def test_damaged_section_is_an_integrity_error(damage: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="preprocess section is damaged"):
        PreprocessSpec.from_dict({**PreprocessSpec().to_dict(), **damage})
