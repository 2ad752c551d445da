"""Feeds the parsers of the server with what atheris makes up: ``python fuzz_parser.py -atheris_runs=100000``.

An exception other than InputError is a crash; atheris then prints the input. What is accepted must have exactly the
elements that its shape says.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore] # an optional tool
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

with atheris.instrument_imports(include=["cpupack.runtime.serve"]):
    from cpupack.runtime.errors import InputError
    from cpupack.runtime.serve import multipart, protocol, tensors


def check(data: bytes) -> None:
    """Read one made-up body in each of the ways that a client may choose."""
    provider = atheris.FuzzedDataProvider(data)
    length = provider.ConsumeIntInRange(0, 512)
    body = provider.ConsumeBytes(4096)
    with contextlib.suppress(InputError):
        for tensor in protocol.read_request(body, min(length, len(body)) or None).inputs:
            count = tensor.data.size if isinstance(tensor.data, np.ndarray) else len(tensor.data)
            if count != math.prod(tensor.shape):
                raise AssertionError(f"{tensor.name}: {count} elements of shape {tensor.shape}")
    with contextlib.suppress(InputError):
        tensors.split_bytes(body, length, "input")
    with contextlib.suppress(InputError):
        multipart.parts(body, multipart.boundary_of("multipart/form-data; boundary=x"))
    with contextlib.suppress(InputError):
        protocol.header_length(body[:20].decode("latin-1"), len(body))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
