"""Time and a model without hardware: the bench's own code runs, deterministically and fast."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cpupack.runtime.errors import RunnerError
from cpupack.runtime.host.probe import HostProbe


class FakeClock:
    """Time that passes only from one finished call to the next."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()

    def now(self) -> float:
        return self.time_s

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._number), action))

    def sleep_until(self, time_s: float) -> None:
        while self._events and self._events[0][0] <= time_s:
            self.time_s, _, action = heapq.heappop(self._events)
            action()
        self.time_s = max(self.time_s, time_s)

    def wait(self, future: Future[Any]) -> Any:
        while not future.done():
            self.time_s, _, action = heapq.heappop(self._events)
            action()
        return future.result()


class FakePool:
    """Instances, one call at a time each, whose calls take ``service(instance, how many calls it had)`` seconds.

    ``scale(batch)`` multiplies that: by default batches of any size take the same time.
    """

    def __init__(self, clock: FakeClock, service: Callable[[int, int], float], instances: int = 1) -> None:
        self.instances = instances
        self.seen: list[tuple[int, Any]] = []
        self.fail_after: int | None = None
        self.closed_after: int | None = None
        self._clock, self._service = clock, service
        self.scale: Callable[[Any], float] = lambda _batch: 1.0
        self._count = [0] * instances
        self._free_s = [0.0] * instances

    def submit(self, batch: Any, instance: int | None = None) -> Future[Any]:
        assert instance is not None
        if self.closed_after is not None and len(self.seen) >= self.closed_after:
            raise RunnerError("the runner is closed")
        future: Future[Any] = Future()
        self.seen.append((instance, batch))
        if self.fail_after is not None and len(self.seen) > self.fail_after:
            done = lambda: future.set_exception(RunnerError("the model failed"))  # noqa: E731 - one line each
        else:
            done = lambda: future.set_result(batch)  # noqa: E731 - one line each
        took_s = self._service(instance, self._count[instance]) * self.scale(batch)
        self._free_s[instance] = max(self._clock.now(), self._free_s[instance]) + took_s
        self._clock.at(self._free_s[instance], done)
        self._count[instance] += 1
        return future


def quiet_probe(tmp_path: Path) -> HostProbe:
    """A host without /proc: nothing else can disturb."""
    return HostProbe(tmp_path, affinity=frozenset({0, 1}))
