"""The server scenario: requests arrive at random times and wait for a free instance.

The schedule is made before the run, and nothing that the model does changes it. A request's latency counts from its
scheduled arrival, even if the load generator was late. So a stall lengthens the latency of every request that arrived
meanwhile, and cannot be hidden by what Tene calls "coordinated omission".
"""

from __future__ import annotations

import bisect
import math
import threading
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, RunnerError
from ..threads import Answer, Pending
from .scenarios import Clock, Pool
from .stats import Calls, Floats

NAME = "server"
SUMMARY = "requests of one sample at random times, at --rate on average; p99 latency from the scheduled arrival"
HEADLINE = "p99"
PERCENTILE = 99.0
MIN_REQUESTS = 459
"""The fewest requests that can show a p99 with 99 % confidence: 0.99 ** 459 < 0.01 (LoadGen's early stopping)."""
MAX_REQUESTS = 5_000_000

_LEAST_PATIENCE_S = 1.0


@dataclass(frozen=True)
class Load:
    """The load: ``rate_per_s`` requests on average for ``duration_s``, drawn with ``seed``.

    ``max_latency_ms`` is the bound on the 99th percentile, None for none. With ``stop_when_failed`` the run ends as
    soon as too many requests are above it. Raises InputError for a load that no run could hold.
    """

    rate_per_s: float
    duration_s: float
    seed: int
    max_latency_ms: float | None = None
    stop_when_failed: bool = False

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and self.duration_s > 0):
            raise InputError(f"--rate {self.rate_per_s:g} for {self.duration_s:g} s offers no requests")
        if self.rate_per_s * self.duration_s > MAX_REQUESTS:
            raise InputError(
                f"--rate {self.rate_per_s:g} for {self.duration_s:g} s is {self.rate_per_s * self.duration_s:.0f} "
                f"requests; at most {MAX_REQUESTS} can be scheduled, so lower --rate or --duration"
            )

    def arrivals_s(self) -> Floats:
        """Return the scheduled arrivals in seconds from the start: a Poisson process, at least one arrival."""
        generator = np.random.default_rng(self.seed)
        expected = self.rate_per_s * self.duration_s
        parts, end_s = [], 0.0
        while end_s < self.duration_s:
            gaps = generator.exponential(1.0 / self.rate_per_s, max(16, math.ceil(expected + 4 * math.sqrt(expected))))
            parts.append(end_s + np.cumsum(gaps))
            end_s = float(parts[-1][-1])
        found = np.concatenate(parts)
        return found[: max(1, int(np.searchsorted(found, self.duration_s)))]


@dataclass(frozen=True)
class Requests(Calls):
    """Every request that had arrived when the run ended, in order of arrival; ``start_s`` is the scheduled arrival.

    ``issued_s`` is when it was handed to its instance and ``size`` how many went with it in one call. ``late_s`` is,
    for each request that found an instance idle, how long after its arrival the load generator handed it over. A run
    that gives up leaves ``unserved`` requests, the last ones. They end when the run gave up, so their latency is a
    lower bound.
    """

    issued_s: Floats
    size: npt.NDArray[np.int64]
    late_s: Floats
    unserved: int

    @property
    def waiting_ms(self) -> Floats:
        """Time from the scheduled arrival to an instance, of the requests that were served."""
        served = len(self) - self.unserved
        return (self.issued_s[:served] - self.start_s[:served]) * 1000.0

    @property
    def service_ms(self) -> Floats:
        """Time from being handed to an instance to the answer, of the requests that were served."""
        served = len(self) - self.unserved
        return (self.end_s[:served] - self.issued_s[:served]) * 1000.0

    def calls_by_size(self) -> dict[str, int]:
        """Return how many calls of the model had how many samples."""
        sizes, requests = np.unique(self.size[self.size > 0], return_counts=True)
        return {str(size): int(number // size) for size, number in zip(sizes, requests, strict=True)}


def shapes_up_to(batch_size: int) -> tuple[int, ...]:
    """Return the sizes that a call may have, ascending: powers of two, and ``batch_size``.

    Each is warmed before the run. A call takes the largest that is full, so nothing is padded, and requests never wait
    for others while an instance is idle.
    """
    powers = [2**power for power in range(batch_size.bit_length()) if 2**power < batch_size]
    return (*powers, batch_size)


def serve(pool: Pool, cuts: Mapping[int, Sequence[Any]], load: Load, clock: Clock) -> Requests:
    """Offer ``load`` to ``pool`` and return every request. ``cuts`` has distinct batches for each size of a call.

    First come, first served, by any free instance. After the last arrival the queue may take as long to empty as the
    load lasted; then the run gives up. Raises what a call raises.
    """
    queue = _Queue(pool, cuts, load, clock)
    for number, due_s in enumerate(queue.arrivals_s):
        if queue.finished.done():
            break
        if number >= queue.next:  # else an instance that became free has already taken it
            clock.sleep_until(due_s)
            queue.arrived()
    clock.wait(queue.finished)
    return queue.requests()


class _Queue:
    """The requests that have arrived and wait. The driver hands them to idle instances.

    An instance that finishes a call takes its next requests itself, without waiting for another thread to wake up.
    """

    def __init__(self, pool: Pool, cuts: Mapping[int, Sequence[Any]], load: Load, clock: Clock) -> None:
        self._pool, self._load, self._clock = pool, load, clock
        self._sizes = sorted(cuts, reverse=True)
        self._turns = {size: cycle(batches) for size, batches in cuts.items()}
        self.arrivals_s = array("d", (clock.now() + load.arrivals_s()).tolist())
        total = len(self.arrivals_s)
        self._issued_s, self._end_s = np.zeros(total), np.zeros(total)
        self._size, self._instance = np.zeros(total, np.int64), np.zeros(total, np.int64)
        self._late_s = array("d")
        self._give_up_s = self.arrivals_s[-1] + max(_LEAST_PATIENCE_S, load.duration_s)
        self._may_exceed = math.floor(total * (1.0 - PERCENTILE / 100.0))
        self._lock = threading.Lock()
        self._idle = deque(range(pool.instances))
        self._in_flight = self._exceeded = 0
        self._stopped = False
        self.next = 0
        """The first request that no instance has taken."""
        self.finished: Answer[None] = Answer()

    def arrived(self) -> None:
        """Hand the waiting requests to idle instances."""
        while True:
            with self._lock:
                now = self._clock.now()
                taken = self._take(now, self._idle[0]) if self._idle else None
                if taken is None:
                    return
                instance = self._idle.popleft()
                self._late_s.extend(now - self.arrivals_s[number] for number in range(*taken))
            self._submit(taken, instance)

    def _take(self, now: float, instance: int) -> tuple[int, int] | None:
        """Return the range of requests for one call, None when nothing waits. The lock is held."""
        waiting = bisect.bisect_right(self.arrivals_s, now, lo=self.next) - self.next
        if self._stopped or not waiting:
            return None
        size = next(size for size in self._sizes if size <= waiting)
        first, self.next = self.next, self.next + size
        part = slice(first, self.next)
        self._issued_s[part], self._size[part], self._instance[part] = now, size, instance
        self._in_flight += 1
        return first, self.next

    def _submit(self, taken: tuple[int, int], instance: int) -> None:
        try:
            future = self._pool.submit(next(self._turns[taken[1] - taken[0]]), instance)
        except RunnerError as error:  # inside a future's callback it would be lost, and the wait would be endless
            self._fail(error)
            return
        future.add_done_callback(lambda done: self._done(done, taken, instance))

    def _done(self, future: Pending, taken: tuple[int, int], instance: int) -> None:
        if (error := future.exception()) is not None:
            self._fail(error)
            return
        with self._lock:
            now = self._clock.now()
            self._end_s[slice(*taken)] = now
            self._in_flight -= 1
            self._stopped = self._stopped or now > self._give_up_s or self._has_failed(now, taken)
            following = self._take(now, instance)
            if following is None:
                self._idle.append(instance)
            over = not self._in_flight and (self._stopped or self.next == len(self.arrivals_s))
        if over:
            self.finished.finish(None)
        if following is not None:
            self._submit(following, instance)

    def _has_failed(self, now: float, taken: tuple[int, int]) -> bool:
        if self._load.max_latency_ms is None:
            return False
        bound_s = self._load.max_latency_ms / 1000.0
        self._exceeded += sum(now - self.arrivals_s[number] > bound_s for number in range(*taken))
        return self._load.stop_when_failed and self._exceeded > self._may_exceed

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._stopped = True
        self.finished.finish(None, error)

    def requests(self) -> Requests:
        arrivals = np.array(self.arrivals_s)
        end_s = float(self._end_s.max())
        arrived = max(self.next, int(np.searchsorted(arrivals, end_s, side="right")))
        unserved = arrived - self.next
        self._end_s[self.next : arrived] = end_s
        return Requests(
            start_s=arrivals[:arrived],
            end_s=self._end_s[:arrived],
            instance=self._instance[:arrived],
            batch_size=1,
            issued_s=self._issued_s[:arrived],
            size=self._size[:arrived],
            late_s=np.array(self._late_s),
            unserved=unserved,
        )
