"""The options of ``NAME serve``: what they are, and which values are possible."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.options import positive_int, positive_seconds, require_positive
from ..errors import InputError

KINDS = ("systemd", "containerfile", "compose")
_MEBIBYTE = 1024 * 1024
_ABOVE_ZERO = (
    "threads", "instances", "batch_size", "max_queue", "max_queue_bytes", "max_body_bytes", "max_connections",
    "max_latency_ms", "client_timeout_s", "idle_timeout_s",
)  # fmt: skip


@dataclass(frozen=True)
class ServeOptions:
    """How to serve. None leaves a number to the plan. Raises InputError for a value that is impossible."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    max_latency_ms: float | None = None
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    max_queue: int = 1024
    max_queue_bytes: int = 512 * _MEBIBYTE
    max_body_bytes: int = 32 * _MEBIBYTE
    max_connections: int = 3968
    client_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    grace_s: float = 0.0
    drain_s: float = 30.0
    shed_status: int = 429
    token: str | None = None
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    access_log: str | None = None

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            require_positive("--" + name.removesuffix("_s").replace("_", "-"), getattr(self, name))
        for name in ("grace_s", "drain_s"):
            if not 0 <= getattr(self, name) <= 86_400:
                raise InputError(f"--{name[:-2]} {getattr(self, name):g}: expected seconds, 0 to 86400")
        for name in ("port", "grpc_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected a port, 0 to 65535; 0 takes a free one")
        if self.grpc_port is not None and self.grpc_port == self.port != 0:
            raise InputError(f"--grpc-port {self.grpc_port}: HTTP has this port; choose another")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key go together")
        if self.token is not None:
            check_token(self.token)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``NAME serve``."""
    default = ServeOptions()

    def group(title: str) -> Any:
        return parser.add_argument_group(title).add_argument

    add = group("promise")
    add(
        "--max-latency-ms",
        type=positive_seconds,
        metavar="MS",
        help="p99 of admitted requests; what cannot be answered in this time is refused (default: no bound)",
    )
    add("--plan", action="store_true", help="print the rate that this host carries with this promise, and stop")
    add(
        "--shed-status",
        type=int,
        choices=(429, 503),
        default=default.shed_status,
        help="status of a refused request (default: 429)",
    )
    add(
        "--max-queue",
        type=positive_int,
        default=default.max_queue,
        metavar="N",
        help="requests that may wait (default: 1024)",
    )
    add(
        "--max-queue-mb",
        type=positive_int,
        default=default.max_queue_bytes // _MEBIBYTE,
        metavar="MIB",
        help="memory of the requests that wait or run (default: 512)",
    )

    add = group("address")
    add("--host", default=default.host, help="address to listen on (default: 127.0.0.1; 0.0.0.0 for all)")
    add("--port", type=int, default=default.port, help="port of HTTP (default: 8000; 0 for a free one)")
    add("--grpc-port", type=int, metavar="PORT", help="port of gRPC (default: no gRPC; 0 for a free one)")
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM; HTTP and gRPC then need TLS")
    add("--tls-key", type=Path, metavar="FILE", help="private key of the certificate")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that requests must carry (Authorization: Bearer)",
    )

    add = group("setting")
    add("--threads", type=positive_int, metavar="N", help="threads of one instance")
    add("--instances", type=positive_int, metavar="N", help="copies of the model run in parallel")
    add("--batch-size", type=positive_int, metavar="N", help="samples of a call, at most")

    add = group("limits")
    add(
        "--max-body-mb",
        type=positive_int,
        default=default.max_body_bytes // _MEBIBYTE,
        metavar="MIB",
        help="largest body (default: 32)",
    )
    add(
        "--max-connections",
        type=positive_int,
        default=default.max_connections,
        metavar="N",
        help="open connections; the longest idle one gives way (default: 3968, what 4096 open files allow)",
    )
    add(
        "--client-timeout",
        type=positive_seconds,
        default=default.client_timeout_s,
        metavar="S",
        help="time in which a request must arrive (default: 30)",
    )
    add(
        "--idle-timeout",
        type=positive_seconds,
        default=default.idle_timeout_s,
        metavar="S",
        help="time that a connection may be idle (default: 75)",
    )

    add = group("operation")
    add(
        "--access-log", metavar="FILE", help="write a JSON line for each request; - for standard output (default: none)"
    )
    add(
        "--grace",
        type=float,
        default=default.grace_s,
        metavar="S",
        help="seconds to serve on after SIGTERM, not ready, while load balancers notice (default: 0)",
    )
    add(
        "--drain",
        type=float,
        default=default.drain_s,
        metavar="S",
        help="seconds to finish admitted requests, at most (default: 30)",
    )
    add(
        "--emit", choices=KINDS,
        help="print a systemd unit, a Containerfile or a compose file for these options, and stop",
    )  # fmt: skip


def from_arguments(args: argparse.Namespace) -> ServeOptions:
    """Return the options that ``args`` hold (of a parser with ``add_arguments``). Raises InputError."""
    return ServeOptions(
        host=args.host,
        port=args.port,
        grpc_port=args.grpc_port,
        max_latency_ms=args.max_latency_ms,
        threads=args.threads,
        instances=args.instances,
        batch_size=args.batch_size,
        max_queue=args.max_queue,
        max_queue_bytes=args.max_queue_mb * _MEBIBYTE,
        max_body_bytes=args.max_body_mb * _MEBIBYTE,
        max_connections=args.max_connections,
        client_timeout_s=args.client_timeout,
        idle_timeout_s=args.idle_timeout,
        grace_s=args.grace,
        drain_s=args.drain,
        shed_status=args.shed_status,
        token=None if args.token_file is None else read_token(args.token_file),
        token_file=args.token_file,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        access_log=args.access_log,
    )


def check_token(token: str) -> None:
    """Raise InputError for a token that is too short, or that a header cannot carry."""
    if len(token) < 8 or not token.isascii() or not token.isprintable():
        raise InputError("--token-file: the token must be at least 8 printable ASCII characters")


def read_token(path: Path) -> str:
    """Return the token that a file has. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--token-file {path}: {error}") from error
