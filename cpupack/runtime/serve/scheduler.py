"""Decides which request is taken, when it runs, and with which others. Pure: callers pass the time and hold the lock.

The rules:

- At its arrival the finish of a request is predicted: when an instance is free, the batches ahead of it, its own call;
  with the expected times of ``CallTimes`` and their spread. What cannot make its deadline is refused at once.
- It is checked again before it runs, and ``expire`` drops what waits too long while all instances are busy.
- A free instance takes the most urgent request at once, and as many others as that request's deadline allows. Which
  requests run together is planned when they arrive, and that plan is kept.
- What waits is bounded in requests and in bytes.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .line import Bar, Job, Line
from .times import CallTimes

HIGH, NORMAL, LOW = 1, 2, 3
"""Priorities, numbered as Triton numbers them: 1 is the most urgent."""
PROBE_EVERY_S = 1.0
"""How often an idle server tries requests that its corrected times say are too slow, until one is in time. Else it
would never learn that the host is fast again."""
PROBES_TOGETHER = 3
"""So many, one after the other: the first after a second without work may be slow for that reason alone."""

_ROUNDING_S = 1e-6
"""What the same time to a deadline may differ by, as the difference of two points in time."""
_LEFT = 0.1
"""Of its expected time a call that runs needs at least this much more: nobody knows when a slow one ends."""

DEADLINE, QUEUE, BYTES, EXPIRED = "deadline", "queue", "bytes", "expired"
"""Why a request is refused."""


@dataclass(frozen=True)
class Limits:
    """Bounds on what is admitted and not yet answered."""

    requests: int
    bytes: int


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served, and after how long another one would be."""

    reason: str
    retry_after_s: float


@dataclass(frozen=True)
class Taken:
    """What an instance got: the jobs to run now, and those that could no longer make their deadline."""

    jobs: list[Job]
    dropped: list[Job]


@dataclass
class _Running:
    jobs: list[Job]
    samples: int
    prepare_s: float
    started_s: float
    decoded_s: float | None = None


@dataclass
class Scheduler:
    """The queue in front of ``instances`` instances whose calls take ``times``. Not safe for several threads."""

    times: CallTimes
    instances: int
    limits: Limits
    _queue: list[tuple[int, float, int, Job]] = field(default_factory=list)
    _running: dict[int, _Running] = field(default_factory=dict)
    _dropped: dict[int, list[Job]] = field(default_factory=dict)
    _parked: list[int] = field(default_factory=list)
    _line: Line | None = None
    _bar: Bar | None = None
    _number: int = 0
    _bytes: int = 0
    _samples: int = 0
    _probed_s: float = -math.inf
    _probes: int = 0

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether an instance has nothing to do, and so takes what comes at once."""
        return not self._queue and len(self._running) < self.instances

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(len(call.jobs) for call in list(self._running.values()))  # a copy: metrics read without the lock

    @property
    def held_bytes(self) -> int:
        """The bodies of all that waits or runs."""
        return self._bytes

    def offer(self, jobs: Sequence[Job], now_s: float) -> Refusal | None:
        """Admit all ``jobs`` of one request, or refuse it. Then ``wake`` tells which parked instances have work."""
        if refusal := self._refused(jobs, now_s):
            return refusal
        appended = True
        for job in jobs:
            self._number += 1
            entry = (job.priority, job.deadline_s, self._number, job)
            if self._queue and entry < self._queue[-1]:
                bisect.insort(self._queue, entry)
                appended = False
            else:
                self._queue.append(entry)
            job.waiting = True
            self._bytes += job.size_bytes
            self._samples += job.samples
        if not appended:
            for entry in self._queue:  # all calls are planned anew
                entry[3].call = 0
            self._line = None
        return None

    def peek(self, job: Job, now_s: float) -> Refusal | None:
        """Return the refusal that ``job`` would get now, and admit nothing."""
        return self._refused([job], now_s, asked=True)

    def late(
        self, arrived_s: float, deadline_s: float, priority: int, prepare_s: float, now_s: float
    ) -> Refusal | None:
        """Return the refusal of a request that would be as late as the last one that was, None if ``peek`` must see.

        While many are refused, nothing changes from one to the next, and this looks at a number alone.
        """
        bar, queue = self._bar, self._queue
        if bar is None or bar.line is not self._line or not queue or now_s >= bar.line.expected_s:
            return None
        finish_s = bar.finish_with_s(prepare_s)
        if deadline_s >= finish_s:
            return None
        if deadline_s - arrived_s < bar.budget_s - _ROUNDING_S or priority < queue[-1][0]:
            return None
        if priority == queue[-1][0] and deadline_s < queue[-1][1]:
            return None
        return Refusal(DEADLINE, finish_s - deadline_s)

    def wake(self) -> int | None:
        """Return a parked instance for which there is work, None without one. It is then no longer parked."""
        if not self._parked or not self._queue:
            return None
        woken = self.instances - len(self._parked) - len(self._running)
        return self._parked.pop() if woken < len(self._queue) else None

    def parked(self, job: Job, now_s: float) -> int | None:
        """Return a parked instance that could answer ``job`` in time if it began now, None without one."""
        if not self._parked or not self.idle or self.peek(job, now_s) is not None:
            return None
        return self._parked[-1]

    def take(self, instance: int, now_s: float) -> Taken:
        """Return the next call of a free ``instance``, without jobs if nothing waits; it is then parked."""
        dropped = []
        jobs: list[Job] = []
        samples, prepare_s, deadline_s = 0, 0.0, math.inf
        others = self.instances - len(self._running) - 1
        share = max(1, -(-self._samples // (others + 1)))
        taken = 0
        for _, _, _, job in self._queue:
            if self._too_late(job, now_s):
                dropped.append(job)
                taken += 1
                continue
            together, both_s = samples + job.samples, prepare_s + job.prepare_s
            earliest_s = min(deadline_s, job.deadline_s)
            if jobs and together > min(self.times.largest, share):
                break
            planned = job.call > 0 and not others
            if jobs and planned and job.call != jobs[0].call:
                break
            took_s = self.times.expected_s if planned else self.times.safe_s  # the plan had a margin, which may be gone
            if jobs and now_s + took_s(together, both_s) > earliest_s:
                break
            jobs.append(job)
            samples, prepare_s, deadline_s = together, both_s, earliest_s
            taken += 1
        # Noted before they leave the queue: whatever interrupts this, ``abandon`` finds them.
        self._dropped[instance] = dropped
        if jobs:
            for job in jobs:
                job.started_s = now_s
            self._running[instance] = _Running(jobs, samples, prepare_s, now_s)
            if instance in self._parked:  # woken more often than was needed
                self._parked.remove(instance)
        if taken:
            del self._queue[:taken]
            self._line = None
            for job in (*jobs, *dropped):
                job.waiting = False
                self._samples -= job.samples
        for job in dropped:
            self._bytes -= job.size_bytes
        if not jobs and instance not in self._parked:
            self._parked.append(instance)
            self._line = None
        return Taken(jobs, dropped)

    def decoded(self, instance: int, now_s: float) -> None:
        """Note that ``instance`` has decoded the inputs of its call: so its end is known better."""
        call = self._running.get(instance)
        if call is not None and call.prepare_s > 0:
            call.decoded_s = now_s
            self._line = None

    def finish(self, instance: int, now_s: float, *, learn: bool = True) -> None:
        """Note that the call of ``instance`` is over. ``learn`` is false for a call that failed."""
        call = self._running.pop(instance, None)
        if call is None:
            return
        self._line = None
        self._bytes -= sum(job.size_bytes for job in call.jobs)
        if learn:
            self.times.observe(call.samples, call.prepare_s, now_s - call.started_s)
        if any(job.probe and now_s <= job.deadline_s for job in call.jobs):
            self._probed_s = -math.inf  # so the next one may be tried at once

    def abandon(self, instance: int) -> list[Job]:
        """Forget the call of an instance that was interrupted, and return its jobs and those that it had dropped.

        An exception from outside may have struck anywhere, also in here, so the sums are made anew.
        """
        call, dropped = self._running.get(instance), self._dropped.get(instance, [])
        lost = [*dropped, *(call.jobs if call is not None else ())]
        self._dropped[instance] = lost  # so that the next attempt finds them, should this one be interrupted, too
        gone = set(map(id, lost))
        self._queue = [entry for entry in self._queue if id(entry[3]) not in gone]
        for job in lost:
            job.waiting = False
        self._line = None
        self._samples = sum(entry[3].samples for entry in self._queue)
        others = [job for number, one in self._running.items() if number != instance for job in one.jobs]
        self._bytes = sum(job.size_bytes for job in (*(entry[3] for entry in self._queue), *others))
        self._running.pop(instance, None)
        return lost

    def cancel(self, job: Job) -> bool:
        """Forget a job that waits, for example because its client is gone. False when it runs or is over."""
        if not job.waiting:
            return False
        for position, entry in enumerate(self._queue):
            if entry[3] is job:
                del self._queue[position]
                break
        self._drop(job)
        return True

    def expire(self, now_s: float) -> list[Job]:
        """Remove and return what waits and can no longer make its deadline."""
        late = [entry[3] for entry in self._queue if self._too_late(entry[3], now_s)]
        if late:
            gone = set(map(id, late))
            self._queue = [entry for entry in self._queue if id(entry[3]) not in gone]
            for job in late:
                self._drop(job)
        return late

    def next_expiry_s(self) -> float:
        """Return when ``expire`` will next find something, infinite if never."""
        times = self.times
        return min(
            (
                job.deadline_s - times.expected_s(job.samples, job.prepare_s)
                for _, _, _, job in self._queue
                if not job.probe
            ),
            default=math.inf,
        )

    def clear(self) -> list[Job]:
        """Remove and return all that waits."""
        left = [entry[3] for entry in self._queue]
        self._queue = []
        for job in left:
            self._drop(job)
        return left

    def backlog_s(self, now_s: float) -> float:
        """Return how long a job that comes now is expected to wait."""
        return max(0.0, self._predict([Job(1, 0, now_s, math.inf, NORMAL, 0.0, None)], now_s)[1] - now_s)

    def _refused(self, jobs: Sequence[Job], now_s: float, *, asked: bool = False) -> Refusal | None:
        """Return why ``jobs`` are refused, None where they are not. If that is only ``asked``, nothing changes."""
        size_bytes = jobs[0].size_bytes if len(jobs) == 1 else sum(job.size_bytes for job in jobs)
        if self._queue and len(self._queue) + len(jobs) > self.limits.requests:
            return Refusal(QUEUE, self.backlog_s(now_s))
        if self._bytes and self._bytes + size_bytes > self.limits.bytes:
            return Refusal(BYTES, self.backlog_s(now_s))
        finish_s, _, line = self._predict(jobs, now_s)
        deadline_s = jobs[0].deadline_s
        if finish_s <= deadline_s:
            if not asked and (line is not None or not self._queue):
                self._line = line
            return None
        idle = not self._queue and not self._running
        # Without the time to decode, which was learnt, too, and by the table's mean: its p99 may be that of a host that
        # stood still while it was made.
        alone = len(jobs) == 1 and now_s + self.times.mean_s(jobs[0].samples) <= deadline_s
        due = now_s - self._probed_s >= PROBE_EVERY_S
        if idle and alone and (due or self._probes < PROBES_TOGETHER):
            if not asked:
                if due:
                    self._probed_s, self._probes = now_s, 0
                self._probes += 1
                jobs[0].probe = True
                self._line = None
            return None
        if asked and line is not None and self._line is not None and deadline_s >= self._line.deadline_s:
            self._raise_bar(self._line, jobs[0], finish_s, now_s)
        return Refusal(DEADLINE, finish_s - deadline_s)

    def _raise_bar(self, line: Line, job: Job, finish_s: float, now_s: float) -> None:
        """Note when a request like ``job``, which is refused at the end of ``line``, would end, also without decoding.

        Its deadline is not the first of the last batch. So a later one has no room there either.
        """
        fastest = Job(1, 0, job.arrived_s, job.deadline_s, job.priority, 0.0, None)
        least_s = line.copy().add(fastest, self.times, now_s)
        self._bar = Bar(line, job.deadline_s - job.arrived_s, job.prepare_s, least_s, finish_s)

    def _predict(self, jobs: Sequence[Job], now_s: float) -> tuple[float, float, Line | None]:
        """Return (safe finish, expected begin) of the last of ``jobs``, and the line with them if they are its end."""
        if self.idle and len(jobs) == 1:  # as the line would say
            (job,) = jobs
            job.predicted_s = now_s
            took_s = self.times.expected_s(job.samples, job.prepare_s)
            return now_s + took_s + self.times.spread_s(job.samples, job.prepare_s), now_s, None
        last = self._queue[-1] if self._queue else None
        if last is None or (jobs[0].priority, jobs[0].deadline_s) >= last[:2]:
            line = self._whole_line(now_s).copy()
            if len(jobs) == 1:
                return line.add(jobs[0], self.times, now_s), jobs[0].predicted_s, line
            finish_s = 0.0
            for job in jobs:
                finish_s = max(finish_s, line.add(job, self.times, now_s))
            return finish_s, jobs[-1].predicted_s, line
        line = self._empty_line(now_s)
        key = (jobs[0].priority, jobs[0].deadline_s)
        for priority, deadline_s, _, job in self._queue:
            if (priority, deadline_s) > key:
                break
            line.add(job, self.times, now_s)
        finish_s = 0.0
        for job in jobs:
            finish_s = max(finish_s, line.add(job, self.times, now_s))
        return finish_s, jobs[-1].predicted_s, None

    def _whole_line(self, now_s: float) -> Line:
        if self._line is None:
            line = self._empty_line(now_s)
            for _, _, _, job in self._queue:
                begin_s = job.predicted_s
                line.add(job, self.times, now_s)
                job.predicted_s = begin_s  # what was predicted at its arrival is kept, to be compared
            self._line = line
        return self._line

    def _empty_line(self, now_s: float) -> Line:
        times = self.times
        free = [(now_s, 0.0)] * (self.instances - len(self._running))
        for call in self._running.values():
            prepare_s, begin_s = call.prepare_s, call.started_s
            if call.decoded_s is not None:
                prepare_s, begin_s = 0.0, call.decoded_s
            expected_s = times.expected_s(call.samples, prepare_s)
            end_s = max(begin_s + expected_s, now_s + _LEFT * expected_s)
            free.append((end_s, times.spread_s(call.samples, prepare_s) ** 2))
        heapq.heapify(free)
        return Line(free)

    def _too_late(self, job: Job, now_s: float) -> bool:
        """Return whether an admitted job would more likely than not be answered after its deadline.

        It was admitted with a margin, and that may be used up: refusing it now tells its client late.
        """
        return not job.probe and now_s + self.times.expected_s(job.samples, job.prepare_s) > job.deadline_s

    def _drop(self, job: Job) -> None:
        job.waiting = False
        self._bytes -= job.size_bytes
        self._samples -= job.samples
        self._line = None
