"""Is a queue as long as theory says? ``python benchmarks/open_load.py efficientnet_lite0_int8``.

One runner of one thread, first with calls that follow each other at once, as tuning measures them, then with arrivals
at random (Poisson) at shares of that rate: a queue of one server, without HTTP and without another process. Each line
has the p99 measured, and what a queue with the same arrivals gives with constant calls: of the mean that tuning would
find, and of the mean that the calls had. Run it on an idle host; ``--out FILE`` adds the rows to a file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LOADS = (0.5, 0.75, 0.75, 0.85)
_CLOSED_S, _OPEN_S = 8.0, 12.0


def main() -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="the wheel's import name")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    asked = parser.parse_args()
    for row in rows(asked.module):
        line = json.dumps({"module": asked.module, **row})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if asked.out is not None:
            with asked.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")


def rows(module: str) -> Iterator[dict[str, Any]]:
    """Yield the calls in a closed loop, then the queue at each load."""
    with importlib.import_module(module).Runner(threads=1, instances=1, batch_size=1) as runner:
        sample = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        for _ in range(50):
            runner(sample)
        found = []
        ends_s = time.perf_counter() + _CLOSED_S
        while time.perf_counter() < ends_s:
            begin_s = time.perf_counter()
            runner(sample)
            found.append(time.perf_counter() - begin_s)
        closed = np.array(found)
        yield {"loop": "closed", **of_calls(closed)}
        for number, load in enumerate(LOADS):
            gaps = np.random.default_rng(number).exponential(closed.mean() / load, int(load * _OPEN_S / closed.mean()))
            calls, latency = serve(runner, sample, gaps)
            yield {
                "loop": "open",
                "load": load,
                **of_calls(calls),
                "p99_ms": p99_ms(latency),
                "p99_constant_calls_ms": p99_ms(queued(gaps, np.full(len(gaps), calls.mean()))),
                "p99_constant_calls_of_closed_ms": p99_ms(queued(gaps, np.full(len(gaps), closed.mean()))),
            }


def serve(runner: Any, sample: Any, gaps: Floats) -> tuple[Floats, Floats]:
    """Return the seconds of each call, and those from its arrival to its end."""
    arrivals, calls, latency = np.cumsum(gaps), np.empty(len(gaps)), np.empty(len(gaps))
    zero_s = time.perf_counter() + 0.05
    for number, at_s in enumerate(arrivals):
        while time.perf_counter() < zero_s + at_s:
            pass  # a sleep would add the lateness of its timer
        begin_s = time.perf_counter()
        runner(sample)
        end_s = time.perf_counter()
        calls[number], latency[number] = end_s - begin_s, end_s - zero_s - at_s
    return calls, latency


def queued(gaps: Floats, calls: Floats) -> Floats:
    """Return the latency of each request of one server, first come, first served."""
    latency, waits_s = np.empty(len(calls)), 0.0
    for number, call_s in enumerate(calls):
        latency[number] = waits_s + call_s
        waits_s = max(0.0, latency[number] - gaps[min(number + 1, len(gaps) - 1)])
    return latency


def of_calls(calls: Floats) -> dict[str, float]:
    """Return how long calls took, and how much that varied."""
    return {
        "calls": len(calls),
        "call_ms": round(1000.0 * calls.mean(), 3),
        "call_p99_ms": p99_ms(calls),
        "deviation": round(calls.std() / calls.mean(), 3),
    }


def p99_ms(seconds: Floats) -> float:
    return round(1000.0 * float(np.percentile(seconds, 99)), 2)


if __name__ == "__main__":
    main()
