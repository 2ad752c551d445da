"""Hosts and ports as text. A host of IPv6 has brackets where a port follows it."""

from __future__ import annotations

from urllib.parse import unquote


def address(host: str, port: int) -> str:
    """Return ``127.0.0.1:8000`` or ``[::1]:8000``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def client_of(peer: str) -> tuple[str, int] | None:
    """Return host and port of a client as gRPC names it, ``ipv6:%5B::1%5D:40000``; None where it has none."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdecimal() else None
