"""BentoML with the same runner: ``bentoml serve bentoml_app:Classify`` or, with its adaptive batches, ``:Front``.

The setting comes as JSON in SETTING: ``workers``, ``threads``, ``batch``, ``max_latency_ms``; the package in PACKAGE.
"""

from __future__ import annotations

import json
import os
from importlib import import_module
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType

SETTING = json.loads(os.environ.get("SETTING", "{}"))
PACKAGE = os.environ.get("PACKAGE", "")
WORKERS = SETTING.get("workers", 1)
THREADS = SETTING.get("threads", 2)
LATENCY_MS = SETTING.get("max_latency_ms", 50)


def _runner(batch: int) -> Any:
    return import_module(PACKAGE).Runner(threads=1, instances=max(1, 2 // WORKERS), batch_size=batch)


def _classes(found: Any) -> list[dict[str, Any]]:
    return [{"label": one.label, "index": one.index, "probability": one.probability} for one in found]


@bentoml.service(workers=WORKERS, threads=THREADS, traffic={"timeout": 30, "max_concurrency": SETTING.get("limit")})
class Classify:
    """One request a call of the model, in threads of each worker."""

    def __init__(self) -> None:
        self.runner = _runner(1)

    @bentoml.api
    def predict(self, image: Annotated[bytes, ContentType("image/jpeg")], /) -> list[dict[str, Any]]:
        """Classify the image in the body."""
        return _classes(self.runner.predict(image, top_k=5))


@bentoml.service(workers=WORKERS, threads=THREADS, traffic={"timeout": 30})
class Model:
    """The model alone, with BentoML's adaptive batches."""

    def __init__(self) -> None:
        self.runner = _runner(SETTING.get("batch", 8))

    @bentoml.api(batchable=True, max_batch_size=SETTING.get("batch", 8), max_latency_ms=LATENCY_MS)
    def infer(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the scores of a batch of decoded images."""
        return np.asarray(self.runner(np.asarray(pixels, np.uint8)), np.float32)


@bentoml.service(workers=WORKERS, threads=THREADS, traffic={"timeout": 30})
class Front:
    """Decodes an image, and asks ``Model`` for its scores."""

    model = bentoml.depends(Model)

    def __init__(self) -> None:
        self.runner = _runner(1)

    @bentoml.api
    def predict(self, image: Annotated[bytes, ContentType("image/jpeg")], /) -> list[dict[str, Any]]:
        """Classify the image in the body."""
        pixels = self.runner.load(image)[None]
        return _classes(self.runner.top(self.model.infer(pixels)[0], 5))
