"""What waits: one job of a call, and the line of them, whose finish can be predicted. Pure: callers pass the time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

from .times import CallTimes


@dataclass(eq=False, slots=True)
class Job:
    """What one request adds to a call: at most as many ``samples`` as a call may have.

    ``deadline_s`` is on the caller's clock, infinite for none. ``prepare_s`` is the predicted time to decode it.
    ``predicted_s`` is the time at which it is expected to begin. ``started_s`` is when it did.
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

    def copy(self) -> Line:
        return Line(list(self.free), self.expected_s, self.spread2, self.samples, self.prepare_s, self.deadline_s)

    def add(self, job: Job, times: CallTimes, now_s: float) -> float:
        """Put a job at the end, and return the safe time of its finish.

        A job that has to wait is given the time of a call of a worthwhile size. Else the queue would fill up with
        requests that are so late when their turn comes that each allows only a small call, and small calls serve
        fewer requests: in a simulation two thirds as many.
        """
        if self.samples:
            # The batch still waits, or there would be another line. So it begins now at the earliest.
            self.expected_s = max(now_s, self.expected_s)
            samples, prepare_s = self.samples + job.samples, self.prepare_s + job.prepare_s
            deadline_s = min(self.deadline_s, job.deadline_s)
            alone = not self.free or self.free[0][0] > self.expected_s
            # As ``take`` will decide when the time has come.
            fits = samples <= times.largest and self.expected_s + times.safe_s(samples, prepare_s) <= deadline_s
            if alone and fits:
                self.samples, self.prepare_s, self.deadline_s = samples, prepare_s, deadline_s
                job.predicted_s = self.expected_s
                return self._safe_s(job, times, now_s)
            end_s = self.expected_s + times.expected_s(self.samples, self.prepare_s)
            end = end_s, self.spread2 + times.spread_s(self.samples, self.prepare_s) ** 2
            expected_s, self.spread2 = heapq.heappushpop(self.free, end)
        else:
            expected_s, self.spread2 = heapq.heappop(self.free)
        self.expected_s = max(now_s, expected_s)
        self.samples, self.prepare_s, self.deadline_s = job.samples, job.prepare_s, job.deadline_s
        job.predicted_s = self.expected_s
        return self._safe_s(job, times, now_s)

    def _safe_s(self, job: Job, times: CallTimes, now_s: float) -> float:
        """Return when the last batch is over in 99 of 100 cases; if it has to wait, of a worthwhile size at least."""
        samples, prepare_s = self.samples, self.prepare_s
        if self.expected_s > now_s:
            each_s = prepare_s / samples
            size = times.worthwhile(job.deadline_s - job.arrived_s, each_s)
            if size > samples:  # else it ends no later
                samples, prepare_s = size, each_s * size
        return times.finish_s(self.expected_s, self.spread2, samples, prepare_s)
