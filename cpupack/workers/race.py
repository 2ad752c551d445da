"""``python -m cpupack.workers.race SPEC.json``: times saved models against each other, interleaved.

The speed of a shared machine drifts by a factor of two within minutes. So models are not timed one after the other:
every round times each of them briefly, and ratios are computed within each round.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.images.inputs import random_input
from cpupack.runtime.images.preprocess import PreprocessSpec


def main(spec_path: str) -> None:
    """Time each of ``entries`` ``{name, path, engine, pixel_input}`` on the same pixels.

    Writes ``rows`` ``{round, name, latency_ms}``. SPEC also holds ``input_shape``,
    ``preprocess``, ``batch_size``, ``threads``, ``rounds`` and ``round_s``.
    """
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    preprocess = PreprocessSpec.from_dict(spec["preprocess"]) if spec["preprocess"] else None
    pools: dict[str, InstancePool] = {}
    batches: dict[str, torch.Tensor] = {}
    calls: dict[str, int] = {}
    for entry in spec["entries"]:
        pool = InstancePool(Path(entry["path"]), entry["engine"], spec["threads"], instances=1)
        batch = torch.from_numpy(
            random_input(
                np.random.default_rng(0),
                spec["batch_size"],
                tuple(spec["input_shape"]),
                preprocess,
                pixel_input=entry["pixel_input"],
            )
        )
        pool.warm(batch)
        pools[entry["name"]], batches[entry["name"]] = pool, batch
        calls[entry["name"]] = max(1, round(spec["round_s"] / _time(pool, batch, calls=1)))
    rows: list[dict[str, Any]] = []
    for number in range(spec["rounds"]):
        order = list(pools) if number % 2 == 0 else list(reversed(pools))
        for name in order:
            seconds = _time(pools[name], batches[name], calls[name])
            rows.append({"round": number, "name": name, "latency_ms": seconds * 1e3})
    for pool in pools.values():
        pool.close()
    Path(spec["rows"]).write_text(json.dumps(rows), encoding="utf-8")


def _time(pool: InstancePool, batch: torch.Tensor, calls: int) -> float:
    """Return the mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        pool.run(batch)
    return (time.perf_counter() - start) / calls


if __name__ == "__main__":
    main(*sys.argv[1:])
