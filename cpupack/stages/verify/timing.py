"""Times saved models against FP32 in one fresh process, interleaved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cpupack import accuracy
from cpupack.accuracy import Interval
from cpupack.artifacts import Contender, ScriptedModel
from cpupack.progress import Progress
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.workers.client import run_worker

_ROUNDS = 7
_ROUND_S = 0.15
_MOST_S = 20.0
"""Seconds for all rounds. Of a model whose calls take seconds there are fewer rounds, and no interval."""


@dataclass(frozen=True)
class Speed:
    """How much faster than FP32 a saved model is: the median over the rounds, and its 95 % interval.

    ``rows`` are ``{round, name, latency_ms, batch_size, threads}`` of everything that was timed with it.
    """

    speedup: float
    ci95: Interval | None
    rows: tuple[dict[str, Any], ...]


def race(
    models: Sequence[ScriptedModel],
    float_path: Path,
    inputs: Sequence[TensorSpec],
    directory: Path,
    progress: Progress | None = None,
    *,
    batch_size: int,
    threads: int,
    every_round: bool = False,
) -> list[dict[str, Any]]:
    """Time saved models and FP32 in one fresh process, interleaved. Return the rows of ``Speed``.

    Each gets the input that its runner would give it: pixels if it takes them, else normalized floats. A model that
    another is clearly faster than leaves the race early. Of slow models there are fewer rounds, unless ``every_round``.
    """
    entries: list[dict[str, Any]] = [
        {"name": "fp32", "path": str(float_path), "engine": models[0].target.engine, "pixel_input": False}
    ]
    entries += [
        {
            "name": each.target.engine,
            "path": str(each.path),
            "engine": each.target.engine,
            "pixel_input": each.pixel_input,
        }
        for each in models
    ]
    rows_path = directory / "race-rows.json"
    spec = {
        "entries": entries,
        "inputs": [each.to_dict() for each in inputs],
        "batch_size": batch_size,
        "threads": threads,
        "rounds": _ROUNDS,
        "round_s": _ROUND_S,
        "most_s": None if every_round else _MOST_S,
        "rows": str(rows_path),
    }
    run_worker("race", spec, directory / "race.json", progress)
    measured = json.loads(rows_path.read_text(encoding="utf-8"))
    return [{**row, "batch_size": batch_size, "threads": threads} for row in measured]


def speeds_of(rows: Sequence[dict[str, Any]], engines: Sequence[str]) -> dict[str, Speed]:
    """Return the speed of each engine from the rows of a race.

    The speedup is the median over the rounds of FP32's time divided by the model's. Of one that left the race early the
    interval is wide or None.
    """
    ratios = {engine: _ratios(rows, engine) for engine in engines}
    return {name: Speed(median(each), accuracy.median_interval(each), tuple(rows)) for name, each in ratios.items()}


def timed(contender: Contender, speed: Speed | None) -> Contender:
    """Return the contender with its speed in its report, or as it is if the speed was not measured."""
    if speed is None:
        return contender
    report = dataclasses.replace(
        contender.report, speedup=speed.speedup, speedup_ci95=speed.ci95, speed_rows=speed.rows
    )
    return dataclasses.replace(contender, report=report)


def _ratios(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Return FP32's time divided by that of the engine ``name``, for each round that it was in."""
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        by_round.setdefault(row["round"], {})[row["name"]] = row["latency_ms"]
    return [times["fp32"] / times[name] for times in by_round.values() if name in times]
