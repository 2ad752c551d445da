"""Times the contenders against FP32 in one fresh process, interleaved."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cpupack import accuracy
from cpupack.artifacts import Contender
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.workers.client import run_worker

_ROUNDS = 7
_ROUND_S = 0.15


def race(
    contenders: Sequence[Contender],
    float_path: Path,
    input_shape: tuple[int, ...],
    preprocess: PreprocessSpec | None,
    directory: Path,
    *,
    batch_size: int,
    threads: int,
) -> list[Contender]:
    """Time the contenders and FP32 in one fresh process, interleaved. Return them with their speedup, fastest first.

    Each gets the input that its runner would give it: pixels if it takes them, else normalized floats. The speedup is
    the median over the rounds of FP32's time divided by the contender's. Rows are ``{round, name, latency_ms}``.
    """
    entries: list[dict[str, Any]] = [
        {
            "name": "fp32",
            "path": str(float_path),
            "engine": contenders[0].scripted.target.engine,
            "pixel_input": False,
        }
    ]
    entries += [
        {
            "name": each.scripted.target.engine,
            "path": str(each.scripted.path),
            "engine": each.scripted.target.engine,
            "pixel_input": each.scripted.pixel_input,
        }
        for each in contenders
    ]
    rows_path = directory / "race-rows.json"
    spec = {
        "entries": entries,
        "input_shape": list(input_shape),
        "preprocess": preprocess.to_dict() if preprocess else None,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": _ROUNDS,
        "round_s": _ROUND_S,
        "rows": str(rows_path),
    }
    run_worker("race", spec, directory / "race.json")
    rows = json.loads(rows_path.read_text(encoding="utf-8"))
    timed = []
    for each in contenders:
        ratios = _ratios(rows, each.scripted.target.engine)
        report = dataclasses.replace(
            each.report,
            speedup=median(ratios),
            speedup_ci95=accuracy.median_interval(ratios),
            speed_rows=tuple({**row, "batch_size": batch_size, "threads": threads} for row in rows),
        )
        timed.append(dataclasses.replace(each, report=report))
    return sorted(timed, key=lambda each: each.report.speedup or 0.0, reverse=True)


def _ratios(rows: list[dict[str, Any]], name: str) -> list[float]:
    """Return for each round FP32's time divided by that of the engine ``name``."""
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        by_round.setdefault(row["round"], {})[row["name"]] = row["latency_ms"]
    return [times["fp32"] / times[name] for times in by_round.values()]
