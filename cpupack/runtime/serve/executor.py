"""The threads that decode and compute, one for each instance, and the door through which requests reach them.

The scheduler's state has one lock. The event loop takes it to offer and to cancel, an instance's thread to finish one
call and take the next. So an instance never waits for the loop between two calls. Answers go back through the loop, all
of a call in one hand-over. A call that is shorter than a hand-over is run by the loop itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from ..errors import HostError, RunnerError
from ..host.limits import why_no_thread
from ..threads import Answer, ThreadRefusedError
from ..threads import start as start_thread
from .calls import Calls, Done
from .doorbell import Doorbell
from .line import Job
from .model import TENSOR, Data, ServedModel
from .request import Format, Observer, Part, RefusedError, Request, Urgency
from .scheduler import EXPIRED, Refusal, Scheduler
from .steps import Outcome
from .times import PrepareTimes, ShortCalls

LOGGER = logging.getLogger("cpupack.serve")
NICE = 5
"""How much instances yield to the event loop, which must answer and refuse while all cores compute.

At 1 a loop that needs a third of a core waits for up to 2 ms in one of ten cases, at 5 for 0.3 ms.
"""


class Executor:
    """Runs requests of ``model`` in the order of ``scheduler``. To be made and used on the event loop's thread."""

    def __init__(
        self, model: ServedModel, scheduler: Scheduler, prepare: PrepareTimes, observer: Observer | None = None
    ) -> None:
        self.model, self.scheduler, self.prepare_times = model, scheduler, prepare
        self._loop = asyncio.get_running_loop()
        self._bell = Doorbell(self._loop)
        self._calls = Calls(model, prepare, observer or Observer(), partial(self._bell.post, LOGGER.error))
        self._short = ShortCalls(scheduler.times)
        # After a reload the pool comes from another copy of the runtime, which may be older.
        self._runs_here = bool(getattr(model.runner.pool, "runs_in_caller", False))
        self._lock = threading.Lock()
        # In C, so that an exception from outside cannot strike in the middle and lose a waiter, as in a Semaphore.
        self._wakes = [SimpleQueue[None]() for _ in range(scheduler.instances)]
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._unanswered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = math.inf
        self._threads: list[Answer[None]] = []
        self._idents: list[int | None] = [None] * scheduler.instances
        self._owners: dict[int, int] = {}
        try:
            for number in range(scheduler.instances):
                self._threads.append(self._thread(number))
        except BaseException:
            self._stopping = True
            for wake in self._wakes:
                wake.put(None)
            self._bell.close()
            raise

    @property
    def unanswered(self) -> int:
        """How many requests are admitted and not yet answered."""
        return self._unanswered

    def backlog_s(self) -> float:
        """Return how long a request that comes now is expected to wait."""
        with self._lock:
            return self.scheduler.backlog_s(time.monotonic())

    def would_refuse(self, kind: str, size_bytes: int, samples: int, urgency: Urgency) -> Refusal | None:
        """Return the refusal that such a request would get now, before its body is read."""
        now_s, prepare_s = time.monotonic(), self.prepare_times.estimate_s(kind, size_bytes)
        with self._lock:
            refusal = self.scheduler.late(urgency.arrived_s, urgency.deadline_s, urgency.priority, prepare_s, now_s)
            if refusal is None:
                refusal = self.scheduler.peek(self._job(samples, size_bytes, urgency, prepare_s, None), now_s)
        return refusal

    def submit(self, data: Data, urgency: Urgency, make_answer: Format) -> Request:
        """Admit a request, or raise RefusedError. Its future gets the answer or a RunnerError or RefusedError."""
        request = Request(Outcome(self._loop), make_answer, urgency)
        size = min(self._chunk(data.samples), self.model.most_together(data))
        for number, start in enumerate(range(0, data.samples, size)):
            part = data.part(start, start + size) if data.samples > size else data
            size_bytes = part.size_bytes
            prepare_s = self.prepare_times.estimate_s(part.kind, size_bytes)
            request.jobs.append(self._job(part.samples, size_bytes, urgency, prepare_s, Part(request, number, part)))
        request.logits = [None] * len(request.jobs)
        request.missing = len(request.jobs)
        if self._runs_here and data.kind == TENSOR and request.missing == 1 and self._run_here(data, request):
            return request
        with self._lock:
            refusal = self.scheduler.offer(request.jobs, time.monotonic())
            woken = [] if refusal else self._woken()
        if refusal:
            raise RefusedError(refusal)
        for instance in woken:  # first: until its core is awake, all else here is done
            self._wakes[instance].put(None)
        self._unanswered += 1
        self._idle.clear()
        self._arm(request.jobs[0])
        return request

    def _run_here(self, data: Data, request: Request) -> bool:
        """Answer a request in the loop's thread, if that is less work than to hand it over. Returns whether it was.

        The thread of the instance sleeps on. The loop alone puts something into the queue, so nobody asks for the
        instance meanwhile, and the scheduler need not know.
        """
        if not self._short.has(data.samples):
            return False
        (job,) = request.jobs
        with self._lock:
            begin_s = time.monotonic()
            instance = self.scheduler.parked(job, begin_s)
        if instance is None:
            return False
        job.started_s = begin_s
        try:
            done, learn, notes = self._calls.run(instance, request.jobs)
        except Exception:
            LOGGER.exception("a call of instance %d failed", instance)
            done, learn = [(request, None, RunnerError("the call failed"))], False
            notes = []
        took_s = time.monotonic() - begin_s
        self._short.observe(data.samples, took_s)
        if learn:
            with self._lock:
                self.scheduler.times.observe(job.samples, job.prepare_s, took_s)
        self._unanswered += 1
        self._settle_all(done)
        self._calls.note(notes)
        return True

    def cancel(self, request: Request) -> None:
        """Forget a request whose client is gone. What already runs is finished and thrown away."""
        with self._lock:
            for job in request.jobs:
                self.scheduler.cancel(job)
        self._settle(request, None, RefusedError(Refusal("gone", 0.0)))

    async def drain(self) -> None:
        """Wait until every admitted request is answered."""
        await self._idle.wait()

    async def close(self) -> None:
        """End the threads after the calls that run, and refuse what waits."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            left = self.scheduler.clear()
        self._refuse(left, Refusal("draining", 1.0))
        for wake in self._wakes:
            wake.put(None)
        while any(self._alive()):
            await asyncio.sleep(0.002)
        self._bell.close()
        self.model.runner.close()

    def revive(self) -> int:
        """Start threads anew that have died, and return how many run again."""
        self._bell.look()
        dead = [number for number, alive in enumerate(self._alive()) if not alive and not self._stopping]
        for number in dead:
            LOGGER.error("the thread of instance %d had died; it is started again", number)
            self._abandon(number)
            try:
                self._threads[number] = self._thread(number)
            except HostError as error:  # the next call tries again
                LOGGER.warning("instance %d stays without a thread: %s", number, error)
        alive = self._alive()
        return sum(alive[number] for number in dead)

    def _alive(self) -> list[bool]:
        """Return for each thread whether it runs. An exception that strikes at its end may have left it no answer.

        The system gives the number of a thread that has ended to a new one. So the last to claim a number has it. The
        numbers are read before the frames: a thread that has claimed one has a frame, or has ended.
        """
        idents, owners = list(self._idents), self._owners.copy()
        running = set(sys._current_frames())  # the frames hold bodies, and this one would hold them
        return [
            not thread.done() and (ident is None or (ident in running and owners.get(ident) == number))
            for number, (thread, ident) in enumerate(zip(self._threads, idents, strict=True))
        ]

    def _job(self, samples: int, size_bytes: int, urgency: Urgency, prepare_s: float, part: Part | None) -> Job:
        return Job(
            samples, size_bytes, urgency.arrived_s, urgency.deadline_s, urgency.priority, prepare_s, part
        )  # fmt: skip

    def _chunk(self, samples: int) -> int:
        """Return how many samples of a request go into one call: all instances share a large one."""
        largest, instances = self.model.batch_size, self.scheduler.instances
        if samples <= 4 or instances == 1:
            return largest
        turns = -(-samples // (largest * instances))
        return min(largest, -(-samples // (turns * instances)))

    def _woken(self) -> list[int]:
        found = []
        while (instance := self.scheduler.wake()) is not None:
            found.append(instance)
        return found

    def _thread(self, instance: int) -> Answer[None]:
        """Start the thread of an instance. Not with threading.Thread, whose start would wait for ever for a thread that
        is struck by an exception in its first lines.
        """
        self._idents[instance] = None
        try:
            return start_thread(self._serve, instance)
        except ThreadRefusedError as error:
            raise HostError(why_no_thread()) from error

    def _serve(self, instance: int) -> None:
        """Run calls until the executor closes. An exception from outside (a signal, a debugger) costs one call.

        It may strike at any bytecode. So this thread takes no lock of Python code: what it has to log goes to the loop,
        or it could end with logging's lock, and the loop would wait for it.
        """
        ident = threading.get_ident()
        self._owners[ident] = instance
        self._idents[instance] = ident
        if problem := _yield_to_the_loop():
            self._bell.post(LOGGER.info, "instances run at the priority of the event loop: %s", problem)
        while not self._stopping:
            try:
                self._work(instance)
            except BaseException:  # noqa: BLE001 - logged by the loop
                text = traceback.format_exc()
                self._bell.post(LOGGER.error, "instance %d was interrupted; it goes on\n%s", instance, text)
                self._abandon(instance)

    def _abandon(self, instance: int) -> None:
        """Fail the call that ``instance`` was running when it was interrupted."""
        with self._lock:
            call = self.scheduler.abandon(instance)
        for wake in self._wakes:  # it may have been about to wake others
            wake.put(None)
        self._hand_over([(job.payload.request, None, RunnerError("the call was interrupted")) for job in call])

    def _work(self, instance: int) -> None:
        ran = learn = False
        while not self._stopping:
            with self._lock:
                if ran:
                    self.scheduler.finish(instance, time.monotonic(), learn=learn)
                taken = self.scheduler.take(instance, time.monotonic())
                woken = self._woken()
                retry_s = self.scheduler.backlog_s(time.monotonic()) if taken.dropped else 0.0
            for other in woken:
                self._wakes[other].put(None)
            if taken.dropped:
                self._bell.post(self._refuse, taken.dropped, Refusal(EXPIRED, retry_s))
            if not taken.jobs:
                ran = False
                self._wakes[instance].get()
                continue
            done, learn, notes = self._calls.run(instance, taken.jobs, self._decoded)
            self._hand_over(done)
            self._calls.note(notes)
            del taken, done, notes  # a thread that sleeps holds no bodies
            ran = True

    def _decoded(self, instance: int) -> None:
        with self._lock:
            self.scheduler.decoded(instance, time.monotonic())

    def _hand_over(self, done: Done) -> None:
        if done:
            self._bell.post(self._settle_all, done)

    def _settle_all(self, done: Done) -> None:
        for request, answer, error in done:
            self._settle(request, answer, error)

    def _settle(self, request: Request, answer: Any, error: Exception | None) -> None:
        if request.over:
            return
        request.over = True
        self._unanswered -= 1
        if not self._unanswered:
            self._idle.set()
        if error is not None and len(request.jobs) > 1:
            with self._lock:
                for job in request.jobs:
                    self.scheduler.cancel(job)
        request.jobs = []  # each names the request: without this the garbage collector would have to find the bodies
        request.future.settle(answer, error)

    def _refuse(self, jobs: Sequence[Job], refusal: Refusal) -> None:
        for job in jobs:
            self._settle(job.payload.request, None, RefusedError(refusal))

    def _arm(self, newest: Job | None = None) -> None:
        """Set the timer that expires what waits; ``newest`` may have to go before what it is set to."""
        if self._timer is not None:
            if newest is None or newest.deadline_s >= self._armed_s:
                return
            self._timer.cancel()
            self._timer = None
        with self._lock:
            next_s = self.scheduler.next_expiry_s()
        if next_s < math.inf:
            self._armed_s = next_s
            self._timer = self._loop.call_later(max(0.001, next_s - time.monotonic()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        with self._lock:
            now_s = time.monotonic()
            late = self.scheduler.expire(now_s)
            retry_s = self.scheduler.backlog_s(now_s) if late else 0.0
        self._refuse(late, Refusal(EXPIRED, retry_s))
        self._arm()


def _yield_to_the_loop() -> str | None:
    """Make this thread less urgent than the loop's. Returns why that is not possible, None where it is."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    except OSError as error:  # only a preference
        return str(error)
    return None
