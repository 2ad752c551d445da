"""Cuts what arrives on a connection into requests, with httptools.

The parser sees the head of a request. A body of known length does not pass through it: it is read into its place, or
dropped where the request is refused. Room for it is made as it comes, so who announces much and sends nothing holds
nothing. Chunked bodies take the long way, through the parser. Clients send the same head again and again, with another
length: one that was seen before is not parsed anew.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import unquote

import httptools

from .messages import HttpError, HttpRequest

MAX_HEADER_BYTES = 32 * 1024
_SCRATCH_BYTES = 256 * 1024
_FIRST_ROOM = 64 * 1024
"""The first room for a body of which a part is there. It is doubled whenever it is full, up to the body's length."""
_KNOWN_HEADS = 512
_KNOWN_HEAD_BYTES = 2048
_LENGTH = re.compile(rb"\r\n(?i:content-length):[ \t]*([0-9]{1,15})[ \t]*\r\n")
_ONCE = frozenset((b"content-length", b"host", b"inference-header-content-length", b"authorization"))
"""Headers that must not be there twice."""


class Listener(Protocol):
    """Is told what has arrived, in order."""

    def request_begins(self) -> None:
        """Its first byte is there."""

    def head_is_there(self, request: HttpRequest, length: int) -> None:
        """Its headers are there, and ``length`` bytes of body are announced. May give it its early answer."""

    def body_grows(self, request: HttpRequest, size_bytes: int) -> None:
        """Of its body ``size_bytes`` are there, or get room now. May give it its early answer."""

    def request_is_there(self, request: HttpRequest) -> None:
        """It is whole, or it has an early answer and its body was dropped."""

    def cannot_read(self, error: HttpError) -> None:
        """Nobody knows where the next request would begin."""


@dataclass(frozen=True)
class Head:
    """What the head of a request says, but for the length of the body.

    ``headers`` are without it, shared by all requests with this head, and never changed.
    """

    method: bytes
    path: str
    query: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool = True

    def request(self, length: int) -> HttpRequest:
        """Return a request with this head, whose headers are there now."""
        return HttpRequest(
            self.method, self.path, self.query, self.headers, time.monotonic(), length, keep_alive=self.keep_alive
        )


class Desk:
    """Where all connections read: heads go through ``scratch``, which is used up before another connection reads.

    ``heads`` are those that were seen before, by their bytes without the digits of the body's length.
    """

    def __init__(self) -> None:
        self.scratch = bytearray(_SCRATCH_BYTES)
        self.heads: dict[bytes | tuple[bytes, bytes], Head] = {}

    def known(self, text: bytes) -> tuple[Head, int] | None:
        """Return the head with these bytes, and the length that it announces; None for one that was not seen before."""
        key, length = _without_length(text)
        head = self.heads.get(key)
        return None if head is None else (head, length)

    def learn(self, text: bytes, head: Head, length: int) -> None:
        """Keep a head that was parsed, with the length that it announced. When there are too many, all are forgotten.

        Not one whose length is written in a way that only the parser reads: it would be taken for one without a body.
        """
        key, found = _without_length(text)
        if len(text) > _KNOWN_HEAD_BYTES or found != length:
            return
        if len(self.heads) >= _KNOWN_HEADS:
            self.heads.clear()
        self.heads[key] = head


class Incoming:
    """What one connection has read so far of the request that is arriving.

    ``receiving`` is true from its first byte to its last. After ``stop`` nothing more is read. ``_body`` is the place
    of a body that is read into it, up to ``_at``; it is to have ``_room`` bytes when it is read into next. ``_waits``
    says that nothing of such a body is there yet. ``_skip`` bytes of a body are to be dropped. ``_left_body`` says that
    the parser does not take the body.
    """

    _url: bytes
    _headers: dict[bytes, bytes]
    _header_bytes: int
    _plain: bool
    _begun: int
    _head: Head
    _length: int
    _request: HttpRequest | None
    _chunks: list[bytes | bytearray]
    _at: int
    _room: int
    _skip: int
    _waits: bool
    _body: bytearray | None

    def __init__(self, desk: Desk, listener: Listener) -> None:
        self._desk, self._listener = desk, listener
        self._parser = httptools.HttpRequestParser(self)
        self.receiving = False
        self.stopped = False
        self._forget()

    def stop(self) -> None:
        """Read no more."""
        self.stopped = True

    @property
    def request(self) -> HttpRequest | None:
        """The request whose head is there and whose body is not."""
        return self._request

    def drop(self) -> None:
        """Keep nothing of the body that arrives: its request has an early answer."""
        request = self._request
        self._chunks.clear()
        if request is not None and (self._waits or self._body is not None):
            self._skip = request.length - self._at
            self._body, self._waits = None, False

    def place(self) -> memoryview:
        """Return where the next bytes are to be put."""
        body = self._body
        if body is None:
            return memoryview(self._desk.scratch)
        if len(body) < self._room:
            try:
                body.extend(bytes(self._room - len(body)))
            except BufferError:  # the transport still has a view of it
                self._body = body = body + bytes(self._room - len(body))
        return memoryview(body)[self._at :]

    def take(self, count: int) -> None:
        """Take ``count`` bytes that are there."""
        if self.stopped:
            return
        if self._body is None:
            self._read(0, count)
            return
        self._at += count
        request = self._request
        assert request is not None
        if self._at == request.length:
            self._body_is_there()
        elif self._at == self._room:
            self._room = min(request.length, 2 * self._at)
            self._listener.body_grows(request, self._room)

    def _read(self, start: int, stop: int) -> None:
        """Take what is in a part of the scratch: the rest of a body that is dropped, whole heads, partial heads."""
        desk = self._desk
        scratch = desk.scratch
        while start < stop and not self.stopped:
            if self._skip:
                dropped = min(self._skip, stop - start)
                self._skip -= dropped
                start += dropped
                if not self._skip:
                    self._message_is_there()
                continue
            if self._waits and self._request is not None:
                start = self._begin_body(self._request, start, stop)
                continue
            fresh = not self.receiving
            if fresh:
                self.receiving = True
                self._listener.request_begins()
            end = scratch.find(b"\r\n\r\n", start, stop) + 4 if fresh else 3
            text = bytes(scratch[start:end]) if end > 3 else b""
            if text and (known := desk.known(text)) is not None:
                start = end
                self._forget()
                self._head_is_there(*known)
                if not known[1]:
                    self._message_is_there()
                    continue
            else:
                start = self._feed(start, end if text else stop)
                if text and self._plain and self._begun == 1 and not self.stopped:
                    desk.learn(text, self._head, self._length)
            # Where the head came in pieces the parser sees all until the next request, if it does not leave the body.
            if (text or self._left_body) and self._request is not None and not self.stopped:
                start = self._take_body(self._request, start, stop)

    def _feed(self, start: int, stop: int) -> int:
        """Let the parser see a part of the scratch, and return where it stopped."""
        self._plain, self._begun = False, 0
        try:
            with memoryview(self._desk.scratch) as scratch:
                self._parser.feed_data(scratch[start:stop])
        except httptools.HttpParserUpgrade as error:  # another protocol is offered: HTTP/1.1 goes on (RFC 9110, 7.8)
            self._parser = httptools.HttpRequestParser(self)
            return start + int(error.args[0])
        except httptools.HttpParserError as error:
            cause = error.__context__
            why = "it is HTTP/2; gRPC has a port of its own, --grpc-port" if "PRI" in str(error) else str(error)
            refusal = cause if isinstance(cause, HttpError) else HttpError(400, f"this is not HTTP/1.1: {why}")
            self._listener.cannot_read(refusal)
        return stop

    def _take_body(self, request: HttpRequest, start: int, stop: int) -> int:
        """Read the body of a request whose head is there past the parser, and return where the next one begins."""
        length = request.length
        if not length or b"transfer-encoding" in request.headers:
            return start
        if self._parsed:
            self._parser = httptools.HttpRequestParser(self)  # the one before waits for the body
        if request.early is not None:
            self._skip = length
            return start
        self._waits = True
        return self._begin_body(request, start, stop)

    def _begin_body(self, request: HttpRequest, start: int, stop: int) -> int:
        """Take the first bytes of a body out of the scratch, and return where what follows it begins."""
        length = request.length
        here = min(length, stop - start)
        if not here:  # the first bytes of a body that comes later go through the scratch, too
            return start
        self._room = length if here == length else min(length, max(2 * here, _FIRST_ROOM))
        self._listener.body_grows(request, self._room)
        if not self._waits:  # it was refused
            return start
        self._waits = False
        with memoryview(self._desk.scratch) as scratch, scratch[start : start + here] as there:
            self._body = bytearray(there)
        self._at = here
        if here == length:
            self._body_is_there()
        return start + here

    def _body_is_there(self) -> None:
        body, self._body = self._body, None
        assert body is not None
        self._chunks = [body]
        self._message_is_there()

    def _head_is_there(self, head: Head, length: int) -> None:
        self._head, self._length = head, length
        self._request = request = head.request(length)
        self._listener.head_is_there(request, length)

    def _message_is_there(self) -> None:
        request = self._request
        self.receiving = False
        if request is None or self.stopped:
            return
        self._request = None
        if request.early is None:
            request.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        self._listener.request_is_there(request)

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        self._forget()
        self._url, self._headers, self._header_bytes = b"", {}, 0
        self._parsed = True
        self._begun += 1
        self.receiving = True

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._count(len(name) + len(value))
        value = value.rstrip(b" \t")  # it is not part of the value (RFC 9110, 5.5), and the parser leaves it
        if name in self._headers:
            if name in _ONCE:
                raise HttpError(400, f"the header {name.decode('latin-1')} is there twice")
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._headers
        raw_path, _, query = self._url.partition(b"?")
        if not raw_path.startswith(b"/"):  # the absolute form, which proxies use
            try:
                raw_path = httptools.parse_url(self._url).path or b"/"
            except httptools.HttpParserInvalidURLError:
                raise HttpError(400, "the address is not valid") from None
        path = raw_path.decode("latin-1")
        version = parser.get_http_version()
        if b"host" not in headers and version == "1.1":
            raise HttpError(400, "the header Host is missing; HTTP/1.1 needs it")
        if version != "1.1":
            headers.pop(b"expect", None)  # older clients would take "100 Continue" for the answer (RFC 9110, 10.1.1)
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            raise HttpError(
                501,
                f"Transfer-Encoding {coding[:40].decode('latin-1')} is not taken; send chunked, or a Content-Length",
            )
        announced = headers.pop(b"content-length", b"0")
        chunked = coding is not None
        if parser.should_upgrade():  # the parser takes the body for that of the other protocol
            self._left_body = announced != b"0"
            if chunked or not announced.isdigit():
                raise HttpError(411, "a body beside an offer to change the protocol needs a Content-Length")
        length = int(announced) if announced.isdigit() else 0
        keep_alive = parser.should_keep_alive() and version == "1.1"  # older clients wait for a header that says so
        # All others the parser must see again: their bodies pass through it, or it goes on in another way.
        self._plain = keep_alive and not parser.should_upgrade() and not chunked
        path = unquote(path) if "%" in path else path
        self._head_is_there(Head(parser.get_method(), path, query, headers, keep_alive), length)

    def on_body(self, body: bytes) -> None:
        request = self._request
        if request is None or request.early is not None:
            return
        self._size += len(body)
        self._listener.body_grows(request, self._size)
        if request.early is None:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        if not self._left_body:
            self._message_is_there()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            raise HttpError(431, f"the headers have more than {MAX_HEADER_BYTES} bytes")

    def _forget(self) -> None:
        """Forget the request before."""
        self._chunks = []
        self._size = 0
        self._body = None
        self._at = self._room = self._skip = 0
        self._waits = False
        self._left_body = False
        self._parsed = False
        self._request = None


def _without_length(text: bytes) -> tuple[bytes | tuple[bytes, bytes], int]:
    """Return a head without the digits of the body's length, and that length; as it is, and 0, where it has none.

    What is before and what is after the digits stay apart. So it is no other head, also not one without digits there.
    """
    match = _LENGTH.search(text)
    if match is None:
        return text, 0
    begin, end = match.span(1)
    return (text[:begin], text[end:]), int(text[begin:end])
