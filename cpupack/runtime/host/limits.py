"""Says which limit of the system keeps a process from starting another thread, or from more memory."""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path

from . import cgroup

_ROOT = Path("/")
_MEMORY = "the process's memory in KiB (ulimit -v)"
_LIBRARIES_BYTES = 100 * 2**20
"""What numpy and Pillow need of a process's addresses: 86 and 11 MB were measured."""
_NOT_MAPPED = ("failed to map segment", "Cannot allocate memory", "cannot create shared object")
"""What the C library says of a shared library for which there is no memory."""


def why_no_thread(root: Path = _ROOT) -> str:
    """Return one sentence: the system refuses another thread, the limits that may be the cause, and what to do.

    ``root`` is where /proc and /sys are.
    """
    found = [
        text
        for text in (
            _limit("the user's processes and threads (ulimit -u)", None, resource.getrlimit(resource.RLIMIT_NPROC)[0]),
            _limit("the control group's threads (pids.max)", *cgroup.thread_limit(root)),
            _limit(_MEMORY, None, _kibibytes(resource.getrlimit(resource.RLIMIT_AS)[0])),
            _limit("the system's threads", None, _number(cgroup.read_text(root / "proc/sys/kernel/threads-max"))),
        )
        if text is not None
    ]
    return (
        f"the system refuses to start another thread ({'; '.join(found) or 'no limit is known'}); "
        "raise the limit, or use fewer threads and instances"
    )


def why_no_memory() -> str:
    """Return one sentence: there is not enough memory, the limit that may be the cause, and what to do."""
    limit = _limit(_MEMORY, None, _kibibytes(resource.getrlimit(resource.RLIMIT_AS)[0]))
    return f"there is not enough memory ({limit or 'no limit is known'}); raise the limit, or ask for less at a time"


def no_room_for_libraries() -> str | None:
    """Return why numpy and Pillow cannot be loaded under the limit of this process, None where they can.

    To be asked before. OpenBLAS ends the process where it gets no memory, and numpy blames its own installation.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY or "numpy" in sys.modules:
        return None
    try:
        mmap.mmap(-1, _LIBRARIES_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ).close()
    except (OSError, ValueError, MemoryError):
        return f"{why_no_memory()} (numpy and Pillow need {_LIBRARIES_BYTES // 1024} KiB)"
    return None


def lacks_memory(error: BaseException) -> bool:
    """Return whether a library could not be loaded because there is not enough memory for it."""
    text, cause = str(error), error.__cause__ or error.__context__
    return any(words in text for words in _NOT_MAPPED) or (cause is not None and lacks_memory(cause))


def _limit(what: str, used: int | None, most: int | None) -> str | None:
    if most is None or most < 0 or most == resource.RLIM_INFINITY:
        return None
    return f"{what}: {most}" if used is None else f"{what}: {used} of {most}"


def _kibibytes(limit: int) -> int:
    return limit if limit < 0 else limit // 1024


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isdigit() else None
