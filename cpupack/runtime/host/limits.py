"""Says which limit of the system keeps a process from another thread, more memory, or another open file."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
from pathlib import Path

from . import cgroup

_ROOT = Path("/")
_MEMORY = "the process's memory in KiB (ulimit -v)"
_DATA = "the process's data in KiB (ulimit -d)"
_LIBRARIES_BYTES = 100 * 2**20
"""What numpy and Pillow need of a process's addresses: 86 and 11 MB were measured."""
_LIBRARIES_DATA_BYTES = 36 * 2**20
"""What they need of its data at least, with one thread of OpenBLAS: 40 MB were measured."""
_UNMAPPED = "failed to map segment"
_NOT_MAPPED = (_UNMAPPED, "Cannot allocate memory", "cannot create shared object")
"""What the C library says of a shared library for which there is no memory."""
_NOT_OPENED = ("Too many open files",)
"""What it says of one that cannot be opened because too many files are open."""

_OF_PLACES = {
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.EFBIG, errno.EIO, errno.ESTALE,
}  # fmt: skip
"""What is the fault of a place, or of its disk, and never that of a program."""


def why_no_thread(root: Path = _ROOT) -> str:
    """Return one sentence: the system refuses another thread, the limits that may be the cause, and what to do.

    ``root`` is where /proc and /sys are.
    """
    found = [
        text
        for text in (
            _limit("the user's processes and threads (ulimit -u)", None, _most(resource.RLIMIT_NPROC)),
            _limit("the control group's threads (pids.max)", *cgroup.thread_limit(root)),
            *_memory_limits(),
            _limit("the system's threads", None, _number(cgroup.read_text(root / "proc/sys/kernel/threads-max"))),
        )
        if text is not None
    ]
    return (
        f"the system refuses to start another thread ({'; '.join(found) or 'no limit is known'}); "
        "raise the limit, or use fewer threads and instances"
    )


def why_no_memory() -> str:
    """Return one sentence: there is not enough memory, the limits that may be the cause, and what to do."""
    known = "; ".join(each for each in _memory_limits() if each is not None) or "no limit is known"
    return f"there is not enough memory ({known}); raise the limit, or ask for less at a time"


def why_no_file() -> str:
    """Return one sentence: no other file can be opened, the limit that may be the cause, and what to do."""
    most = _most(resource.RLIMIT_NOFILE)
    limit = "no limit is known" if most < 0 else f"the process's open files (ulimit -n): {most}"
    return f"too many files are open ({limit}); raise the limit, or close some"


def system_fault(error: BaseException) -> str | None:
    """Return a sentence where the system refused memory or another open file; None where what was read is at fault.

    Python and its packages import modules when they first need them. So the error may be that of an import, too.
    """
    if not isinstance(error, OSError | ImportError):
        return None
    # The loader of shared libraries has no number for what went wrong.
    number, text = getattr(error, "errno", None), str(error)
    unmapped = number is None and any(words in text for words in _NOT_MAPPED) and not _may_not_run(text)
    if number == errno.ENOMEM or unmapped:
        return why_no_memory()
    if number in (errno.EMFILE, errno.ENFILE) or (number is None and any(words in text for words in _NOT_OPENED)):
        return why_no_file()
    return None


def _may_not_run(text: str) -> bool:
    """Whether a library that was not mapped may not run: its mount, or a policy, refuses that.

    The C library says the same of a lack of memory, so it is tried.
    """
    path, _, rest = text.partition(": ")
    if not rest.startswith(_UNMAPPED):
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - no Path here: a name that the C library has written
            mmap.mmap(file.fileno(), 1, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def place_fault(error: BaseException) -> str | None:
    """Return a sentence where the system refuses a place that a user has named, None where something else is wrong.

    Python's ``Path.is_file`` and others raise this, too: a directory is closed to this user, a name is too long.
    """
    if not isinstance(error, OSError) or error.filename is None or error.errno not in _OF_PLACES:
        return None
    return f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {error.strerror}"


def no_room_for_libraries() -> str | None:
    """Return why numpy and Pillow cannot be loaded under the limit of this process, None where they can.

    To be asked before. OpenBLAS ends the process where it gets no memory, and numpy blames its own installation.
    """
    if "numpy" in sys.modules:
        return None
    for limit, needed, prot in (
        (resource.RLIMIT_AS, _LIBRARIES_BYTES, mmap.PROT_READ),
        (resource.RLIMIT_DATA, _LIBRARIES_DATA_BYTES, mmap.PROT_READ | mmap.PROT_WRITE),
    ):
        if _most(limit) == resource.RLIM_INFINITY:
            continue
        try:
            mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot).close()
        except (OSError, ValueError, MemoryError):
            return f"{why_no_memory()} (numpy and Pillow need {needed // 1024} KiB)"
    return None


def _memory_limits() -> list[str | None]:
    return [
        _limit(what, None, _kibibytes(_most(which)))
        for what, which in ((_MEMORY, resource.RLIMIT_AS), (_DATA, resource.RLIMIT_DATA))
    ]


def _most(which: int) -> int:
    """Return a limit of this process."""
    try:
        return resource.getrlimit(which)[0]
    except OSError:  # a sandbox does not let it ask
        return resource.RLIM_INFINITY


def _limit(what: str, used: int | None, most: int | None) -> str | None:
    if most is None or most < 0 or most == resource.RLIM_INFINITY:
        return None
    return f"{what}: {most}" if used is None else f"{what}: {used} of {most}"


def _kibibytes(limit: int) -> int:
    return limit if limit < 0 else limit // 1024


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isdigit() else None
