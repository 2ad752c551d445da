"""``NAME bench --server URL``: offers a rate of requests to a running server and judges its answers."""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ..bench import feeds
from ..bench.options import BenchOptions
from ..bench.server import MIN_REQUESTS, Load
from ..bench.stats import latency_summary
from ..bench.verdict import late_client
from ..errors import HostError, InputError
from ..manifest import Manifest, read_manifest
from ..random_rows import random_batch
from ..signature import signature_of
from ..tensor_spec import TensorSpec
from . import load_client
from .addresses import address
from .descriptors import SERVICE, messages
from .load_client import OK, REFUSED, Door, Outcome
from .named import DATATYPES
from .tensors import BYTES, join_bytes

DEFAULT_DURATION_S = 10.0
_WARM_UP_S = 1.0
_MOST_FILES = 200
_REQUESTS = 16
_BUSY_CLIENT = 0.7
"""Share of a core above which the client itself may be what limits the rate."""


@dataclass(frozen=True)
class Target:
    """Where the server is: ``http`` or ``grpc``, host, port, and whether it speaks TLS."""

    protocol: str
    host: str
    port: int
    tls: bool = False

    @property
    def scheme(self) -> str:
        """The scheme of the URL."""
        return self.protocol + "s" * self.tls

    def __str__(self) -> str:
        return f"{self.scheme}://{address(self.host, self.port)}"


def parse_url(url: str) -> Target:
    """Return the target that a URL names. Raises InputError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"--server {url}: {error}") from None
    if parts.username is not None:
        raise InputError("--server: a server takes no user and no password; --token-file names the file of its token")
    protocol = parts.scheme.removesuffix("s")
    known = parts.scheme in ("http", "https", "grpc", "grpcs")
    if not known or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InputError(
            f"--server {url}: expected http://HOST:PORT or grpc://HOST:PORT, or https and grpcs for a server with TLS"
        )
    return Target(protocol, parts.hostname, port or (8000 if protocol == "http" else 8001), parts.scheme != protocol)


@dataclass(frozen=True)
class Access:
    """What a client shows and trusts: a token, and a file of certificates that vouch for the server's."""

    token: str | None = None
    ca: Path | None = None

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of a request."""
        return [] if self.token is None else [("Authorization", f"Bearer {self.token}")]

    def context(self) -> ssl.SSLContext:
        """Return what HTTP over TLS needs. Raises InputError for a file without certificates."""
        try:
            return ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except OSError as error:  # ssl.SSLError is one
            raise InputError(f"--ca {self.ca}: {error.strerror or error}; name a file of certificates in PEM") from None

    def roots(self) -> bytes | None:
        """Return the certificates as gRPC takes them. Raises InputError."""
        self.context()
        return None if self.ca is None else self.ca.read_bytes()


def run(package_dir: Path, url: str, options: BenchOptions, access: Access | None = None) -> dict[str, Any]:
    """Return the result as JSON. Raises InputError for options without a meaning here, HostError without a server."""
    target, manifest, access = parse_url(url), read_manifest(package_dir), access or Access()
    if access.ca is not None and not target.tls:
        raise InputError(f"--ca {access.ca} is for https:// and grpcs://, and --server is {url}")
    for option, value in (
        ("--threads", options.threads), ("--instances", options.instances), ("--batch-size", options.batch_size),
        ("--find-peak", options.find_peak), ("--compare", options.compare), ("--loadgen", options.loadgen),
    ):  # fmt: skip
        if value:
            raise InputError(f"{option} is the server's own setting, or not for --server; leave it out")
    if options.rate_per_s is None:
        raise InputError("--server needs --rate PER_SECOND")
    load = Load(options.rate_per_s, (options.duration_s or DEFAULT_DURATION_S) + _WARM_UP_S, options.seed)
    door, what = _door(target, manifest, options, access)
    outcome, cpu_s, took_s = _offer(door, load)
    found = judge(target, manifest, options, load, outcome, what, cpu_s, took_s)
    return found | {"server_metrics": _server_metrics(target, access)}


@dataclass(frozen=True)
class _Tensor:
    """One tensor to send: ``body`` is its raw form, of BYTES the element without its length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    body: bytes


def _door(target: Target, manifest: Manifest, options: BenchOptions, access: Access) -> tuple[Door, str]:
    inputs = signature_of(manifest).inputs
    if options.image_dir is not None:
        files = feeds.list_images(options.image_dir, manifest)[:_MOST_FILES]
        requests = [[_Tensor(inputs[0].name, BYTES, (1,), path.read_bytes())] for path in files]
        size = sum(len(each.body) for (each,) in requests) / len(requests)
        what = f"{len(requests)} image files, {_bytes_text(size)} on average"
    else:
        requests = _requests(inputs, options.seed)
        what = f"tensors of {_bytes_text(sum(len(each.body) for each in requests[0]))}"
    headers = access.headers
    if target.protocol == "grpc":
        packed, method = [_message(manifest, each) for each in requests], f"/{SERVICE}/ModelInfer"
        roots = access.roots() if target.tls else None
        return load_client.GrpcDoor(
            target.host, target.port, method, packed, headers, tls=target.tls, roots=roots
        ), what
    tls = access.context() if target.tls else None
    if options.image_dir is not None:
        path, headers = "/predict", [*headers, ("Content-Type", "image/jpeg")]
        bodies = [each.body for (each,) in requests]
        return load_client.HttpDoor(target.host, target.port, path, bodies, headers, tls), what
    heads = [_json_head(each) for each in requests]
    whole = [b"".join([head, *(each.body for each in request)]) for head, request in zip(heads, requests, strict=True)]
    headers = [*headers, ("Inference-Header-Content-Length", str(len(heads[0])))]
    path = f"/v2/models/{manifest.name}/infer"
    return load_client.HttpDoor(target.host, target.port, path, whole, headers, tls), what


def _requests(inputs: Sequence[TensorSpec], seed: int) -> list[list[_Tensor]]:
    """Return the tensors of a few requests of one sample, random values that the model takes."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(_REQUESTS):
        batches = [(each.name, random_batch(each, generator, 1)) for each in inputs]
        found.append([_Tensor(name, DATATYPES[str(one.dtype)], one.shape, one.tobytes()) for name, one in batches])
    return found


def _json_head(tensors: Sequence[_Tensor]) -> bytes:
    """Return the JSON before binary data. All have one length: the tensors of requests have one size."""
    described = [
        {
            "name": each.name, "datatype": each.datatype, "shape": list(each.shape),
            "parameters": {"binary_data_size": len(each.body)},
        }
        for each in tensors
    ]  # fmt: skip
    return json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()


def _message(manifest: Manifest, tensors: Sequence[_Tensor]) -> bytes:
    message = messages()["ModelInferRequest"](model_name=manifest.name)
    for each in tensors:
        message.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        message.raw_input_contents.append(join_bytes([each.body]) if each.datatype == BYTES else each.body)
    return bytes(message.SerializeToString())


def _offer(door: Door, load: Load) -> tuple[Outcome, float, float]:
    import uvloop

    async def offer() -> Outcome:
        await door.open()
        try:
            return await load_client.offer(door, load.arrivals_s())
        finally:
            await door.close()

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    used, begin_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    try:
        outcome = loop.run_until_complete(offer())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return outcome, cpu_s, time.monotonic() - begin_s


def _bytes_text(count: float) -> str:
    return f"{count:.0f} bytes" if count < 1000 else f"{count / 1000:.0f} KB"


def judge(
    target: Target,
    manifest: Manifest,
    options: BenchOptions,
    load: Load,
    outcome: Outcome,
    what: str,
    cpu_s: float,
    took_s: float,
) -> dict[str, Any]:
    """Return the result as JSON. Raises HostError where no request was answered."""
    counted = outcome.due_s >= _WARM_UP_S
    duration_s = load.duration_s - _WARM_UP_S
    latency_ms = 1000.0 * (outcome.end_s - outcome.due_s)
    answered, refused = counted & (outcome.state == OK), counted & (outcome.state == REFUSED)
    late_ms = 1000.0 * (outcome.sent_s - outcome.due_s)[counted & ~np.isnan(outcome.sent_s)]
    if not counted.any():
        raise InputError(f"--rate {load.rate_per_s:g} for {duration_s:g} s offers no requests")
    if not answered.any():
        causes = "; ".join(f"{text} ({count})" for text, count in outcome.errors.items()) or "every request was refused"
        raise HostError(f"{target} answered no request: {causes}")
    summary, bound = latency_summary(latency_ms[answered]), options.max_latency_ms
    reasons = late_client(float(np.percentile(late_ms, 99)), summary["p99"])
    if int(answered.sum()) < MIN_REQUESTS:
        reasons.append(f"only {int(answered.sum())} answers; a p99 needs {MIN_REQUESTS}: raise --duration")
    if cpu_s / took_s > _BUSY_CLIENT:
        reasons.append(f"the client was busy for {cpu_s / took_s:.0%} of a core; it may have limited the rate")
    failed = int(counted.sum() - answered.sum() - refused.sum())
    within = answered if bound is None else answered & (latency_ms <= bound)
    return {
        "scenario": "server",
        "server": str(target),
        "body": what,
        "rate_per_s": load.rate_per_s,
        "duration_s": duration_s,
        "requests": int(counted.sum()),
        "answered": int(answered.sum()),
        "refused": int(refused.sum()),
        "failed": failed,
        "errors": outcome.errors,
        "answered_per_s": float(answered.sum()) / duration_s,
        "goodput_per_s": float(within.sum()) / duration_s,
        "max_latency_ms": bound,
        "passed": None if bound is None else summary["p99"] <= bound and not failed,
        "latency_ms": summary,
        "refusal_ms": latency_summary(latency_ms[refused]) if refused.any() else None,
        "client": {"cpu_s": cpu_s, "cpu_share": cpu_s / took_s, "late_p99_ms": float(np.percentile(late_ms, 99))},
        "valid": not reasons,
        "invalid_reasons": reasons,
        "manifest": {"name": manifest.name, "version": manifest.version},
    }


def _server_metrics(target: Target, access: Access) -> dict[str, float]:
    """Return the server's CPU time and memory, where it tells them over HTTP."""
    if target.protocol != "http":
        return {}
    # As the requests go, past any proxy of the environment: it would get the token.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if target.tls:
        handlers.append(urllib.request.HTTPSHandler(context=access.context()))
    try:
        request = urllib.request.Request(f"{target}/metrics", headers=dict(access.headers))  # noqa: S310 - parse_url
        with urllib.request.build_opener(*handlers).open(request, timeout=5) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.URLError, UnicodeDecodeError):
        return {}
    wanted = ("process_cpu_seconds_total", "process_resident_memory_bytes", "cpupack_table_drift_ratio")
    found = {line.split(" ")[0]: line.split(" ")[1] for line in text.splitlines() if line.startswith(wanted)}
    return {name: float(value) for name, value in found.items()}


def format_table(found: dict[str, Any]) -> str:
    """Return a result as lines for a terminal."""
    latency, refusal, client = found["latency_ms"], found["refusal_ms"], found["client"]
    lines = [
        f"{found['server']}: {found['rate_per_s']:g} requests/s for {found['duration_s']:g} s, {found['body']}",
        f"  answered   {found['answered']:,} of {found['requests']:,}, {found['answered_per_s']:.1f}/s",
        f"  latency    p50 {latency['p50']:.2f} ms, p90 {latency['p90']:.2f}, p99 {latency['p99']:.2f}, "
        f"max {latency['max']:.2f} from the scheduled arrival",
    ]
    if refusal is not None:
        lines.append(
            f"  refused    {found['refused']:,}, told within {refusal['p50']:.2f} ms (p50), "
            f"{refusal['p99']:.2f} ms (p99)"
        )
    if found["failed"]:
        causes = "; ".join(f"{text} ({count})" for text, count in found["errors"].items())
        lines.append(f"  failed     {found['failed']:,}: {causes}")
    if found["max_latency_ms"] is not None:
        word = "PASS" if found["passed"] else "FAIL"
        lines.append(
            f"  {word}       p99 of what was answered against {found['max_latency_ms']:g} ms"
            f"{', and no request may fail' if found['failed'] else ''}; {found['goodput_per_s']:.1f}/s within it"
        )
    lines.append(f"  client     {client['cpu_share']:.0%} of a core, p99 late by {client['late_p99_ms']:.2f} ms")
    lines += [f"  NOT VALID  {reason}" for reason in found["invalid_reasons"]] or ["  valid"]
    return "\n".join(lines)
