"""Instances as threads, for engines whose calls release the GIL."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cpupack.peers.job import Batch, Job

Call = Callable[[Any], Any]
"""Runs one batch on one instance."""


class ThreadedPool:
    """``instances`` threads. Each runs ``load`` once and then the call that it returned.

    With ``single``, one instance runs in the caller's own thread instead. Users call these engines so for one request
    at a time, and passing work to another thread would add to each latency.
    """

    def __init__(self, job: Job, load: Callable[[], Call], adapt: Callable[[Batch], Any]) -> None:
        if job.single and job.instances != 1:
            raise ValueError(f"one request at a time keeps one instance busy, not {job.instances}")
        self.instances = job.instances
        self.adapt = adapt
        self._threads = [] if job.single else [ThreadPoolExecutor(1, f"instance-{n}") for n in range(job.instances)]
        # Loaded one after the other, because some engines change settings of the whole process while they load.
        self._calls = [thread.submit(load).result() for thread in self._threads] or [load()]

    def submit(self, batch: Any, instance: int | None = None) -> Future[Any]:
        """Queue one batch on ``instance`` (None: the first)."""
        number = instance or 0
        if self._threads:
            return self._threads[number].submit(self._calls[number], batch)
        future: Future[Any] = Future()
        future.set_result(self._calls[0](batch))
        return future

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown()
