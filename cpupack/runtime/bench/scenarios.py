"""MLPerf Inference's closed-loop scenarios: what a bench issues, when, and what it records.

A scenario drives a pool with the batches it is given and returns the start and the end of every call. It knows no
torch and no wall clock. The pool and the clock come from outside, so a fake clock drives the same code.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import RunnerError
from ..threads import Answer, Pending
from .stats import Calls

QUERY_SAMPLES = 8
"""Samples of a multi-stream query, as in MLPerf Inference since 2.0."""


class Pool(Protocol):
    """The part of ``InstancePool`` that a scenario needs."""

    @property
    def instances(self) -> int: ...

    def submit(self, batch: Any, instance: int | None = None) -> Pending: ...


class Clock(Protocol):
    """Time in seconds, and waiting."""

    def now(self) -> float: ...

    def wait(self, future: Pending) -> Any:
        """Wait for a future and return its result; raises what it raised."""

    def sleep_until(self, time_s: float) -> None:
        """Wait until ``now()`` is at least ``time_s``."""


class WallClock:
    """The real, monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, future: Pending) -> Any:
        return future.result()

    def sleep_until(self, time_s: float) -> None:
        # Sleeps and never spins: on a busy host, spinning would take a core's time from the model.
        while (left_s := time_s - self.now()) > 0:
            time.sleep(left_s)


Drive = Callable[[Pool, Sequence[Any], int, Clock, float], Calls]
"""(pool, batches in rotation, samples a batch, clock, duration_s) -> calls."""


@dataclass(frozen=True)
class Scenario:
    """One way of loading the pool. Numbers that the user does not give come from the plan for ``objective``.

    ``headline`` is the figure that the scenario is about. With fewer than ``min_calls`` calls it means nothing.
    """

    name: str
    summary: str
    objective: str | None
    headline: str
    min_calls: int
    drive: Drive


def offline(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, duration_s: float) -> Calls:
    """Keep every instance busy for ``duration_s``, then let the calls under way finish."""
    deadline = clock.now() + duration_s
    return closed_loop(pool, batches, batch_size, clock, lambda _calls, now: now < deadline)


def single_stream(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, duration_s: float) -> Calls:
    """Issue one query, wait for it, issue the next, on one instance. Latency is what the caller sees."""
    start, end = array("d"), array("d")
    turn = itertools.cycle(batches)
    deadline = clock.now() + duration_s
    while not end or end[-1] < deadline:
        batch = next(turn)
        start.append(clock.now())
        clock.wait(pool.submit(batch, 0))
        end.append(clock.now())
    return Calls(np.array(start), np.array(end), np.zeros(len(start), np.int64), batch_size)


def multi_stream(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, duration_s: float) -> Calls:
    """Issue a query of ``QUERY_SAMPLES`` samples, wait for all of it, issue the next.

    A query is cut into calls of ``batch_size``, which go to the instances in turn. The last call is filled up where
    the size does not divide the query. Returns one entry for each query.
    """
    start, end = array("d"), array("d")
    turn = itertools.cycle(batches)
    calls = math.ceil(QUERY_SAMPLES / batch_size)
    deadline = clock.now() + duration_s
    while not end or end[-1] < deadline:
        parts = [next(turn) for _ in range(calls)]
        start.append(clock.now())
        waiting = [pool.submit(part, number % pool.instances) for number, part in enumerate(parts)]
        for future in waiting:
            clock.wait(future)
        end.append(clock.now())
    return Calls(np.array(start), np.array(end), np.zeros(len(start), np.int64), QUERY_SAMPLES)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        # With 10 calls, each of the five windows has at least two.
        Scenario("offline", "all instances busy; the figure is throughput", None, "throughput_per_s", 10, offline),
        # With fewer than 100 calls the p99 is the maximum.
        Scenario("single-stream", "one request at a time; p90 latency", "latency", "p90", 100, single_stream),
        Scenario(
            "multi-stream",
            f"queries of {QUERY_SAMPLES} samples, one at a time; p99 latency of a query",
            None,
            "p99",
            100,
            multi_stream,
        ),
    )
}


def closed_loop(
    pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, more: Callable[[int, float], bool]
) -> Calls:
    """Give each instance its next batch as soon as it finishes one, while ``more(its calls so far, now)`` is true."""
    streams = [_Stream(pool, batches, number, clock, more) for number in range(pool.instances)]
    try:
        for stream in streams:
            stream.issue()
        for stream in streams:
            clock.wait(stream.finished)
    finally:
        for stream in streams:
            stream.stopped.set()
    start = np.concatenate([np.array(stream.start) for stream in streams])
    end = np.concatenate([np.array(stream.end) for stream in streams])
    instance = np.repeat(np.arange(len(streams)), [len(stream.end) for stream in streams])
    order = np.argsort(end, kind="stable")
    return Calls(start[order], end[order], instance[order], batch_size)


class _Stream:
    """Keeps one instance supplied: the worker that finishes a batch queues the next one.

    So the worker finds its next batch already queued. A driver thread would have to wake up between two calls. Times
    go to flat arrays, which the garbage collector does not walk.
    """

    def __init__(
        self,
        pool: Pool,
        batches: Sequence[Any],
        instance: int,
        clock: Clock,
        more: Callable[[int, float], bool],
    ) -> None:
        self.start, self.end = array("d"), array("d")
        self.finished: Answer[None] = Answer()
        self.stopped = threading.Event()
        self._pool, self._instance, self._clock, self._more = pool, instance, clock, more
        # Instances begin with different batches, so that they do not read the same buffer at once.
        self._turn = itertools.islice(itertools.cycle(batches), instance, None)

    def issue(self) -> None:
        self.start.append(self._clock.now())
        try:
            future = self._pool.submit(next(self._turn), self._instance)
        except RunnerError as error:  # inside a future's callback it would be lost, and the wait would be endless
            self.finished.finish(None, error)
            return
        future.add_done_callback(self._done)

    def _done(self, future: Pending) -> None:
        now = self._clock.now()
        if (error := future.exception()) is not None:
            self.finished.finish(None, error)
            return
        self.end.append(now)
        if not self.stopped.is_set() and self._more(len(self.end), now):
            self.issue()
        else:
            self.finished.finish(None)
