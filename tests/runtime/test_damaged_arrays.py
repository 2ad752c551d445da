"""Files of arrays whose head is cut or changed: each reader says so in words. numpy reads the head as an expression."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime.arrays import load_npy
from cpupack.runtime.errors import InputError, IntegrityError
from cpupack.runtime.items import read_archive
from cpupack.runtime.serve.model import _read_npy
from cpupack.runtime.tasks.decode import read_anchors

HEADS = ("(2, 3)", "(2, (3", "(2,\t'", "\n\n )\n(", "[[[[[[", "9**9**", "(-1,3)", "(1e9,)", "'\\x00'", "\0\0\0\0\0\0")
"""Shapes of the same length; the first is right."""


def one(head: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((2, 3), np.float32))
    return file.getvalue().replace(b"(2, 3)", head.encode())


def archive(path: Path, head: str, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(f"{name}.npy", one(head))
    return path


def from_path(path: Path, head: str) -> Any:
    path.write_bytes(one(head))
    return load_npy(path)


READERS: dict[str, tuple[Callable[[Path, str], Any], type[Exception]]] = {
    "npy": (from_path, InputError),
    "npz": (lambda path, head: read_archive(archive(path, head, "a")), InputError),
    "request": (lambda _, head: _read_npy(one(head)), InputError),
    "anchors": (lambda path, head: read_anchors(archive(path, head, "weights", "anchors")), IntegrityError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("head", HEADS[1:])
def test_a_damaged_head_is_said(tmp_path: Path, reader: str, head: str) -> None:
    read, error = READERS[reader]
    with pytest.raises(error):
        read(tmp_path / "a", head)


@pytest.mark.parametrize("reader", ["npz", "anchors"])
def test_a_member_that_is_no_array_is_said(tmp_path: Path, reader: str) -> None:
    """numpy gives the bytes of a member that does not begin as an array does."""
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("anchors", "levels", "top_k", "weights"):
            made.writestr(f"{name}.npy", b"no array")
    read, error = {"npz": (read_archive, InputError), "anchors": (read_anchors, IntegrityError)}[reader]
    with pytest.raises(error, match="is no array"):
        read(path)


def test_a_whole_one_is_read(tmp_path: Path) -> None:
    assert from_path(tmp_path / "a.npy", HEADS[0]).shape == (2, 3)
    assert set(read_archive(archive(tmp_path / "a.npz", HEADS[0], "a", "b"))) == {"a", "b"}
