"""The access log: one JSON object a line, with the ids of W3C Trace Context. A thread writes it.

A full disk or a pipe that nobody reads must not stop the server. What cannot be written is counted and lost.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError

_WAITING_LINES = 20_000
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def trace_ids(traceparent: bytes | None) -> tuple[str, str | None]:
    """Return the trace id and the parent's span id of a ``traceparent`` header; a new trace id without a valid one."""
    match = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if (
        match is None
        or match[1] == b"ff"
        or (match[1] == b"00" and match[5])
        or not match[2].strip(b"0")
        or not match[3].strip(b"0")
    ):
        return os.urandom(16).hex(), None
    return match[2].decode(), match[3].decode()


class AccessLog:
    """Writes lines to ``target``: a path, or ``-`` for standard output. ``lost`` is called for each line not written.

    Raises InputError when the file cannot be opened.
    """

    def __init__(self, target: str, lost: Callable[[], None]) -> None:
        self._lost, self._path = lost, None if target == "-" else Path(target)
        self._lines: queue.Queue[str | int | None] = queue.Queue(_WAITING_LINES)
        self._descriptor = self._open()
        # Made before the server takes signals. An interrupt here ends the process, and a daemon does not keep it.
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()

    def write(self, fields: Mapping[str, Any]) -> None:
        """Queue one line. Never waits."""
        now = datetime.now(timezone.utc)
        text = json.dumps({"time": now.isoformat(timespec="milliseconds"), **fields}, separators=(",", ":"))
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._lost()

    def reopen(self) -> None:
        """Open the file again, after ``logrotate`` has moved it. Keeps the old one where that fails."""
        if self._path is None:
            return
        try:
            fresh = self._open()
        except InputError as error:
            sys.stderr.write(f"warning: {error}\n")
            return
        try:
            self._lines.put_nowait(fresh)  # in its turn: the lines before it belong into the old file
        except queue.Full:
            os.close(fresh)

    def close(self) -> None:
        """Write what is queued, but wait at most a second."""
        try:
            self._lines.put(None, timeout=0.5)
        except queue.Full:
            return
        self._thread.join(1.0)

    def _open(self) -> int:
        if self._path is None:
            return sys.stdout.fileno()
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise InputError(f"--access-log {self._path}: {error.strerror}; name a file that can be written") from error

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            if isinstance(line, int):
                os.close(self._descriptor)
                self._descriptor = line
                continue
            data = line.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._lost()
