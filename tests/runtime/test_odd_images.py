"""Images of every kind: each way into a model gives the same pixels, and the same words where there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin

from cpupack.runtime.batch.files import items_of, suffixes
from cpupack.runtime.batch.shards import Shard
from cpupack.runtime.errors import InputError
from cpupack.runtime.images import fast
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels, upright_size
from cpupack.runtime.signature import Signature
from helpers.odd_images import HEIGHT, WIDTH, no_images, odd_images, saved, scene, turned

ODD, NOT = odd_images(), no_images()
SPECS = [
    PreprocessSpec(resize=32, crop=24),
    PreprocessSpec(resize=(48, 40)),
    PreprocessSpec(resize=32, crop=24, interpolation="bicubic"),
    PreprocessSpec(resize=32, crop=24, mode="L"),
    PreprocessSpec(crop=32),
]
WHOLE = PreprocessSpec()
REDUCED = {"large.jpg", "large_lying.jpg", "large_grey.jpg"}


@pytest.fixture(params=["all", "without simplejpeg", "without the kernels"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without simplejpeg":
        monkeypatch.setattr(fast, "_simplejpeg", lambda: None)
    if request.param == "without the kernels":
        monkeypatch.setattr(fast, "_library", lambda: None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", ODD)
def test_the_runner_sees_what_the_build_calibrated_with(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(ODD[name])
    for spec in SPECS:
        build = to_pixels(decode_image(path), spec).astype(int)
        for source in (path, ODD[name]):
            found = fast.load_pixels(source, spec)
            assert found.shape == build.shape
            if name in REDUCED:
                assert np.abs(found - build).mean() <= fast.REDUCED_MEAN_BOUND
            else:
                assert np.abs(found - build).max() <= fast.EXACT_BOUND


@pytest.mark.parametrize("name", ODD)
def test_what_is_seen_is_the_scene(name: str) -> None:
    """Not only equal on both paths, but right: upright, of the right brightness, the first frame, no channel lost."""
    assert upright_size(ODD[name]) == ((1200, 1600) if name == "large_lying.jpg" else
                                       (1600, 1200) if name in REDUCED else (WIDTH, HEIGHT))  # fmt: skip
    found = fast.load_pixels(ODD[name], PreprocessSpec(resize=(6, 8))).astype(int)
    grey = "grey" in name or name == "la.png"
    wanted = scene()
    if name == "large_lying.jpg":  # stored upright, and said to lie: seen, it is turned by a quarter
        wanted = np.rot90(wanted, -1)
    if name in {"grey16.png", "grey_alpha16.png", "grey16.tif", "grey12.tif", "grey16.pgm"}:
        wanted = np.repeat(wanted[..., :1], 3, -1)  # of the first channel
    elif grey:
        wanted = fast.load_pixels(saved_as_grey(wanted), WHOLE)
    wanted = fast.load_pixels(np.ascontiguousarray(wanted), PreprocessSpec(resize=(6, 8))).astype(int)
    if name.startswith("bit."):  # black and white dots: their mean is the brightness
        assert abs(found.mean() - wanted.mean()) < 8
    else:
        assert np.abs(found - wanted).max() <= (16 if "palette" in name or name.endswith(".gif") else 6)


def saved_as_grey(pixels: np.ndarray) -> bytes:
    from PIL import Image

    return saved(Image.fromarray(pixels).convert("L"), "PNG")


@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_undone_to_the_pixel(orientation: int, kind: str) -> None:
    """The formats have no loss, so the pixels are those before they were turned."""
    data = ODD[f"turned{orientation}.{kind}"]
    assert np.array_equal(fast.load_pixels(data, WHOLE), scene())
    assert np.array_equal(to_pixels(decode_image(data), WHOLE), scene())
    assert turned(scene(), orientation).shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey12.tif", "grey16.pgm", "grey_alpha16.png"])
def test_greys_of_more_than_eight_bits_are_scaled(name: str) -> None:
    assert np.array_equal(fast.load_pixels(ODD[name], PreprocessSpec(mode="L")), scene()[..., :1])


@pytest.mark.parametrize("name", NOT)
def test_what_is_no_image_is_named_on_every_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    data, words = NOT[name]
    path = tmp_path / name
    path.write_bytes(data)
    said = []
    for read in (
        lambda source: fast.load_pixels(source, SPECS[0]),
        lambda source: to_pixels(decode_image(source), WHOLE),
    ):
        for source in (path, data):
            with pytest.raises(InputError, match=words) as raised:
                read(source)
            said.append(str(raised.value))
    assert said[0].startswith(str(path))
    assert said[1].startswith(f"image of {len(data)} bytes")


def test_a_pipe_in_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jpg")
    (item,) = items_of(tmp_path, Shard(0, ("pipe.jpg",), 1))
    with pytest.raises(InputError, match="is a pipe or a device, not a file"):
        item.read()


def test_formats_without_pixels_are_no_images_by_their_endings() -> None:
    found = suffixes(Signature.plain((3, 8, 8), (4,), preprocess=SPECS[0]))
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= found
    assert not found & {".eps", ".ps", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".mpg", ".mpeg"}
