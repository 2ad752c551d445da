"""A packaged model's server in a process of its own, as a user starts it."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.waiting import PATIENCE_S, wait_until


def _photo() -> bytes:
    """Return a JPEG of noise, 600 x 400."""
    pixels = np.random.default_rng(1).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


PHOTO = _photo()


@dataclass
class Answer:
    """One answer: status, headers by lower-case name, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Served:
    """A running server: its process, its ports, and what it has said so far."""

    process: subprocess.Popen[bytes]
    said_path: Path
    port: int = 0
    grpc_port: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def said(self) -> str:
        return self.said_path.read_text("utf-8", "replace")

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            found = connection.getresponse()
            return Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def infer(self, model: str, request: Mapping[str, Any]) -> Answer:
        """Send an ``infer`` request as JSON."""
        return self.ask("POST", f"/v2/models/{model}/infer", json.dumps(request).encode())

    def metric(self, line: str) -> float:
        """Return the value of one line of ``/metrics``, given without it, 0 where there is none."""
        found = re.search(rf"^{re.escape(line)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def serving(package_dir: Path, *options: str, wait: bool = True) -> Iterator[Served]:
    """Start ``serve`` on free ports; with ``wait`` until it is ready. What is left of it at the end is killed."""
    with tempfile.TemporaryDirectory() as scratch:
        said = Path(scratch) / "said"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(Path(scratch) / "cache")}
        command = [sys.executable, "-m", package_dir.name, "serve", "--port", "0", *options]
        with said.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=package_dir.parent, env=environment, stdout=subprocess.DEVNULL, stderr=stream
            )
        served = Served(process, said, environment=environment)
        try:
            if wait:
                wait_until(lambda: "ready on" in served.said or process.poll() is not None)
                found = re.search(r"ready on https?://\S+:(\d+)", served.said)
                assert found is not None, served.said
                served.port = int(found[1])
                grpc = re.search(r"gRPC on \S+:(\d+)", served.said)
                served.grpc_port = int(grpc[1]) if grpc else 0
            yield served
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def run_serve(package_dir: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command ``serve`` to its end: for what it refuses, and for what it prints."""
    command = [sys.executable, "-m", package_dir.name, "serve", *options]
    return subprocess.run(
        command, cwd=package_dir.parent, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
