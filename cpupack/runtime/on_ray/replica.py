"""The model behind Ray Serve: the server of ``NAME serve`` without its doors."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from ..errors import HostError, RunnerError
from ..serve.held import Held
from ..serve.http_app import HttpApp, HttpSettings
from ..serve.loading import add_gauges, collect_less, executor_of, load
from ..serve.messages import HttpAnswer, HttpError, HttpRequest
from ..serve.metrics import Metrics
from ..serve.options import ServeOptions
from ..serve.service import Service, State
from .cluster import node_id, package_of
from .ray_metrics import RayMetrics

_SWEEP_S = 1.0


@dataclass(frozen=True)
class Call:
    """A request without its body, on its way from a front to a replica. Names of headers are in lower case.

    ``arrived_s`` is on the clock ``time.monotonic`` of the node ``node_id``.
    """

    method: bytes
    path: str
    query: bytes
    headers: dict[bytes, bytes]
    arrived_s: float
    node_id: str


class Replica:
    """Answers requests with the scheduler and the instances of ``NAME serve``: one queue, one set of metrics."""

    async def __init__(self, import_name: str, options: ServeOptions) -> None:  # type: ignore[misc]  # Serve awaits it
        self._options = options
        self._metrics = Metrics()
        promise_s = None if options.max_latency_ms is None else options.max_latency_ms / 1000.0
        self._service = Service(self._metrics, promise_s)
        add_gauges(self._metrics, self._service)
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(None, load, package_of(import_name), options)
        self._service.use(executor_of(loaded, options, self._metrics))
        self._held = Held(options.max_queue_bytes)
        settings = HttpSettings(None, options.shed_status, options.max_body_bytes)
        self._app = HttpApp(self._service, settings, self._held)
        self._golden = loaded.model.golden_inputs()[:1]
        self._expected = await loop.run_in_executor(None, loaded.model.run, self._golden, 0)
        self._exact = loaded.model.runner.pool.is_program
        self._node = node_id()
        self._exported = RayMetrics()
        collect_less()
        self._service.state = State.READY
        self._sweeper = asyncio.create_task(self._sweep())

    async def answer(self, call: Call, *parts: bytes) -> HttpAnswer:
        """Return the answer to one request. ``parts`` are its body."""
        now_s = time.monotonic()
        # On the node of the front its clock is this one, and what the request waited between them counts.
        arrived_s = call.arrived_s if call.node_id == self._node else now_s
        body = b"".join(parts)
        request = HttpRequest(call.method, call.path, call.query, call.headers, arrived_s, len(body), body=body)
        request.complete_s = arrived_s
        answer = self._app.early(request)
        if answer is None:
            try:
                answer = await self._app.handle(request)
            except HttpError as error:
                answer = error.answer()
        self._held.give(request.reserved_bytes)
        self._app.answered(request, answer)
        return answer

    async def check_health(self) -> None:
        """Run a golden input. Raises HostError when its output has changed; Serve then starts another replica."""
        model = self._service.model
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(None, model.run, self._golden, 0)
        except RunnerError as error:
            raise HostError(f"the golden input failed: {error}") from error
        same = np.array_equal(found, self._expected) if self._exact else np.allclose(found, self._expected, 1e-3, 1e-3)
        if not same:
            raise HostError("a golden input gives another output than at the start")

    async def __del__(self) -> None:
        """Finish what is admitted; Serve calls this when no request comes any more."""
        if not hasattr(self, "_sweeper"):  # the start has failed
            return
        self._sweeper.cancel()
        self._service.state = State.DRAINING
        await self._service.executor.drain()
        await self._service.executor.close()
        self._app.close()

    async def _sweep(self) -> None:
        """Start threads anew that have died, and hand the metrics to Ray."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            if revived := self._service.executor.revive():
                self._metrics.revived.add(amount=revived)
            self._exported.update(self._metrics.text())
