"""Simulates how long requests wait for instances whose calls take a constant time and several requests at once.

The model is that of ``bench --scenario server``: requests arrive as a Poisson process; an instance that is free takes
what waits, first come, first served, and at most ``batch_size`` of it (the largest full size of
``server.shapes_up_to``); a call takes as long as the tuning measured. With batches of one that is the queue M/D/c,
which has exact results (Tijms, A First Course in Stochastic Models, 2003, 9.6.2); with bulk service there is no result
as simple (Chaudhry and Templeton, A First Course in Bulk Queues, 1983), so it is simulated, with the same arrivals
every time.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

REQUESTS = 20_000
"""Requests of a simulation; one in a hundred lies above the p99."""
_WARM_UP_SHARE = 0.1
"""Share of the requests that is left out, because the first ones find an empty queue."""


@dataclass(frozen=True)
class Queue:
    """Seconds of each request, in order of arrival: waiting for its call to begin, and until its answer."""

    waiting_s: Floats
    latency_s: Floats


def simulate(rate_per_s: float, instances: int, call_s: Mapping[int, float], requests: int = REQUESTS) -> Queue:
    """Simulate the queue and leave out its warm-up. Equal arguments give equal results.

    ``call_s`` has the time of a call for each size that calls may have; size 1 is among them.
    """
    if rate_per_s <= 0 or instances < 1 or 1 not in call_s:
        raise ValueError(f"no queue: rate {rate_per_s}, {instances} instances, sizes {sorted(call_s)}")
    times = np.cumsum(_gaps(requests)) / rate_per_s
    arrivals = times.tolist()
    sizes = sorted(call_s, reverse=True)
    free_s = [0.0] * instances  # a heap: when each instance is free again
    begins: list[float] = []
    taken: list[int] = []
    first = 0
    while first < requests:
        begin_s = max(free_s[0], arrivals[first])
        waiting = bisect.bisect_right(arrivals, begin_s, first) - first
        size = next(size for size in sizes if size <= waiting)
        heapq.heapreplace(free_s, begin_s + call_s[size])
        begins.append(begin_s)
        taken.append(size)
        first += size
    waited = np.repeat(begins, taken) - times
    took = np.repeat([call_s[size] for size in taken], taken)
    skipped = int(_WARM_UP_SHARE * requests)
    return Queue(waited[skipped:], (waited + took)[skipped:])


@cache
def _gaps(requests: int) -> Floats:
    """Return gaps between arrivals at one a second; one draw for all rates, so that only the rate differs."""
    return np.random.default_rng(0).exponential(1.0, requests)
