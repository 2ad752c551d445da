"""``python -m cpupack.workers.peer JOB.json``: one engine in its own process, controlled by commands on stdin.

Each command is a JSON object on one line. Each answer is a JSON object on one line of stdout (``{"error": ...}`` when
the command fails). All output of the engine's libraries goes to stderr. The process ends when its stdin closes or its
parent ends (``module_command``), even while it is stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cpupack.peers import COMPARED, OURS, lengths
from cpupack.peers.job import Job, Pool
from cpupack.runtime.bench import scenarios, stats
from cpupack.runtime.bench.measure import measure, warm_up
from cpupack.runtime.host.probe import HostProbe

_WARMUP_S = 3.0


def main(job_path: str) -> None:
    """Answer commands until stdin closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server = _Server(Job.read(Path(job_path)))
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = server.commands[command.pop("do")](**command)
        except Exception as error:  # noqa: BLE001 - the engine's libraries may raise anything; the parent reports it
            answer = {"error": _words(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _words(error: BaseException) -> str:
    """Return the error's type and the first line of its message that is not empty, and those of its first cause."""
    lines = [line.strip() for line in str(error).splitlines() if any(char.isalpha() for char in line)]
    name = type(error).__name__
    told = lines[0] if lines and name == "PeerError" else f"{name}: {lines[0]}" if lines else name
    cause = error.__cause__
    while cause is not None and cause.__cause__ is not None:
        cause = cause.__cause__
    return told if cause is None else f"{told} ({_words(cause)})"


class _Server:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._engine: Any = import_module(f"cpupack.peers.{COMPARED[job.engine].module}")
        self._scenario = scenarios.SCENARIOS["single-stream" if job.single else "offline"]
        self._clock = scenarios.WallClock()
        self._pool: Pool | None = None
        self._batches: list[Any] = []
        self.commands: dict[str, Callable[..., dict[str, Any]]] = {
            "build": self._build,
            "open": self._open,
            "warm": self._warm,
            "bench": self._bench,
            "round": self._round,
            "evaluate": self._evaluate,
            "open_files": self._open_files,
            "files": self._files,
        }

    def _build(self) -> dict[str, Any]:
        settings, job = self._engine.build(self._job), self._job
        return {"settings": settings if job.engine == OURS else settings + lengths.choose(job, self._engine.open_pool)}

    def _open(self) -> dict[str, Any]:
        """Load the engine with the job's setting, and run every instance once."""
        begin_s = time.perf_counter()
        self._pool = pool = self._engine.open_pool(self._job)
        self._batches = [pool.adapt(batch) for batch in lengths.served(self._job)]
        for number in range(pool.instances):
            pool.submit(self._batches[0], number).result()
        return {"open_s": time.perf_counter() - begin_s}

    def _warm(self) -> dict[str, Any]:
        """Run until call times are steady. The answer also has the memory of the process in bytes."""
        pool = self._opened()
        if self._job.single:
            self._scenario.drive(pool, self._batches, 1, self._clock, _WARMUP_S / 3)
        else:
            warm_up(pool, self._batches, self._job.batch_size, self._clock, _WARMUP_S)
        return {"peak_memory_bytes": HostProbe().peak_memory_bytes()}

    def _bench(self, duration_s: float) -> dict[str, Any]:
        """Measure once for the search, with the bench that every wheel contains."""
        measured = measure(
            self._opened(),
            self._batches,
            self._job.batch_size,
            self._scenario,
            duration_s,
            duration_s,
            self._clock,
            HostProbe(),
        ).to_dict()
        kept = ("throughput_per_s", "latency_ms", "duration_s", "samples", "calls", "disturbed")
        return {name: measured[name] for name in kept}

    def _round(self, duration_s: float, settle_s: float) -> dict[str, Any]:
        """Measure one round. Before it, run for ``settle_s`` to warm up caches and threads after the stop."""
        pool, size = self._opened(), self._job.batch_size
        self._scenario.drive(pool, self._batches, size, self._clock, settle_s)
        calls = self._scenario.drive(pool, self._batches, size, self._clock, duration_s)
        begin_s = float(calls.start_s.min())
        # Until now every instance was busy. Calls that others had not finished count by their finished share.
        end_s = min(float(calls.end_s[calls.instance == number].max()) for number in np.unique(calls.instance))
        row = {
            "calls": len(calls),
            "duration_s": end_s - begin_s,
            "throughput_per_s": calls.samples_between(begin_s, end_s) / (end_s - begin_s),
            "latency_ms": stats.latency_summary(calls.latency_ms),
        }
        return row | ({"calls_ms": [round(float(each), 5) for each in calls.latency_ms]} if self._job.single else {})

    def _evaluate(self, outputs: str) -> dict[str, Any]:
        """Run all evaluation samples and save the outputs in their order, float32 ``(n, *shape)`` each (``.npz``)."""
        pool, job = self._opened(), self._job
        found: list[list[Any]] = [[] for _ in range(job.output_count)]
        for start in range(0, job.evaluation.count, job.batch_size):
            stored = job.evaluation.load(slice(start, start + job.batch_size))
            rows = np.arange(job.batch_size) % len(stored)  # fills the last batch: some engines take only one size
            result = pool.submit(pool.adapt(job.ready(stored[rows])), 0).result()
            for each, output in zip(found, job.outputs(result), strict=True):
                each.append(output[: len(stored)])
        np.savez(outputs, *map(np.concatenate, found))
        return {}

    def _open_files(self) -> dict[str, Any]:
        from cpupack.peers import files, own

        job = self._job
        if job.engine == OURS:
            self._feed = files.runner_feed(own.open_runner(job))
        else:
            self._pool = self._engine.open_pool(job)
            self._feed = files.pillow_feed(self._opened(), job)
        return {}

    def _files(self, paths: list[str], duration_s: float) -> dict[str, Any]:
        """Run from files to outputs, repeating all ``paths`` for ``duration_s``."""
        begin_s = now_s = time.perf_counter()
        images = 0
        while now_s - begin_s < duration_s:
            images += self._feed(paths)
            now_s = time.perf_counter()
        return {"images": images, "duration_s": now_s - begin_s, "throughput_per_s": images / (now_s - begin_s)}

    def _opened(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("no engine is open")
        return self._pool


if __name__ == "__main__":
    main(*sys.argv[1:])
