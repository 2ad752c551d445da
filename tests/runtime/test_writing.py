"""A file is written as a whole, or it stays as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cpupack.runtime.writing import whole_file


def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    path.write_bytes(b"before")

    def interrupted() -> None:
        with whole_file(path) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_that_the_system_gives(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain", tmp_path / "whole"
    plain.touch()
    with whole_file(path) as stream:
        stream.write(b"after")
    assert (path.read_bytes(), path.stat().st_mode) == (b"after", plain.stat().st_mode)


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(b"before")
    path.chmod(0o640)
    link.symlink_to(path)
    with whole_file(link) as stream:
        stream.write(b"after")
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after", 0o640)


def test_what_is_no_file_is_written_as_it_goes(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(pipe) as stream:
        stream.write(b"rows")
    assert os.read(reader, 10) == b"rows"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]
    with whole_file(Path(os.devnull)) as stream:
        stream.write(b"nothing")
    assert not Path(os.devnull).is_file()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "none" / "a"):
        pass


def test_a_file_in_a_directory_that_takes_no_other_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one file alone is mounted into a container."""
    path = tmp_path / "a"
    path.write_bytes(b"before")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with whole_file(path) as stream:
        stream.write(b"after")
    assert path.read_bytes() == b"after"


def test_a_file_that_cannot_be_renamed_over_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a longer one before")

    def busy(*_: object) -> Path:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with whole_file(path) as stream:
        stream.write(b"after")
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_cannot_synchronize_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a disk that is full or broken is one."""
    numbers = [errno.EINVAL, errno.EIO]

    def refused(_: int) -> None:
        number = numbers.pop(0)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    with whole_file(tmp_path / "a") as stream:
        stream.write(b"after")
    with pytest.raises(OSError, match="Input/output error"), whole_file(tmp_path / "a") as stream:
        stream.write(b"later")
    assert (tmp_path / "a").read_bytes() == b"after"


def test_a_file_system_without_permissions_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT on a memory card: it refuses to change them, and the file is written all the same."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    with whole_file(tmp_path / "a") as stream:
        stream.write(b"after")
    assert (tmp_path / "a").read_bytes() == b"after"
