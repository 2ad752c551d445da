"""The scheduler's rules, on a clock that the tests hold in their hands. Times are in milliseconds unless named."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from cpupack.runtime.serve.promise import call_time
from cpupack.runtime.serve.scheduler import (
    BYTES,
    DEADLINE,
    HIGH,
    LOW,
    QUEUE,
)
from helpers.scheduling import MS, job, scheduler, start, times


def test_a_request_that_can_be_answered_in_time_is_admitted_and_one_that_cannot_is_refused_at_once() -> None:
    one = scheduler()
    start(one)  # runs until 10
    assert one.offer([job(deadline=20)], 0.0) is None  # begins at 10, ends at 20
    refusal = one.offer([job(deadline=19.9)], 0.0)
    assert refusal is not None
    assert refusal.reason == DEADLINE
    # Alone before the other one, by its earlier deadline, it would have ended at 20.
    assert refusal.retry_after_s == pytest.approx(0.1 * MS)


def test_the_prediction_counts_the_batches_ahead() -> None:
    one = scheduler()
    start(one)  # until 10
    for _ in range(4):
        assert one.offer([job(deadline=100)], 0.0) is None  # one call of four: 10 to 26
    assert one.offer([job(deadline=30, priority=LOW)], 0.0) is not None  # the next call: 26 to 36
    assert one.offer([job(deadline=42, priority=LOW)], 0.0) is None


def test_to_ask_changes_no_prediction() -> None:
    one = scheduler()
    start(one)  # until 10
    assert one.offer([job(deadline=100)], 0.0) is None  # a call of one: 10 to 20, of two: to 22
    for _ in range(10):
        assert one.peek(job(deadline=100), 0.0) is None
    assert one.backlog_s(0.0) == pytest.approx(10 * MS)  # in the same call
    assert one.offer([job(deadline=22)], 0.0) is None


def test_who_has_to_wait_must_leave_room_for_a_worthwhile_call() -> None:
    """Else each would be so late when its turn comes that it allows only a call of one, which serves fewer."""
    one = scheduler()
    start(one, 0, 0.0, job(samples=4))  # until 16
    late = job(deadline=31.9)
    late.arrived_s = -8 * MS
    assert one.times.worthwhile(39.9 * MS) == 4  # a call of four takes 16, less than half of what it had
    assert one.offer([late], 0.0) is not None  # 16 + 16 is too late, although alone it would end at 26
    late.deadline_s = 32 * MS
    assert one.offer([late], 0.0) is None
    assert one.times.worthwhile(26 * MS) == 2  # a call of three takes 14, one of two 12


def test_a_size_is_worthwhile_only_if_it_serves_more() -> None:
    """A larger call makes requests wait. Time a sample: 2.875 in a call of four is 4 % less than 3 alone."""
    assert times((1, 3, 3), (4, 11.5, 11.5)).worthwhile(math.inf) == 1
    assert times((1, 3, 3), (4, 11, 11)).worthwhile(math.inf) == 2  # 2.75 of four, 2.83 of two
    assert times((1, 3, 3), (4, 11, 11)).worthwhile(math.inf, 3 * MS) == 1  # with decoding 5.75 and 6
    cheaper = times((1, 3, 3), (4, 7, 7))  # two take 4.33, three 5.67
    assert cheaper.worthwhile(math.inf) == 4
    assert cheaper.worthwhile(12 * MS) == 3
    assert cheaper.worthwhile(12 * MS, 0.2 * MS) == 2  # three take 6.27 with decoding, which is more than half


def test_spreads_of_calls_in_a_row_add_up_by_their_squares() -> None:
    """A call takes 10, and 13 in one of 100 cases: two in a row take 20, and 20 + sqrt(9 + 9) = 24.24 so rarely."""
    for deadline, admitted in ((24.25, True), (24.2, False)):
        one = scheduler(table=times((1, 10, 13)))
        start(one)
        assert (one.offer([job(deadline=deadline)], 0.0) is None) == admitted


def test_several_instances_share_the_queue() -> None:
    one = scheduler(2, table=times((1, 10, 10)))
    start(one, 0)  # until 10
    late = job()
    assert one.offer([late], 4 * MS) is None
    assert one.take(1, 4 * MS).jobs == [late]  # until 14
    assert one.offer([job(deadline=20)], 5 * MS) is None  # on the first instance: 10 to 20
    assert one.offer([job(deadline=23, priority=LOW)], 5 * MS) is not None  # on the second: 14 to 24
    assert one.offer([job(deadline=24, priority=LOW)], 5 * MS) is None


def test_a_free_instance_takes_as_many_as_the_most_urgent_request_allows() -> None:
    one = scheduler()
    start(one)
    # The first must be answered by 23: 10 + 12 (two samples) is in time, 10 + 14 is not.
    offered = [job(deadline=23), job(deadline=100), job(deadline=100)]
    for each in offered:
        assert one.offer([each], 0.0) is None
    one.finish(0, 10 * MS, learn=False)
    assert one.take(0, 10 * MS).jobs == offered[:2]
    assert one.waiting == 1


@pytest.mark.parametrize("end", [8, 11])
def test_which_requests_run_together_is_planned_when_they_arrive(end: float) -> None:
    """Whether the call before ends early or late: else each later request waits for one call more or less than told."""
    one = scheduler(table=times((1, 10, 12), (4, 16, 19.2)))
    start(one)  # until 10
    # Planned to begin at 10. Two take 12, with the spread of both calls 15.12; three take 14 and would end at 27.31.
    offered = [job(deadline=25.2), job(deadline=100), job(deadline=100)]
    for each in offered:
        assert one.offer([each], 0.0) is None
    assert [each.predicted_s for each in offered] == pytest.approx([10 * MS, 10 * MS, 22 * MS])
    one.finish(0, end * MS, learn=False)
    assert one.take(0, end * MS).jobs == offered[:2]


def test_a_planned_call_is_cut_where_it_would_more_likely_than_not_be_late() -> None:
    one = scheduler()
    start(one)  # until 10
    offered = [job(deadline=24) for _ in range(3)]  # planned: 10 to 24
    for each in offered:
        assert one.offer([each], 0.0) is None
    one.finish(0, 11 * MS, learn=False)
    assert one.take(0, 11 * MS).jobs == offered[:2]


def test_an_urgent_request_has_all_calls_planned_anew() -> None:
    one = scheduler()
    start(one)  # until 10
    offered = [job(deadline=50, priority=LOW) for _ in range(4)]
    for each in offered:
        assert one.offer([each], 0.0) is None
    urgent = job(deadline=50)
    assert one.offer([urgent], 0.0) is None
    assert one.offer([job(deadline=100, priority=LOW)], 0.0) is None
    one.finish(0, 10 * MS, learn=False)
    assert one.take(0, 10 * MS).jobs == [urgent, *offered[:3]]


def test_an_idle_instance_never_waits_for_a_batch_to_fill() -> None:
    one = scheduler()
    only = job(deadline=1000)
    assert start(one, 0, 0.0, only) == [only]


def test_what_waits_is_shared_evenly_among_free_instances() -> None:
    one = scheduler(2)
    for _ in range(4):
        assert one.offer([job()], 0.0) is None
    assert len(one.take(0, 0.0).jobs) == 2
    assert len(one.take(1, 0.0).jobs) == 2


def test_a_parked_instance_is_woken_once_for_each_request() -> None:
    one = scheduler(2)
    for instance in (0, 1):
        assert not one.take(instance, 0.0).jobs
    assert one.wake() is None
    assert one.offer([job()], 0.0) is None
    woken = one.wake()
    assert woken in (0, 1)
    assert one.wake() is None  # one request needs one instance
    assert one.offer([job()], 0.0) is None
    assert one.wake() == 1 - woken


def test_an_instance_that_was_woken_more_often_than_needed_is_not_parked_while_it_runs() -> None:
    one = scheduler(2, table=times((1, 10, 10)))
    assert one.take(0, 0.0).jobs == one.take(1, 0.0).jobs == []
    assert one.offer([job()], 0.0) is None
    assert len(one.take(1, 0.0).jobs) == 1  # nobody had asked ``wake`` whom to wake
    assert one.offer([job()], 0.0) is None
    assert one.wake() == 0


def test_a_call_that_is_abandoned_gives_back_its_jobs_and_those_it_had_dropped() -> None:
    one = scheduler(2)
    late, good, other = job(deadline=15), job(), job()
    start(one, 1, 0.0, other)
    for each in (late, good):
        assert one.offer([each], 0.0) is None
    taken = one.take(0, 9 * MS)  # too late for one that takes 10 until 15
    assert (taken.jobs, taken.dropped) == ([good], [late])
    assert one.abandon(0) == [late, good]
    assert (one.waiting, one.running, one.held_bytes) == (0, 1, other.size_bytes)
    one.finish(1, 10 * MS)
    assert one.held_bytes == 0


def test_it_is_checked_again_before_it_runs() -> None:
    one = scheduler()
    start(one)
    late, fine = job(deadline=21), job(deadline=60)
    for each in (late, fine):
        assert one.offer([each], 0.0) is None
    one.finish(0, 15 * MS, learn=False)  # the call took 5 ms longer than it should
    taken = one.take(0, 15 * MS)
    assert (taken.jobs, taken.dropped) == ([fine], [late])
    assert one.held_bytes == 1


def test_what_can_no_longer_be_answered_in_time_expires_while_all_instances_are_busy() -> None:
    one = scheduler()
    start(one)
    waiting = job(deadline=21)
    assert one.offer([waiting], 0.0) is None
    assert one.next_expiry_s() == pytest.approx(11 * MS)
    assert one.expire(10.9 * MS) == []
    assert one.expire(11.1 * MS) == [waiting]
    assert (one.waiting, one.next_expiry_s()) == (0, math.inf)


def test_who_has_used_up_the_margin_of_its_admission_is_not_told_so_late() -> None:
    one = scheduler(table=times((1, 10, 15)))  # 5 ms of margin
    start(one)
    assert one.offer([job(deadline=40)], 0.0) is None
    assert one.next_expiry_s() == pytest.approx(30 * MS)  # its own call is expected to take 10
    assert one.expire(29.9 * MS) == []
    one.finish(0, 29.9 * MS, learn=False)
    assert len(one.take(0, 29.9 * MS).jobs) == 1


def test_urgent_requests_go_first_and_then_those_with_the_earliest_deadline() -> None:
    one = scheduler(table=times((1, 1, 1)))
    start(one)
    low, late, early, high = job(priority=LOW), job(90), job(80), job(95, priority=HIGH)
    for each in (low, late, early, high):
        assert one.offer([each], 0.0) is None
    order = []
    for now in range(1, 5):
        one.finish(0, now * MS)
        order += one.take(0, now * MS).jobs
    assert order == [high, early, late, low]


def test_an_urgent_request_is_predicted_to_pass_the_others() -> None:
    one = scheduler(table=times((1, 10, 10)))
    start(one)
    for _ in range(5):
        assert one.offer([job(deadline=1000)], 0.0) is None
    assert one.offer([job(deadline=25)], 0.0) is None  # by its deadline
    assert one.offer([job(deadline=29, priority=HIGH)], 0.0) is None  # by its priority
    assert one.offer([job(deadline=30, priority=LOW)], 0.0) is not None


def test_requests_and_bytes_are_bounded() -> None:
    one = scheduler(requests=2, size_bytes=10)
    start(one, 0, 0.0, job(size_bytes=6))
    assert one.offer([job(size_bytes=5)], 0.0).reason == BYTES  # type: ignore[union-attr]
    assert one.offer([job(size_bytes=4)], 0.0) is None
    assert one.offer([job(size_bytes=0)], 0.0) is None
    refusal = one.offer([job(size_bytes=0)], 0.0)
    assert refusal is not None
    assert refusal.reason == QUEUE
    assert refusal.retry_after_s == pytest.approx(10 * MS)  # when the instance is free
    one.finish(0, 0.0)
    assert one.held_bytes == 4


def test_a_request_of_several_calls_is_admitted_whole_or_not_at_all() -> None:
    one = scheduler()
    start(one)
    parts = [job(deadline=41, samples=4), job(deadline=41, samples=4)]
    assert one.offer(parts, 0.0) is not None  # 10 to 26 to 42
    assert one.waiting == 0
    parts = [job(deadline=42, samples=4), job(deadline=42, samples=4)]
    assert one.offer(parts, 0.0) is None
    assert one.waiting == 2


def test_a_cancelled_request_makes_room() -> None:
    one = scheduler()
    start(one)
    waiting = job(deadline=20)
    assert one.offer([waiting], 0.0) is None
    assert one.offer([job(deadline=21)], 0.0) is not None
    assert one.cancel(waiting)
    assert not one.cancel(waiting)
    assert one.offer([job(deadline=21)], 0.0) is None


def test_the_end_of_a_call_is_known_better_when_its_inputs_are_decoded() -> None:
    one = scheduler()
    start(one, 0, 0.0, job(prepare=8))  # 0 to 18
    assert one.backlog_s(2 * MS) == pytest.approx(16 * MS)
    one.decoded(0, 4 * MS)
    assert one.backlog_s(4 * MS) == pytest.approx(10 * MS)
    late = job(deadline=40)
    assert one.offer([late], 5 * MS) is None
    assert late.predicted_s == pytest.approx(14 * MS)


def test_decoding_counts_as_part_of_the_call() -> None:
    one = scheduler()
    start(one)  # until 10
    assert one.offer([job(deadline=24.9, prepare=5)], 0.0) is not None
    assert one.offer([job(deadline=25.1, prepare=5)], 0.0) is None


def test_an_idle_server_tries_now_and_then_what_it_believes_to_decode_too_slowly() -> None:
    one = scheduler()
    for now in (0, 30, 60):
        assert one.offer([job(deadline=now + 20, prepare=5000)], now * MS) is None
        one.take(0, now * MS)
        one.finish(0, (now + 30) * MS)
    assert one.offer([job(deadline=110, prepare=5000)], 90 * MS) is not None


def test_an_idle_server_tries_now_and_then_what_it_believes_to_be_too_slow() -> None:
    one = scheduler()
    for _ in range(400):  # the host was three times slower for a while
        one.times.observe(1, 0.0, 30 * MS)
    assert one.times.safe_s(1) == pytest.approx(30 * MS)
    for now in (0, 30, 60):  # the first may be late because nothing ran before it, so it is not the only one
        probe = job(deadline=now + 20)
        assert one.offer([probe], now * MS) is None
        assert one.take(0, now * MS).jobs == [probe]
        one.finish(0, (now + 30) * MS)
    assert one.offer([job(deadline=110)], 90 * MS) is not None  # they were late: once a second is enough
    assert start(one, 0, 1001, job(deadline=1021))
    one.finish(0, 1011 * MS)
    assert one.offer([job(deadline=1031)], 1011 * MS) is None  # that was in time: so the next may be


def test_an_idle_server_tries_what_a_table_of_a_stalled_host_says_is_too_slow() -> None:
    one = scheduler(table=times((1, 2, 3), (2, 5, 400)))
    assert one.offer([job(deadline=50, samples=2)], 0.0) is None
    assert one.take(0, 0.0).jobs
    one.finish(0, 5 * MS)
    assert one.offer([job(deadline=60, samples=2)], 6 * MS) is None  # that was in time
    one.take(0, 6 * MS)
    one.finish(0, 11 * MS)
    assert one.offer([job(deadline=14, samples=2)], 11 * MS) is not None  # less than the mean: that never can be


def test_a_table_that_was_made_while_the_host_stood_still_is_made_again() -> None:
    quiet, stalled = np.full(200, 0.001), np.array([*[0.001] * 100, *[0.4] * 3])
    slower = np.array([*[0.001] * 100, *[0.2] * 3])
    for tries, expected in (
        ([quiet], quiet),
        ([stalled, quiet], quiet),
        ([stalled, slower, quiet], quiet),
        ([stalled, slower, stalled], slower),
    ):
        left = [each.copy() for each in tries]
        found = call_time(2, partial(left.pop, 0))
        assert left == []
        p99_s = max(expected.mean(), np.percentile(expected, 99))
        assert (found.size, found.mean_s, found.p99_s) == (2, expected.mean(), p99_s)
