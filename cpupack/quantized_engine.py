"""Selects the engine of a quantized model. torch has one setting per process and reads it when it packs weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cpupack.errors import QuantizationError
from cpupack.runtime.engine import library
from cpupack.runtime.errors import HostError
from cpupack.targets import ENGINES


def supported_engines() -> list[str]:
    """Return the quantized engines of this torch build, and ``native`` if its kernels are built and run here."""
    natively = library.describe()["problem"] is None
    ours = [each.name for each in ENGINES.values() if each.loader == "native" and natively]
    return [*ours, *(name for name in torch.backends.quantized.supported_engines if name != "none")]


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Set torch's engine inside ``with`` and restore the old one after it. For ``native`` only define the operator.

    Raises QuantizationError when the native kernels cannot run here.
    """
    if ENGINES[name].loader == "native":
        try:
            library.load()
        except HostError as error:
            raise QuantizationError(str(error), hint="cpupack doctor shows what runs here") from error
        yield
        return
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
