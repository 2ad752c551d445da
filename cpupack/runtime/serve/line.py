"""What waits: one job of a call, and the line of them, whose finish can be predicted. Pure: callers pass the time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import count
from typing import Any

from .times import CallTimes

_CALLS = count(1)
"""Numbers of planned calls."""


@dataclass(eq=False, slots=True)
class Job:
    """What one request adds to a call: at most as many ``samples`` as a call may have.

    ``deadline_s`` is on the caller's clock, infinite for none. ``prepare_s`` is the predicted time to decode it.
    ``predicted_s`` is the time at which it is expected to begin. ``started_s`` is when it did. Jobs with the same
    ``call`` are to run in one call; 0 before that is planned.
    """

    samples: int
    size_bytes: int
    arrived_s: float
    deadline_s: float
    priority: int
    prepare_s: float
    payload: Any
    predicted_s: float = 0.0
    started_s: float = 0.0
    call: int = 0
    probe: bool = False
    waiting: bool = False


@dataclass(slots=True)
class Line:
    """What is predicted for all that waits: when each instance is free, and the last batch, which may have room.

    A time is expected, with a spread: how much later it is in one of a hundred cases. Spreads of calls that follow each
    other add up as those of independent things do, by their squares: hardly ever are all of them slow. ``free`` is a
    heap of (expected time, spread squared).
    """

    free: list[tuple[float, float]]
    expected_s: float = 0.0
    spread2: float = 0.0
    samples: int = 0
    prepare_s: float = 0.0
    deadline_s: float = math.inf
    call: int = 0

    def copy(self) -> Line:
        return Line(
            list(self.free), self.expected_s, self.spread2, self.samples, self.prepare_s, self.deadline_s, self.call
        )

    def add(self, job: Job, times: CallTimes, now_s: float) -> float:
        """Put a job at the end, and return the safe time of its finish.

        It runs with those before it or not, as was planned for it. If nothing was, this plans it. Once each call was
        made up anew when it began. Then a millisecond decided whether it had room for one more, and who had no room
        waited for a whole call more than predicted.

        A job that has to wait is given the time of a call of a worthwhile size. Else the queue would fill up with
        requests that are so late when their turn comes that each allows only a small call, and small calls serve
        fewer requests: in a simulation two thirds as many.
        """
        if self.samples:
            # The batch still waits, or there would be another line. So it begins now at the earliest.
            self.expected_s = max(now_s, self.expected_s)
            samples, prepare_s = self.samples + job.samples, self.prepare_s + job.prepare_s
            deadline_s = min(self.deadline_s, job.deadline_s)
            if job.call:  # as ``take`` will see it
                joins = job.call == self.call and self.expected_s + times.expected_s(samples, prepare_s) <= deadline_s
            else:
                joins = self._has_room(samples, prepare_s, deadline_s, times)
            if joins:
                self.samples, self.prepare_s, self.deadline_s = samples, prepare_s, deadline_s
                job.call, job.predicted_s = self.call, self.expected_s
                return self._safe_s(job, times, now_s)
            end_s = self.expected_s + times.expected_s(self.samples, self.prepare_s)
            end = end_s, self.spread2 + times.spread_s(self.samples, self.prepare_s) ** 2
            expected_s, self.spread2 = heapq.heappushpop(self.free, end)
        else:
            expected_s, self.spread2 = heapq.heappop(self.free)
        self.expected_s = max(now_s, expected_s)
        self.samples, self.prepare_s, self.deadline_s = job.samples, job.prepare_s, job.deadline_s
        if not job.call:
            job.call = next(_CALLS)
        self.call, job.predicted_s = job.call, self.expected_s
        return self._safe_s(job, times, now_s)

    def _has_room(self, samples: int, prepare_s: float, deadline_s: float, times: CallTimes) -> bool:
        """Return whether the last batch may grow to this size: it ends in time, and no other instance is free first."""
        if samples > times.largest or (self.free and self.free[0][0] <= self.expected_s):
            return False
        return times.finish_s(self.expected_s, self.spread2, samples, prepare_s) <= deadline_s

    def _safe_s(self, job: Job, times: CallTimes, now_s: float) -> float:
        """Return when the last batch is over in 99 of 100 cases; if it has to wait, of a worthwhile size at least."""
        samples, prepare_s = self.samples, self.prepare_s
        if self.expected_s > now_s:
            each_s = prepare_s / samples
            size = times.worthwhile(job.deadline_s - job.arrived_s, each_s)
            if size > samples:  # else it ends no later
                samples, prepare_s = size, each_s * size
        return times.finish_s(self.expected_s, self.spread2, samples, prepare_s)


@dataclass(frozen=True, slots=True)
class Bar:
    """What all later requests must reach while ``line`` waits: with the same time to their deadline, or more of it.

    One that takes ``prepare_s`` to decode, or longer, would end at ``finish_s`` at the earliest, and one that takes no
    time at ``least_s``. What is between is taken to be on a line: smaller calls are worthwhile with those that take
    longer, so it may be a little less.
    """

    line: Line
    budget_s: float
    prepare_s: float
    least_s: float
    finish_s: float

    def finish_with_s(self, prepare_s: float) -> float:
        """Return when one would end that takes ``prepare_s`` to decode."""
        if prepare_s >= self.prepare_s:
            return self.finish_s
        return self.least_s + (self.finish_s - self.least_s) * prepare_s / self.prepare_s
