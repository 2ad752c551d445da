"""Hosts of IPv6 in what the server and its clients write: with brackets where a port follows, and without elsewhere."""

from __future__ import annotations

import pytest

from cpupack.runtime.serve.addresses import address, client_of
from cpupack.runtime.serve.load_client import GrpcDoor, HttpDoor
from cpupack.runtime.serve.remote_bench import parse_url


def test_a_host_of_ipv6_has_brackets_before_a_port() -> None:
    assert address("::1", 8000) == "[::1]:8000"
    assert address("localhost", 8000) == "localhost:8000"
    assert str(parse_url("https://[::1]:9000")) == "https://[::1]:9000"


def test_the_client_of_the_bench_writes_it_so() -> None:
    assert b"\r\nHost: [::1]:9000\r\n" in HttpDoor("::1", 9000, "/predict", [b""], [])._requests[0]
    assert GrpcDoor("::1", 9000, "/a", [b""], [])._address == "[::1]:9000"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:4242", ("10.0.0.7", 4242)),
        ("ipv6:%5B::1%5D:4242", ("::1", 4242)),
        ("ipv6:%5Bfe80::1%25eth0%5D:4242", ("fe80::1%eth0", 4242)),
        ("unix:", None),
    ],
)
def test_the_client_of_a_call(peer: str, client: tuple[str, int] | None) -> None:
    assert client_of(peer) == client
