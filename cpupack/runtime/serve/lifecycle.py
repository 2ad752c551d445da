"""The life of a server: load and warm up, open the doors, serve, reload, leave, drain, stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import HostError, InputError, RunnerError
from .access_log import AccessLog
from .addresses import address as address_text
from .aside import Aside
from .connection import Connection
from .connections import ConnectionLimits, Connections
from .executor import Executor
from .held import Held
from .http_app import HttpApp, HttpSettings
from .keys import Keys
from .loading import Code, Loaded, add_gauges, collect_less, executor_of, load
from .metrics import Metrics
from .options import ServeOptions
from .service import Service, State

LOGGER = logging.getLogger("cpupack.serve")
_SWEEP_S = 1.0
_SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while another waits. The default of 5 ms is a tenth of a promise."""
_BACKLOG = 2048
_OTHER_FILES = 128
"""Open files beside connections: libraries, logs, gRPC."""


class Server:
    """Serves the package in ``package_dir`` as ``options`` say. ``say`` gets lines for the user."""

    def __init__(self, package_dir: Path, options: ServeOptions, say: Callable[[str], None]) -> None:
        self._dir, self._options, self._say = package_dir, options, say
        self.keys = Keys(options)
        self.metrics = Metrics()
        self.service = Service(
            self.metrics, None if options.max_latency_ms is None else options.max_latency_ms / 1000.0
        )
        self._log = None if options.access_log is None else AccessLog(options.access_log, self.metrics.log_lost.add)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None
        self._loader = Aside()
        self._generation = 0
        self._once_more = False
        self._code: Code | None = None
        self.held = Held(options.max_queue_bytes)
        self.app = HttpApp(
            self.service,
            HttpSettings(options.token, options.shed_status, options.max_body_bytes),
            self.held,
            self._log,
        )
        self.connections = Connections(
            self.app.handle, self.app.early, self.app.full, self.app.answered,
            ConnectionLimits(
                body_bytes=options.max_body_bytes,
                connections=options.max_connections,
                request_s=options.client_timeout_s,
                idle_s=options.idle_timeout_s,
            ),
            self.held,
        )  # fmt: skip
        self._gauges()

    async def run(self) -> None:
        """Serve until a signal. Raises HostError, InputError and IntegrityError before the doors are open."""
        loop = asyncio.get_running_loop()
        options = self._options
        sys.setswitchinterval(_SWITCH_S)
        listening = listen(options.host, options.port)
        grpc_door: Any = None
        doors: asyncio.Server | None = None
        sweeper: asyncio.Task[None] | None = None
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._ask_to_stop)
            loop.add_signal_handler(signal.SIGHUP, self._ask_to_reload)
            self.connections.sweep()
            # Open before the model is loaded: liveness is true from now on, readiness is not.
            doors = await loop.create_server(
                lambda: Connection(self.connections), sock=listening, ssl=self.keys.tls, backlog=_BACKLOG
            )
            sweeper = asyncio.create_task(self._sweep(lambda: grpc_door))
            loaded = await self._unless_stopped(self._loader.run(load, self._dir, options))
            if loaded is None:
                return
            self._use(loaded)
            if options.grpc_port is not None:
                from .grpc_service import open_door  # here: needs grpcio

                grpc_door = await open_door(self.service, options, self.keys, self.held, self._log)
            collect_less()
            self.service.state = State.READY
            self._announce(listening, loaded, None if grpc_door is None else grpc_door.port)
            self._reload_if_asked()
            await self._stop.wait()
            await self._leave(doors, grpc_door)
        finally:
            if sweeper is not None:
                sweeper.cancel()
            if doors is not None:
                doors.close()
            listening.close()
            self.connections.abort()
            if self._reloading is not None:
                self._reloading.cancel()
            if self.service.state is not State.STARTING:
                await self.service.executor.close()
            self.app.close()
            if self._log is not None:
                self._log.close()
            self._loader.close()

    # Loading.

    def _use(self, loaded: Loaded) -> Executor | None:
        self._code = loaded.code
        return self.service.use(executor_of(loaded, self._options, self.metrics))

    async def _reload(self) -> None:
        """Load the package again and send all further requests to it. What is admitted finishes on the old one."""
        self._generation += 1
        code = self._code
        try:
            loaded = await self._loader.run(load, self._dir, self._options, code, f"_cpupack_reload_{self._generation}")
        except Exception as error:
            self.metrics.reloads.add("failed")
            text = "the reload failed, and the model before is served on: %s"
            LOGGER.error(text, error, exc_info=not _known(error))  # noqa: TRY400 - a known error needs no traceback
            return
        before = self._use(loaded)
        self.metrics.reloads.add("done")
        self._say(f"reloaded: {loaded.model.name} {loaded.model.version}")
        if before is not None:
            await before.drain()
            await before.close()
            del before
        if code is not None and code is not loaded.code:
            code.forget()
        collect_less()

    # Signals and the clock.

    def _ask_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _ask_to_reload(self) -> None:
        """Open the log again, read the token and the certificate again, and load the model, now or soon."""
        if self._log is not None:
            self._log.reopen()
        taken, errors = self.keys.read_again()
        self.app.use_token(self.keys.token)
        for what in taken:
            self._say(f"read again: {what} is a new one")
        for error in errors:
            LOGGER.error("SIGHUP: %s", error)
        self._once_more = True
        if self.service.state is State.STARTING:
            self._say("the model will be loaded again as soon as the server is ready")
        elif self.service.state is not State.READY:
            self._say("the server stops; the model is not loaded again")
        elif self._reloading is not None and not self._reloading.done():
            self._say("a reload is under way already; another one follows")
        self._reload_if_asked()

    def _reload_if_asked(self) -> None:
        if self._once_more and self.service.state is State.READY and self._reloading is None:
            self._once_more = False
            self._reloading = asyncio.create_task(self._reload())
            self._reloading.add_done_callback(self._reloaded)

    def _reloaded(self, task: asyncio.Task[None]) -> None:
        self._reloading = None
        if not task.cancelled():
            if (error := task.exception()) is not None:
                LOGGER.error("the model before could not be closed: %s", error, exc_info=error)
            self._reload_if_asked()

    async def _sweep(self, grpc_door: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.connections.sweep()
            if (door := grpc_door()) is not None:
                door.sweep()
            if self.service.state is not State.STARTING and (revived := self.service.executor.revive()):
                self.metrics.revived.add(amount=revived)

    async def _unless_stopped(self, waited: asyncio.Future[Loaded]) -> Loaded | None:
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait((waited, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        return waited.result() if waited.done() else None

    async def _leave(self, doors: asyncio.Server, grpc_door: Any) -> None:
        """Say that the server is not ready, serve on for the grace period, then finish what is admitted."""
        options = self._options
        self.service.state = State.LEAVING
        self._say(f"stopping: not ready; requests are taken for another {options.grace_s:g} s")
        await _first(self._hurry.wait(), asyncio.sleep(options.grace_s))
        self.service.state = State.DRAINING
        doors.close()
        self.connections.begin_drain()
        end_s = time.monotonic() + options.drain_s
        if grpc_door is not None:
            await grpc_door.stop(options.drain_s)
        await _first(self.service.executor.drain(), asyncio.sleep(max(0.0, end_s - time.monotonic())))
        while self.connections.at_work and time.monotonic() < end_s:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)
        left = self.service.executor.unanswered
        self._say(f"stopped: {left} requests were cut off" if left else "stopped: every admitted request was answered")

    def _announce(self, listening: socket.socket, loaded: Loaded, grpc_port: int | None) -> None:
        options, model = self._options, loaded.model
        scheme = "http" if options.tls_cert is None else "https"
        host, port = listening.getsockname()[:2]
        plan = model.runner.plan
        promise = (
            "no promise of latency" if options.max_latency_ms is None else f"p99 at most {options.max_latency_ms:g} ms"
        )
        self._say(
            f"{model.name} {model.version}: {plan.instances} x {plan.threads} threads, batch up to {model.batch_size}; "
            f"{promise}; call times {loaded.source}"
        )
        if grpc_port is not None:
            self._say(f"gRPC on {address_text(host, grpc_port)}")
        self._say(f"ready on {scheme}://{address_text(host, port)}")

    def _gauges(self) -> None:
        gauge = self.metrics.gauge
        add_gauges(self.metrics, self.service)
        gauge("body_bytes", "Bodies that arrive or are not answered yet.", lambda: float(self.held.used))
        gauge("connections", "Open connections of HTTP.", lambda: float(len(self.connections.open)))


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: {error}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        other = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        why = os.strerror(error.errno or 0)
        raise InputError(f"cannot listen on {address_text(host, port)}: {why}; choose another {other}") from error
    found.setblocking(False)
    return found


def allow_connections(wanted: int) -> None:
    """Raise the limit of open files to what ``wanted`` connections need. Raises HostError where the host forbids it.

    To be called before there is an event loop: it ends the process where it finds no room for files of its own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            lower = f"lower it to {hard - _OTHER_FILES}, or " if hard > _OTHER_FILES else ""
            raise HostError(
                f"--max-connections {wanted} needs {needed} open files, and this host allows {hard} (ulimit -Hn); "
                f"{lower}raise the limit"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _known(error: Exception) -> bool:
    return isinstance(error, RunnerError)


async def _first(*waited: Any) -> None:
    """Wait until one is done, and cancel the others."""
    tasks = [asyncio.ensure_future(one) for one in waited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
