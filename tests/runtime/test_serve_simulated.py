"""The scheduler under arrivals at random times, on a clock of the simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from cpupack.runtime.serve.line import Job
from cpupack.runtime.serve.scheduler import (
    DEADLINE,
    NORMAL,
    Limits,
    Scheduler,
)
from helpers.scheduling import MS, scheduler, times


@dataclass
class Simulated:
    """What came out of a simulated load."""

    offered: int
    latencies: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    expired: int = 0

    def goodput(self, promise: float, seconds: float) -> float:
        return sum(latency <= promise * MS for latency in self.latencies) / seconds


def simulate(
    one: Scheduler, arrivals_s: Sequence[float], promise: float, call_s: dict[int, float], noise: float = 0.0
) -> Simulated:
    """Serve arrivals on the scheduler's instances. A call takes ``call_s`` of its size, with ``noise`` of it."""
    generator = np.random.default_rng(2)
    found = Simulated(len(arrivals_s))
    ends: dict[int, tuple[float, list[Job]]] = {}
    free = set(range(one.instances))
    pending = list(arrivals_s)[::-1]

    def serve(now_s: float) -> None:
        for instance in sorted(free):
            taken = one.take(instance, now_s)
            found.expired += len(taken.dropped)
            if taken.jobs:
                free.discard(instance)
                took_s = call_s[len(taken.jobs)] * float(max(0.5, generator.normal(1.0, noise)))
                ends[instance] = (now_s + took_s, taken.jobs)
                found.waits += [(each.predicted_s - each.arrived_s, now_s - each.arrived_s) for each in taken.jobs]

    while pending or ends:
        end_s, instance = min(((end, number) for number, (end, _) in ends.items()), default=(math.inf, -1))
        now_s = min(pending[-1] if pending else math.inf, end_s, one.next_expiry_s() + 1e-9)
        found.expired += len(one.expire(now_s))
        if now_s == end_s:
            _, jobs = ends.pop(instance)
            found.latencies += [now_s - each.arrived_s for each in jobs]
            one.finish(instance, now_s)
            free.add(instance)
        elif pending and now_s == pending[-1]:
            arrived = pending.pop()
            each = Job(1, 1, arrived, arrived + promise * MS, NORMAL, 0.0, None)
            found.refused += one.offer([each], now_s) is not None
        serve(now_s)
    return found


def test_what_is_known_to_be_late_would_be_refused() -> None:
    """Under a load of several priorities and deadlines; most of those who are late must be known as such."""
    one = scheduler(table=times((1, 2.0, 2.2), (2, 3.0, 3.3), (4, 5.0, 5.5), (8, 9.0, 9.9)))
    generator = np.random.default_rng(3)
    now_s, end_s, refused, known, wrong = 0.0, 0.0, 0, 0, 0
    one.take(0, 0.0)
    for _ in range(4000):
        now_s += float(generator.exponential(0.3 * MS))
        one.expire(now_s)
        if now_s >= end_s:
            one.finish(0, end_s)
            jobs = one.take(0, now_s).jobs
            end_s = now_s + one.times.expected_s(max(1, len(jobs)), sum(each.prepare_s for each in jobs))
        limit_s, priority = (50 * MS, NORMAL) if generator.random() < 0.9 else (30 * MS, int(generator.integers(1, 4)))
        prepare_s = float(generator.uniform(0.5, 2.0)) * MS
        each = Job(1, 1, now_s, now_s + limit_s, priority, prepare_s, None)
        late = one.late(now_s, now_s + limit_s, priority, prepare_s, now_s)
        if late is not None:
            known += 1
            assert late.reason == DEADLINE
            assert late.retry_after_s > 0
            wrong += one.peek(each, now_s) is None
        else:
            refusal = one.peek(each, now_s)
            refused += refusal is not None
            assert (one.offer([each], now_s) is None) == (refusal is None)
    assert known > 3 * refused > 0
    assert wrong <= 0.02 * known  # a smaller call, in which it were in time, is worthwhile with one that slow


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0, 5.0])
def test_under_every_load_what_is_admitted_is_answered_in_time_and_nothing_is_wasted(load: float) -> None:
    rows = [(1, 2.0, 2.2), (2, 3.0, 3.3), (4, 5.0, 5.5), (8, 9.0, 9.9)]
    one = Scheduler(times(*rows), 2, Limits(10_000, 10**9))
    call_s = {
        size: float(np.interp(size, [row[0] for row in rows], [row[1] for row in rows])) * MS for size in range(1, 9)
    }
    capacity_per_s, seconds, promise = 2 * 8 / (9 * MS), 1.5, 50.0
    generator = np.random.default_rng(1)
    gaps = generator.exponential(1 / (load * capacity_per_s), int(load * capacity_per_s * seconds))
    found = simulate(one, np.cumsum(gaps).tolist(), promise, call_s)
    assert max(found.latencies) <= promise * MS
    assert found.goodput(promise, seconds) >= 0.9 * min(1.0, load) * capacity_per_s
    assert found.expired == 0  # calls take what the table says, so what is admitted is kept
    errors = [abs(predicted - waited) / waited for predicted, waited in found.waits if waited > MS]
    if load >= 1.0:
        assert np.percentile(errors, 90) <= 0.2
    else:
        assert found.refused == 0


@pytest.mark.parametrize("load", [2.0, 5.0])
def test_a_predicted_wait_is_right_although_calls_are_not_regular(load: float) -> None:
    """The standard deviation of a call is 10 %. What is promised is kept in 99 of 100 cases."""
    rows = [(1, 3.0, 3.7), (2, 5.0, 6.2), (4, 9.0, 11.1), (8, 17.0, 21.0)]
    one = Scheduler(times(*rows), 1, Limits(10_000, 10**9))
    call_s = {size: (1.0 + 2.0 * size) * MS for size in range(1, 9)}
    generator = np.random.default_rng(1)
    gaps = generator.exponential(1 / (load * 450), int(load * 450 * 3))
    found = simulate(one, np.cumsum(gaps).tolist(), 50.0, call_s, 0.1)
    errors = [abs(predicted - waited) / waited for predicted, waited in found.waits[50:] if waited > MS]
    assert np.percentile(errors, 90) <= 0.15
    assert np.mean([latency > 50 * MS for latency in found.latencies]) <= 0.01
    assert found.expired <= 0.01 * found.offered


def test_after_a_burst_the_queue_is_soon_empty_again() -> None:
    one = Scheduler(times((1, 2.0, 2.2), (8, 9.0, 9.9)), 2, Limits(10_000, 10**9))
    call_s = {size: (2.0 + (size - 1)) * MS for size in range(1, 9)}
    burst = [0.0001 * number for number in range(10_000)]  # 10,000 a second for a second
    calm = [1.0 + 2 * 0.05 + 0.01 * number for number in range(100)]  # from twice the promise later
    found = simulate(one, [*burst, *calm], 50.0, call_s)
    assert max(found.latencies[-100:]) <= 2.0 * MS + 1e-9
