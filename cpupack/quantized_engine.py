"""torch's quantized engine: one setting for the process, read when weights are packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def supported_engines() -> list[str]:
    """Return the quantized engines of this torch build."""
    return [name for name in torch.backends.quantized.supported_engines if name != "none"]


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Set the engine for a block and put the old one back."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
