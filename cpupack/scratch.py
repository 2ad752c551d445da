"""Temporary directories of a build: locked while it runs, swept when it was killed, with an error that helps."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpupack.errors import PackagingError

PREFIX = "cpupack-"
_LOCK_NAME = ".lock"
_OLD_S = 24 * 3600.0
"""A directory without a lock is left alone for this long: its owner may be about to make the lock."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What the system says where a file system takes no more."""
_SHORT = " requested and "


@contextmanager
def scratch_directory(prefix: str = PREFIX) -> Iterator[Path]:
    """Make a temporary directory, and remove it at the end. Also removes those of processes that were killed.

    Raises PackagingError where there is no place for temporary files, or where the block runs out of it.
    """
    try:
        sweep(Path(tempfile.gettempdir()))
        # ignore_cleanup_errors: what is left is swept by the next build, and the error of the block counts.
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with made as name:
        directory = Path(name)
        try:
            with (directory / _LOCK_NAME).open("w") as lock:
                with suppress(OSError):  # a file system without locks: nobody sweeps there
                    fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel gives it back however this process ends
                yield directory
        except OSError as error:
            if takes_no_more(error):
                raise _no_room(error) from error
            raise


def takes_no_more(error: OSError) -> bool:
    """Whether an error says that a file system takes no more. numpy's says how much was written, and has no number."""
    return error.errno in NO_ROOM or (error.errno is None and _SHORT in str(error))


def sweep(parent: Path) -> None:
    """Remove the scratch directories in ``parent`` whose process has ended. Those of others are left alone."""
    for directory in parent.glob(f"{PREFIX}*"):
        if directory.is_dir() and not directory.is_symlink() and _is_dead(directory):
            shutil.rmtree(directory, ignore_errors=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file in one step, so that it is there whole or not at all. Raises OSError; an older one then stays."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sweep_parts(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        with suppress(OSError):  # the error of the write counts
            part.unlink(missing_ok=True)


def sweep_parts(target: Path) -> None:
    """Remove what a killed process left beside ``target``: ``.NAME.PID.part`` of a process that is no more."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        number = part.name.removesuffix(".part").rpartition(".")[2]
        if not number.isdigit() or runs(int(number)):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with suppress(OSError):
                part.unlink()


def runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_dead(directory: Path) -> bool:
    try:
        if directory.stat().st_uid != os.getuid():
            return False
        with (directory / _LOCK_NAME).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return _age_s(directory) > _OLD_S
    except OSError:  # BlockingIOError: its owner is alive
        return False
    return True


def _age_s(directory: Path) -> float:
    try:
        return time.time() - directory.stat().st_mtime
    except OSError:
        return 0.0


def _no_room(error: OSError) -> PackagingError:
    try:
        place = Path(tempfile.gettempdir())
        free = f"{place} has {shutil.disk_usage(place).free / 1e6:,.0f} MB free"
    except OSError as problem:
        free = str(problem)
    where = f"{error.filename}: " if error.filename else ""
    what = error.strerror or f"{os.strerror(errno.ENOSPC)}: of an array's values {error}"
    return PackagingError(
        f"a file of the build cannot be written: {where}{what} ({free})",
        hint="make room, or set TMPDIR to a directory with more",
    )
