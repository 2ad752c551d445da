"""A connection reads requests however they are cut, past the parser or through it, and answers them in order."""

from __future__ import annotations

import asyncio
import itertools
import re

import pytest

from cpupack.runtime.serve.connection import Connection
from cpupack.runtime.serve.messages import HttpAnswer, HttpRequest
from cpupack.runtime.serve.reading import Desk, Head
from helpers.wire import (
    ALL,
    CHUNKED,
    EXPECTED,
    NO_BODY,
    REFUSED,
    SIMPLE,
    UPGRADE,
    Wire,
    bodies,
    echo,
    echo_later,
    receive,
    shared,
    talk,
)


@pytest.mark.parametrize("piece", [*range(1, 60), len(ALL)])
def test_pipelined_requests_are_read_however_they_are_cut(piece: int) -> None:
    assert bodies(talk(ALL, piece).written) == EXPECTED


@pytest.mark.parametrize("piece", [1, 7, 50, len(ALL)])
def test_answers_that_take_time_keep_their_order(piece: int) -> None:
    assert bodies(talk(ALL, piece, echo_later).written) == EXPECTED


@pytest.mark.parametrize("size", [2**16 - 1, 2**18, 2**18 + 1, 2**20, 2**20 + 1, 2**21])
def test_large_bodies_arrive_whole(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    request = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + body
    assert bodies(talk(request * 2, 100_000).written) == [b"/x " + body] * 2


def test_a_refused_body_may_be_larger_than_what_is_kept() -> None:
    request = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % 2**22 + bytes(2**22)
    assert bodies(talk(request + SIMPLE, 2**16).written) == [b"refused", b"/a hello"]


def test_a_refusal_is_written_before_the_body_is_there() -> None:
    async def run() -> None:
        wire = Wire()
        connection = Connection(shared(echo))
        connection.connection_made(wire)
        receive(connection, REFUSED[:-7], 1000)
        assert bodies(wire.written) == [b"refused"]
        connection.check(float("inf"))  # the body never comes: no second answer
        assert bodies(wire.written) == [b"refused"]
        assert wire.closed

    asyncio.run(run())


def test_a_chunked_body_beside_an_offer_to_upgrade_is_refused() -> None:
    request = CHUNKED.replace(b"\r\n", b"\r\nConnection: upgrade\r\nUpgrade: h2c\r\n", 1)
    wire = talk(request + SIMPLE, 1000)
    assert wire.written.startswith(b"HTTP/1.1 411 ")
    assert wire.closed


def test_what_fails_after_a_wait_is_an_answer_too() -> None:
    async def fail(request: HttpRequest) -> HttpAnswer:
        await asyncio.sleep(0.001)
        raise ValueError("on purpose")

    written = talk(SIMPLE + NO_BODY, 1000, fail).written
    assert written.startswith(b"HTTP/1.1 500 ")
    assert len(bodies(written)) == 2


def test_a_head_that_is_known_is_read_as_at_the_first_time() -> None:
    """Each message is read alone, by the parser, and then again and again, past it."""
    empty = b"POST /f HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    for message in (SIMPLE, NO_BODY, CHUNKED, UPGRADE, REFUSED, empty):
        once = bodies(talk(message, 1000).written)
        assert len(once) == 1
        assert bodies(talk(message * 4, 1000).written) == once * 4
        assert bodies(talk(message * 4, len(message)).written) == once * 4


def test_a_head_is_known_by_every_byte_of_it() -> None:
    other = SIMPLE.replace(b"/a", b"/z")
    assert bodies(talk(SIMPLE + other + SIMPLE + other, 1000).written) == [b"/a hello", b"/z hello"] * 2


def test_a_head_that_is_known_takes_a_body_of_any_length() -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\ncontent-length:%b\r\nX: y\r\n\r\n"
    messages = [head % b" 5" + b"hello", head % b" 0", head % b" 12" + b"hello, world", head % b" 001" + b"a"]
    assert bodies(talk(b"".join(messages) * 2, 1000).written) == [b"/a hello", b"/a ", b"/a hello, world", b"/a a"] * 2
    large = b"z" * 2_000_000  # it goes the long way
    written = bodies(talk(messages[0] + head % b" 2000000" + large + messages[0], 1000).written)
    assert written == [b"/a hello", b"/a " + large, b"/a hello"]


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length:  5", b"Content-Length: 5 ", b"Content-Length:\t5", b"CONTENT-LENGTH:5",
        b"content-length: 0005", b"X: Content-Length: 3\r\nContent-Length: 5", b"Content-Length: 0000000000000000005",
    ],
)  # fmt: skip
def test_a_body_is_read_however_its_length_is_written(line: bytes) -> None:
    """Once a head with two blanks before the length was known as one without a body."""
    message = b"POST /a HTTP/1.1\r\nHost: a\r\n" + line + b"\r\n\r\nhello"
    once = bodies(talk(message, 1).written)
    assert once == [b"/a hello"]
    assert bodies(talk(message * 4, 1000).written) == once * 4


def test_a_head_means_the_same_whoever_reads_it() -> None:
    """Heads in many spellings, each four times: in one piece, past the parser where it is known, and byte by byte."""

    def dated(wire: Wire) -> tuple[bytes, bool]:
        return re.sub(rb"date: [^\r]*\r\n", b"", wire.written), wire.closed

    names = (b"Content-Length", b"CONTENT-length", b"X-Content-Length", b"Content-Length ", b" Content-Length")
    values = (b"5", b"05", b" 5 ", b"\t5", b"+5", b"-5", b"5,5", b"", b"1e1", b"0x5", b"9" * 20, b"5\x00", b"5\r\n 5")
    for name, value in itertools.product(names, values):
        message = b"POST /a HTTP/1.1\r\nHost: a\r\n%b:%b\r\n\r\nhello" % (name, value)
        assert dated(talk(message * 4, 1000)) == dated(talk(message * 4, 1)), message


def test_blanks_around_a_header_s_value_are_not_part_of_it() -> None:
    async def headers(request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, b"|".join([request.headers[name] for name in (b"x-a", b"x-b", b"x-c")]))

    message = b"GET /a HTTP/1.1\r\nHost: a\r\nX-A: \t a b \t \r\nX-B:\r\nx-c: 1 \r\nX-C: 2\t\r\n\r\n"
    for piece in (1, 1000):
        assert bodies(talk(message * 2, piece, headers).written) == [b"a b||1, 2"] * 2


def test_a_client_of_http_1_0_is_never_told_to_continue() -> None:
    """It would take that for the answer."""
    message = b"POST /a HTTP/1.%d\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    for piece in (1, 1000):
        assert talk(message % 1, piece).written.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")
        assert talk(message % 0, piece).written.startswith(b"HTTP/1.1 200 OK\r\n")


def test_who_begins_with_http_2_is_told_what_is_spoken_here() -> None:
    written = talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1000).written
    assert bodies(written) == [
        b'{"error": "this is not HTTP/1.1: it is HTTP/2; gRPC has a port of its own, --grpc-port"}'
    ]


def test_nothing_is_answered_after_the_last_answer() -> None:
    last = SIMPLE.replace(b"HTTP/1.1", b"HTTP/1.0")
    wire = talk(last + SIMPLE, 1000)
    assert bodies(wire.written) == [b"/a hello"]
    assert wire.closed


@pytest.mark.parametrize("length", [b"", b" ", b" -5", b" 5, 6", b" 5 6", b" 0x5", b" \x00"])
def test_a_length_that_is_no_number_is_refused_also_in_a_head_that_is_known(length: bytes) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length:%b\r\n\r\n"
    wire = talk(head % b" 5" + b"hello" + head % length + b"hello", 1000)
    assert wire.written.count(b"HTTP/1.1 200") == 1
    assert wire.written.count(b"HTTP/1.1 400") == 1
    assert wire.closed


def test_two_requests_that_look_like_one_head_are_never_known_as_one() -> None:
    """Lines that end without a carriage return may be two requests up to the first blank line that counts."""
    twice = b"GET /b HTTP/1.1\nHost: a\n\nGET /g HTTP/1.1\r\nHost: a\r\n\r\n"
    assert talk(twice * 3, 1000).written == talk(twice * 3, 1).written


def test_the_last_request_of_a_client_closes_the_connection_also_when_it_comes_again() -> None:
    last = b"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    wire = talk(NO_BODY + NO_BODY + last + NO_BODY, 1000)
    assert bodies(wire.written) == [b"/b "] * 3
    assert wire.closed


def test_there_is_a_bound_on_the_heads_that_are_known() -> None:
    desk = Desk()
    for number in range(5000):
        desk.learn(b"%d" % number, Head(b"GET", "/", b"", {}), 0)
    assert 0 < len(desk.heads) <= 512
    desk.learn(bytes(5000), Head(b"GET", "/", b"", {}), 0)
    assert bytes(5000) not in desk.heads
