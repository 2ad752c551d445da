"""Checkpoints and images that somebody broke: an answer in words, never another exception, and no code is run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features
from safetensors.torch import save_file

from cpupack.errors import ModelError
from cpupack.model.weight_files import read_weights
from cpupack.runtime.errors import InputError
from cpupack.runtime.images.preprocess import PreprocessSpec, decode_image, to_pixels

FEW = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SPEC = PreprocessSpec(resize=8, crop=8)


def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": torch.ones(2), "n": torch.tensor(3)}


def saved(directory: Path, kind: str) -> bytes:
    path = directory / f"whole.{kind}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "pt")
    return path.read_bytes()


def mutated(whole: bytes, data: st.DataObject) -> bytes:
    """Bytes changed, cut out or put in, most of them where the file says what it holds."""
    found = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        if not found:
            break
        place = data.draw(st.one_of(st.integers(0, len(found) - 1), st.integers(0, min(300, len(found) - 1))))
        how = data.draw(st.sampled_from(["flip", "set", "large", "cut", "insert", "end"]))
        if how == "flip":
            found[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "set":
            found[place] = data.draw(st.integers(0, 255))
        elif how == "large":
            found[place : place + 8] = data.draw(st.sampled_from([b"\xff" * 8, b"\x7f" * 8, b"\0" * 8]))
        elif how == "cut":
            del found[place : place + data.draw(st.integers(1, 64))]
        elif how == "insert":
            found[place:place] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            del found[place:]
    return bytes(found)


@pytest.mark.parametrize("kind", ["pt", "pth", "safetensors"])
@FEW
@given(data=st.data())
def test_mutated_checkpoints(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """``pth`` is the format of torch before 1.6: pickles one after the other, without an archive."""
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(mutated(saved(tmp_path, kind), data))
    with contextlib.suppress(ModelError):
        read_weights(path)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("place", ["alone", "value", "key", "attribute"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "ran"
    evil = Touch(marker)
    raw = {"alone": evil, "value": {**state(), "x": evil}, "key": {"state_dict": evil}, "attribute": [evil]}[place]
    for number, write in enumerate(
        (
            lambda path: torch.save(raw, path),
            lambda path: torch.save(raw, path, _use_new_zipfile_serialization=False),
            lambda path: path.write_bytes(pickle.dumps(raw)),
        )
    ):
        path = tmp_path / f"evil{number}.pt"
        write(path)
        with contextlib.suppress(ModelError):
            read_weights(path)
        assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775807]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}',
        b"[" * 5000,
    ],
)
def test_absurd_sizes_are_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "absurd.safetensors"
    for length in (len(header), 2**63 - 1, 2**40):
        path.write_bytes(struct.pack("<Q", length) + header + b"\0" * 4)
        with pytest.raises(ModelError, match="not a safetensors file"):
            read_weights(path)


# --- images


def encoded(kind: str) -> bytes:
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}.get(kind, "zlib")):
        pytest.skip(f"this Pillow writes no {kind}")
    image = Image.new("RGB", (40, 30), (200, 30, 60))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of metadata that Pillow leaves out: the pixels are whole
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "AVIF", "JPEG2000"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_mutated_images(kind: str, data: st.DataObject) -> None:
    with contextlib.suppress(InputError):
        assert to_pixels(decode_image(mutated(encoded(kind), data)), SPEC).shape == (8, 8, 3)


def test_a_cut_picture_of_a_kind_that_this_pillow_reads_is_called_damaged() -> None:
    """It was said that Pillow does not read AVIF, and to install the one that is there."""
    whole = encoded("AVIF")
    assert decode_image(whole).size == (40, 30)
    with pytest.raises(InputError, match=r"is an AVIF picture that is truncated or damaged$"):
        decode_image(whole[: len(whole) // 3])


def test_an_image_that_pillow_warns_of_is_too_large_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="is too large: Image size"):
        decode_image(encoded("PNG"))


def test_pixels_that_cannot_be_decoded_behind_a_whole_header() -> None:
    """Decoders in C have errors of their own: that of AVIF is RuntimeError."""
    for kind in ("AVIF", "JPEG2000", "WEBP", "PNG", "TIFF"):
        whole = encoded(kind)
        for at in range(len(whole) // 2, len(whole) - 8, 8):
            with contextlib.suppress(InputError):
                decode_image(whole[:at] + b"\xff" * 8 + whole[at + 8 :])


def png(width: int, height: int) -> bytes:
    """Return a PNG that says it has these many pixels, and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (1, 2**31 - 1), (30_000, 30_000)])
def test_image_bombs_are_refused(width: int, height: int) -> None:
    with pytest.raises(InputError):
        to_pixels(decode_image(png(width, height)), SPEC)
