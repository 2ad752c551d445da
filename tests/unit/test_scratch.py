"""Temporary directories: locked while in use, swept when their process was killed, an error where there is no room."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cpupack.errors import PackagingError
from cpupack.scratch import scratch_directory, sweep
from helpers.waiting import wait_until


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_is_there_in_the_block_and_gone_after(tmp_path: Path) -> None:
    with scratch_directory() as work:
        assert work.parent == tmp_path
        (work / "file").touch()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_swept_and_what_others_use_stays(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1]\n"
        "from cpupack.scratch import scratch_directory\n"
        "with scratch_directory() as work: (work / 'big').touch(); time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    wait_until(lambda: any(tmp_path.glob("cpupack-*/big")))
    (left,) = tmp_path.glob("cpupack-*")
    sweep(tmp_path)
    assert (left / "big").exists()  # its owner is alive
    child.kill()
    child.wait()
    assert left.is_dir()
    with scratch_directory() as work:
        assert list(tmp_path.iterdir()) == [work]


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    young, link, other = tmp_path / "cpupack-young", tmp_path / "cpupack-link", tmp_path / "elsewhere"
    young.mkdir()
    other.mkdir()
    (other / ".lock").touch()
    link.symlink_to(other)
    (tmp_path / "cpupack-file").touch()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cpupack-file",
        "cpupack-link",
        "cpupack-young",
        "elsewhere",
    ]
    os.utime(young, (0, 0))  # from before there were locks
    sweep(tmp_path)
    assert not young.exists()


def test_a_file_system_without_locks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS without its lock service. What lies there may be in use: nobody removes it."""
    other = tmp_path / "cpupack-other"
    other.mkdir()
    (other / ".lock").touch()

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with scratch_directory() as work:
        (work / "file").touch()
    assert list(tmp_path.iterdir()) == [other]


def test_no_room_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(PackagingError, match=r"No space left on device .*MB free") as caught,
        scratch_directory() as work,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work / "model.pt"))
    assert caught.value.hint is not None
    assert "TMPDIR" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_no_place_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(PackagingError, match="No such file or directory"), scratch_directory():
        pass


def test_errors_of_the_block_pass_unchanged() -> None:
    with pytest.raises(PermissionError), scratch_directory():
        raise PermissionError(errno.EACCES, "the user's own")


def test_an_array_of_which_a_part_was_written_means_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's error has no number."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = "No space left on device: of an array's values 13824 requested"
    with pytest.raises(PackagingError, match=expected), scratch_directory():
        raise OSError("13824 requested and 12160 written")
