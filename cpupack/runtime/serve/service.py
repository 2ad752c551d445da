"""What HTTP and gRPC both ask for: whether the server is ready, the model, and an answer under the promise."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from ..errors import InputError
from .executor import Executor
from .metrics import Metrics
from .model import Data, ServedModel
from .request import Format, Request, Urgency
from .scheduler import HIGH, LOW, NORMAL
from .tensors import short, whole
from .times import Tail

MOST_DEADLINE_MS = 600_000.0
BODY_GRACE_S = 0.005
"""Time for a body to arrive that counts against the promise. What a client needs longer is its own."""
_FIRST_RESERVE_S = 0.001
PRIORITIES = {"high": HIGH, "normal": NORMAL, "low": LOW, "1": HIGH, "2": NORMAL, "3": LOW, "0": NORMAL}
"""Names and numbers of priorities. 0 means the default, as with Triton."""


class State(Enum):
    """The life of the server. ``LEAVING`` still serves, but says that it is not ready."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"
    DRAINING = "draining"


class UnavailableError(Exception):
    """The server takes no requests: ``not_ready`` or ``draining``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Timing:
    """Where the time of one request went, in milliseconds, and how many samples its call had."""

    queue_ms: float
    prepare_ms: float
    compute_ms: float
    batch: int

    @classmethod
    def of(cls, request: Request) -> Timing:
        """Return the times of a request that was computed."""
        return cls(
            round(1000.0 * request.queue_s, 3),
            round(1000.0 * request.prepare_s, 3),
            round(1000.0 * request.compute_s, 3),
            request.batch,
        )


class Service:
    """The server without its doors. ``promise_s`` is the bound on the latency of admitted requests, None for none."""

    def __init__(self, metrics: Metrics, promise_s: float | None) -> None:
        self.metrics, self.promise_s = metrics, promise_s
        self.state = State.STARTING
        self.reserve = Tail(_FIRST_RESERVE_S)
        self._executor: Executor | None = None

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests here."""
        return self.state is State.READY

    @property
    def serving(self) -> bool:
        """Whether requests are taken."""
        return self.state in (State.READY, State.LEAVING)

    @property
    def executor(self) -> Executor:
        """The executor of the model that is served now. Raises UnavailableError before it is loaded."""
        if self._executor is None:
            raise UnavailableError("not_ready")
        return self._executor

    @property
    def model(self) -> ServedModel:
        """The model that is served now. Raises UnavailableError before it is loaded."""
        return self.executor.model

    @property
    def idle(self) -> bool:
        """Whether a request that comes now is not refused: an instance is idle, or there is none yet."""
        return self._executor is None or self._executor.scheduler.idle

    def use(self, executor: Executor) -> Executor | None:
        """Send all further requests to ``executor``, and return the one before."""
        before, self._executor = self._executor, executor
        return before

    def check_serving(self) -> None:
        """Raise UnavailableError when no requests are taken."""
        if not self.serving:
            raise UnavailableError("draining" if self.state is State.DRAINING else "not_ready")

    def urgency(self, arrived_s: float, complete_s: float, deadline_ms: float | None, priority: int) -> Urgency:
        """Return by when a request must be answered: its own deadline, else the promise, else none."""
        begin_s = max(arrived_s, complete_s - BODY_GRACE_S)
        limit_s = self.promise_s if deadline_ms is None else deadline_ms / 1000.0
        if limit_s is None:
            return Urgency(begin_s, math.inf, priority)
        promised_s = begin_s + limit_s
        return Urgency(begin_s, promised_s - min(self.reserve.value, limit_s / 4), priority, promised_s)

    async def answer(
        self,
        data: Data,
        urgency: Urgency,
        make_answer: Format,
        on_admitted: Callable[[Callable[[], None]], None] | None = None,
    ) -> tuple[Any, Request]:
        """Return the answer, and the request with where its time went.

        Raises RunnerError (InputError for what the decoder finds), RefusedError and UnavailableError.

        ``on_admitted`` gets a function to call when the client is gone. It cancels the request where it was admitted,
        also after a reload.
        """
        self.check_serving()
        executor = self.executor
        request = executor.submit(data, urgency, make_answer)
        if on_admitted is not None:
            on_admitted(partial(self._forget, executor, request))
        try:
            return await request.future, request
        except asyncio.CancelledError:
            executor.cancel(request)
            raise
        finally:
            # The traceback of its error has this frame: the two would keep each other in memory, and a body.
            del request

    def _forget(self, executor: Executor, request: Request) -> None:
        self.metrics.gone.add()
        executor.cancel(request)

    def sent(self, request: Request) -> None:
        """Note that the answer to an admitted request has been written just now."""
        now_s = time.monotonic()
        self.reserve.observe(now_s - request.finished_s)
        self.metrics.queue.observe(request.queue_s)
        self.metrics.prepare.observe(request.prepare_s)
        if request.urgency.promised_s < math.inf:
            (self.metrics.kept if now_s <= request.urgency.promised_s else self.metrics.broken).add()


def read_deadline_ms(text: str | None, where: str) -> float | None:
    """Return a deadline in milliseconds, None without one. Raises InputError."""
    if text is None:
        return None
    try:
        value = math.nan if "_" in text else float(text)  # Python's own way to write numbers
    except ValueError:
        value = math.nan
    if not 0.0 < value <= MOST_DEADLINE_MS:
        raise InputError(f"{where} is {text[:40]!r}; expected milliseconds, above 0 and at most {MOST_DEADLINE_MS:g}")
    return value


def read_timeout_us(value: Any) -> float | None:
    """Return Triton's ``timeout`` parameter in milliseconds, None for 0 or none. Raises InputError."""
    value = whole(value)
    if value is None or (value == 0 and type(value) is int):
        return None
    if type(value) is not int or not 0 < value <= MOST_DEADLINE_MS * 1000:
        most = f"{MOST_DEADLINE_MS * 1000:.0f}"
        raise InputError(f"timeout is {short(value)}; expected a whole number of microseconds, at most {most}")
    return value / 1000.0


def read_priority(value: Any, where: str) -> int:
    """Return a priority: 1 or ``high``, 2 or ``normal`` (also 0 and nothing), 3 or ``low``. Raises InputError."""
    if value is None:
        return NORMAL
    value = whole(value)
    found = PRIORITIES.get(str(value).strip().lower()) if not isinstance(value, bool) else None
    if found is None:
        raise InputError(f"{where} is {short(value)}; expected high, normal or low (1, 2 or 3)")
    return found
