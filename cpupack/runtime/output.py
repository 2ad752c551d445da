"""Writes a command's output. What cannot be written is one line and an exit code, never a traceback.

Characters that the terminal's encoding does not have are written as ``\\u...``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TextIO

EXIT_UNWRITTEN, EXIT_INTERRUPTED, EXIT_PIPE = 2, 130, 141
"""The output could not be written; and what a shell reports for SIGINT and SIGPIPE."""


class UnwrittenError(Exception):
    """The command's output could not be written."""


def say(stream: TextIO | None, text: str) -> None:
    """Write a line. Raises UnwrittenError where that is impossible, BrokenPipeError when the reader has gone."""
    if stream is None:  # closed before Python started
        raise UnwrittenError("it is closed")
    try:
        stream.write(text + "\n")
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: closed meanwhile
        raise UnwrittenError(str(getattr(error, "strerror", None) or error)) from error


def tell(text: str) -> None:
    """Write a line to stderr if that is possible. Where it is not, nobody can be told."""
    try:
        say(sys.stderr, text)
        flush(sys.stderr)
    except (UnwrittenError, BrokenPipeError):
        discard(sys.stderr, 2)


def flush(stream: TextIO | None) -> None:
    """Write what is buffered. Raises as ``say``."""
    if stream is not None:
        try:
            stream.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            raise UnwrittenError(str(getattr(error, "strerror", None) or error)) from error


def discard(stream: TextIO | None, descriptor: int) -> None:
    """Send what is still buffered to nowhere: the interpreter would fail again on it when it exits."""
    if stream is None or stream.closed:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)


def written(prog: str, run: Callable[[], int]) -> int:
    """Run a command and write all of its output. Return its exit code, or that of an output that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run()
        flush(sys.stdout)
    except BrokenPipeError:  # the reader (head, less) has closed the pipe
        discard(sys.stdout, 1)
        return EXIT_PIPE
    except UnwrittenError as error:
        discard(sys.stdout, 1)
        tell(f"{prog}: error: cannot write the output: {error}")
        return EXIT_UNWRITTEN
    return code
