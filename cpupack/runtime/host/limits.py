"""Says which limit of the system keeps a process from starting another thread, or from more memory."""

from __future__ import annotations

import resource
from pathlib import Path

from . import cgroup

_ROOT = Path("/")
_MEMORY = "the process's memory in KiB (ulimit -v)"


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


def _limit(what: str, used: int | None, most: int | None) -> str | None:
    if most is None or most < 0 or most == resource.RLIM_INFINITY:
        return None
    return f"{what}: {most}" if used is None else f"{what}: {used} of {most}"


def _kibibytes(limit: int) -> int:
    return limit if limit < 0 else limit // 1024


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isdigit() else None
