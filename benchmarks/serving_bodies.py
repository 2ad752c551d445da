"""What ``serving.py`` sends: images, and tensors in two forms."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from serving_servers import Server

from cpupack.runtime.serve.load_client import HttpDoor


@dataclass(frozen=True)
class Bodies:
    """What is sent: a path, the bodies in turn, and headers."""

    path: str
    bodies: Sequence[bytes]
    headers: Sequence[tuple[str, str]]

    def door(self, port: int) -> HttpDoor:
        return HttpDoor("127.0.0.1", port, self.path, self.bodies, self.headers)


def images(folder: Path | None) -> Bodies:
    """Return the JPEG files of a folder as bodies of /predict."""
    if folder is None:
        sys.exit("--images names the folder of JPEG files")
    found = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")]
    return Bodies("/predict", found, [("Content-Type", "image/jpeg")])


def _tensors(server: Server) -> tuple[str, list[int], list[bytes]]:
    """Return the model's path, the shape of one sample, and some samples."""
    with server.turn():
        found = server.metadata()
    shape = [1, *found["inputs"][0]["shape"][1:]]
    generator = np.random.default_rng(0)
    samples = [generator.integers(0, 256, shape, dtype=np.uint8).tobytes() for _ in range(16)]
    return f"/v2/models/{found['name']}/infer", shape, samples


def raw_tensor(server: Server) -> Bodies:
    """Return pixels that are the whole body."""
    path, _, samples = _tensors(server)
    return Bodies(path, samples, [("Inference-Header-Content-Length", "0")])


def binary_tensor(server: Server) -> Bodies:
    """Return pixels after a JSON head, as clients of the Open Inference Protocol send them."""
    path, shape, samples = _tensors(server)
    size = len(samples[0])
    one = {"name": "input", "datatype": "UINT8", "shape": shape, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one], "parameters": {"binary_data_output": True}}).encode()
    return Bodies(path, [head + body for body in samples], [("Inference-Header-Content-Length", str(len(head)))])
