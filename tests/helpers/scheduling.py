"""A scheduler with round times, and its jobs. Times are in milliseconds unless named."""

from __future__ import annotations

import math

from cpupack.runtime.serve.line import Job
from cpupack.runtime.serve.scheduler import NORMAL, Limits, Scheduler
from cpupack.runtime.serve.times import CallTime, CallTimes

MS = 1e-3


def times(*rows: tuple[int, float, float]) -> CallTimes:
    """Rows of (size, mean, p99)."""
    return CallTimes([CallTime(size, mean * MS, p99 * MS) for size, mean, p99 in rows])


def scheduler(
    instances: int = 1, *, requests: int = 100, size_bytes: int = 10**9, table: CallTimes | None = None
) -> Scheduler:
    """Calls of one sample take 10 ms, of four 16 ms: so each more costs 2 ms."""
    return Scheduler(table or times((1, 10, 10), (4, 16, 16)), instances, Limits(requests, size_bytes))


def job(
    deadline: float = math.inf, *, samples: int = 1, priority: int = NORMAL, size_bytes: int = 1, prepare: float = 0
) -> Job:
    return Job(samples, size_bytes, 0.0, deadline * MS, priority, prepare * MS, None)


def start(one: Scheduler, instance: int = 0, now: float = 0.0, *jobs: Job) -> list[Job]:
    """Offer jobs and have an instance take what it gets."""
    for each in jobs or (job(),):
        assert one.offer([each], now * MS) is None
    return one.take(instance, now * MS).jobs
