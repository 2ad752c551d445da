"""A request and an answer of HTTP as plain objects, and the errors that become answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

JSON = b"application/json"
STATUS_LINES = {one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode() for one in HTTPStatus}

Header = tuple[bytes, bytes]


@dataclass(eq=False, slots=True)
class HttpRequest:
    """A request whose headers are there, and later its body. Names of headers are in lower case.

    ``arrived_s`` is when its headers were there, ``complete_s`` when its body was; on the clock ``time.monotonic``.
    ``length`` is the size of the body as the headers announce it, 0 where they do not.
    ``route`` is ``predict`` or ``infer`` once that is known. ``reserved_bytes`` is what its body counts for until it is
    answered. ``early`` is its answer if that does not depend on its body; ``answered`` says that this was written
    before the body was there. ``on_gone`` is called when the client closes the connection before the answer.
    ``keep_alive`` is false where the client wants no other answer after it.
    """

    method: bytes
    path: str
    query: bytes
    headers: dict[bytes, bytes]
    arrived_s: float
    length: int = 0
    client: str = ""
    body: bytes | bytearray = b""
    complete_s: float = 0.0
    reserved_bytes: int = 0
    keep_alive: bool = True
    route: str | None = None
    early: HttpAnswer | None = None
    answered: bool = False
    on_gone: Callable[[], None] | None = None
    log: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HttpAnswer:
    """An answer. ``close`` ends the connection after it."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: Sequence[Header] = ()
    close: bool = False


class HttpError(Exception):
    """A request that is answered with an error; the body is the protocol's ``{"error": ...}``."""

    def __init__(self, status: int, message: str, headers: Sequence[Header] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, tuple(headers)

    def answer(self) -> HttpAnswer:
        """Return the answer."""
        return HttpAnswer(self.status, error_body(self.message), headers=self.headers)


def error_body(message: str) -> bytes:
    """Return the body of an error as the protocol has it."""
    return json.dumps({"error": message}).encode("ascii")


def json_answer(value: Any, status: int = 200, headers: Sequence[Header] = ()) -> HttpAnswer:
    """Return an answer of JSON."""
    return HttpAnswer(status, json.dumps(value, separators=(",", ":")).encode("ascii"), headers=headers)
