"""``python -m cpupack.workers.race SPEC.json``: times saved models against each other, interleaved.

The speed of a shared machine drifts by a factor of two within minutes. So models are not timed one after the other:
every round times each of them briefly, and ratios are computed within each round.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.random_rows import random_engine_input
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.workers.steps import tell

_TWICE, _CLEARLY = 2.0, 1.25
"""A model leaves the race after two rounds if another was faster by the first factor in both, else by the second."""
_HOPELESS = 4.0
"""A model that takes that many times as long as the fastest so far is not warmed up further."""
_LEAST_ROUNDS = 3
"""Of these the median is taken, however long they take."""


def main(spec_path: str) -> None:
    """Time each of ``entries`` ``{name, path, engine, pixel_input}`` on the same pixels. The first is FP32.

    Writes ``rows`` ``{round, name, latency_ms}``. A model that cannot win leaves the race early.
    SPEC also holds ``inputs``, ``batch_size``, ``threads``, ``rounds``, ``round_s``, and ``most_s``: no round but the
    first three begins that would end later than that, None for no such limit.
    """
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    inputs = tuple(TensorSpec.from_dict(each) for each in spec["inputs"])
    pools: dict[str, InstancePool] = {}
    batches: dict[str, torch.Tensor] = {}
    calls: dict[str, int] = {}
    fastest_s = math.inf
    parts = len(spec["entries"]) + spec["rounds"]
    for done, entry in enumerate(spec["entries"]):
        tell(spec_path, done, parts, "models warmed up and rounds")
        pool = InstancePool(Path(entry["path"]), entry["engine"], spec["threads"], instances=1)
        batch = torch.from_numpy(
            random_engine_input(inputs, np.random.default_rng(0), spec["batch_size"], pixel_input=entry["pixel_input"])
        )
        pool.warm(batch, 1)
        seconds = _time(pool, batch, calls=1)
        if seconds < _HOPELESS * fastest_s:
            pool.warm(batch, 1)  # the JIT compiles at the second call, oneDNN may pack weights at the third
            if seconds < spec["round_s"]:
                seconds = _time(pool, batch, calls=1)
        fastest_s = min(fastest_s, seconds)
        pools[entry["name"]], batches[entry["name"]] = pool, batch
        calls[entry["name"]] = max(1, round(spec["round_s"] / seconds))
    float_name, *running = pools
    rows: list[dict[str, Any]] = []
    started_s = time.perf_counter()
    for number in range(spec["rounds"]):
        spent_s = time.perf_counter() - started_s
        if number >= _LEAST_ROUNDS and spec["most_s"] is not None and spent_s * (number + 1) > spec["most_s"] * number:
            break
        tell(spec_path, len(pools) + number, parts, "models warmed up and rounds")
        order = [float_name, *running] if number % 2 == 0 else [*reversed(running), float_name]
        for name in order:
            seconds = _time(pools[name], batches[name], calls[name])
            rows.append({"round": number, "name": name, "latency_ms": seconds * 1e3})
        if number > 0:
            running = still_in_the_race(rows, running, _TWICE if number == 1 else _CLEARLY)
    for pool in pools.values():
        pool.close()
    Path(spec["rows"]).write_text(json.dumps(rows), encoding="utf-8")


def still_in_the_race(rows: Sequence[Mapping[str, Any]], names: Sequence[str], factor: float) -> list[str]:
    """Return those of ``names`` that no other was more than ``factor`` times faster than in every round."""
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    for row in rows:
        if row["name"] in times:
            times[row["name"]][row["round"]] = row["latency_ms"]
    return [
        name
        for name in names
        if not any(
            all(times[other][number] * factor < ms for number, ms in times[name].items())
            for other in names
            if other != name
        )
    ]


def _time(pool: InstancePool, batch: torch.Tensor, calls: int) -> float:
    """Return the mean seconds of one call."""
    start = time.perf_counter()
    for _ in range(calls):
        pool.run(batch)
    return (time.perf_counter() - start) / calls


if __name__ == "__main__":
    main(*sys.argv[1:])
