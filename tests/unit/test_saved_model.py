"""TorchScript archives without debug records: torch reads them, the data is aligned, nothing names the build host."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path

import torch
from torch import nn

from cpupack.wheel.saved_model import without_debug
from helpers.tiny_wheel import TinyWheel


def contents(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return b"".join(opened.read(name) for name in opened.namelist())


def data_offset(archive: bytes, info: zipfile.ZipInfo) -> int:
    name, extra = struct.unpack_from("<HH", archive, info.header_offset + 26)
    return info.header_offset + 30 + name + extra


def test_the_model_is_the_same_and_holds_no_path(tiny: TinyWheel, tmp_path: Path) -> None:
    saved = tiny.model_path.read_bytes()
    assert b"tiny_wheel.py" in contents(saved)  # the traced lines, with their path
    kept = without_debug(saved)
    assert b"tiny_wheel.py" not in contents(kept)
    assert len(contents(kept)) < len(contents(saved))
    model = torch.jit.load(io.BytesIO(kept))
    batch = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(batch), torch.jit.load(io.BytesIO(saved))(batch))


def plain(text: str) -> str:
    """Return a name or the text of a record without the number of what the process traced before."""
    return re.sub(r"[./]___torch_mangle_\d+", "", text)


def test_the_records_are_stored_and_aligned(tiny: TinyWheel) -> None:
    saved = tiny.model_path.read_bytes()
    kept = without_debug(saved)
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(io.BytesIO(kept)) as new:
        assert new.testzip() is None
        wanted = {plain(name): name for name in old.namelist() if not name.endswith(".debug_pkl")}
        assert sorted(new.namelist()) == sorted(wanted)
        for info in new.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert data_offset(kept, info) % 64 == 0
            if "serialization_id" not in info.filename:
                assert new.read(info) == plain(old.read(wanted[info.filename]).decode("latin-1")).encode("latin-1")


def test_equal_contents_give_equal_bytes(tiny: TinyWheel) -> None:
    saved = tiny.model_path.read_bytes()
    assert without_debug(saved) == without_debug(saved)
    assert without_debug(without_debug(saved)) == without_debug(saved)


def test_the_bytes_do_not_say_what_was_traced_before() -> None:
    """torch numbers a class whose name the process has used: a build with a filled cache traces less than another."""

    def traced() -> bytes:
        module = torch.jit.freeze(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.ones(1, 3, 2, 2)))
        saved: bytes = module.save_to_buffer()
        return saved

    torch.manual_seed(0)
    first = traced()
    torch.manual_seed(0)
    second = traced()
    assert first != second
    assert without_debug(first) == without_debug(second)
    again = torch.jit.load(io.BytesIO(without_debug(second)))
    expected = torch.jit.load(io.BytesIO(second))(torch.ones(2, 3, 2, 2))
    assert torch.equal(again(torch.ones(2, 3, 2, 2)), expected)
