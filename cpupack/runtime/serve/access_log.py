"""The access log: one JSON object a line, with the ids of W3C Trace Context. A thread writes it.

A full disk or a pipe that nobody reads must not stop the server. What cannot be written is counted and lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import HostError, InputError
from ..host.limits import why_no_thread
from ..threads import ThreadRefusedError, start

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

    Raises InputError when the file cannot be opened, HostError when the system refuses the thread.
    """

    def __init__(self, target: str, lost: Callable[[], None]) -> None:
        self._lost, self._path = lost, None if target == "-" else Path(target)
        # In C, so that an exception that is sent to the thread from outside cannot keep a lock.
        self._lines: queue.SimpleQueue[str | int | None] = queue.SimpleQueue()
        self._descriptor = self._open()
        try:
            self._ended = start(self._write_all)
        except ThreadRefusedError as error:
            raise HostError(why_no_thread()) from error

    def write(self, fields: Mapping[str, Any]) -> None:
        """Queue one line. Never waits."""
        now = datetime.now(timezone.utc)
        text = json.dumps({"time": now.isoformat(timespec="milliseconds"), **fields}, separators=(",", ":"))
        if self._lines.qsize() < _WAITING_LINES:
            self._lines.put(text)
        else:
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
        self._lines.put(fresh)  # in its turn: the lines before it belong into the old file

    def close(self) -> None:
        """Write what is queued, but wait at most a second."""
        self._lines.put(None)
        with contextlib.suppress(TimeoutError):
            self._ended.result(1.0)

    def _open(self) -> int:
        if self._path is None:
            if sys.stdout is None:  # then its number may be that of a connection
                raise InputError("--access-log -: standard output was closed before the start; name a file")
            return sys.stdout.fileno()
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise InputError(f"--access-log {self._path}: {error.strerror}; name a file that can be written") from error

    def _write_all(self) -> None:
        following: Iterator[str | int] = iter(self._lines.get, None)
        while True:
            try:
                for line in following:
                    self._take(line)
            except BaseException:  # noqa: BLE001 - sent to this thread from outside, and costs one line
                self._lost()
                continue
            return

    def _take(self, line: str | int) -> None:
        """Write a line, or go on in another file."""
        if isinstance(line, int):
            before, self._descriptor = self._descriptor, line
            os.close(before)
        else:
            data = line.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._lost()
