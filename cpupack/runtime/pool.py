"""Instances of the model, one thread each: the only place that loads the TorchScript and calls it."""

from __future__ import annotations

import os
import queue
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import native
from .errors import HostError, RunnerError


class InstancePool:
    """``instances`` copies of one model, each served by its own thread with ``threads`` OpenMP threads.

    An instance is loaded, warmed and run by one thread only: with libgomp a second master makes a second set
    of workers, and more threads than CPUs stop spinning (25 % slower at batch 1). The JIT call releases the
    GIL, so instances run in parallel. Raises HostError when ``engine`` is not to be had here or torch cannot
    load the file.
    """

    def __init__(self, model_path: Path, engine: str, threads: int, instances: int) -> None:
        if threads < 1 or instances < 1:
            raise ValueError(f"threads is {threads} and instances is {instances}; both start at 1")
        self.engine, self.threads, self.instances = engine, threads, instances
        check_engine(engine)
        self._workers = [_Worker() for _ in range(instances)]
        self._lock = threading.Lock()
        self._pid = os.getpid()  # threads do not survive a fork: work queued in the child would wait for ever
        # Daemon threads never keep the interpreter alive; the finalizer ends them in order before it goes.
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        for number, worker in enumerate(self._workers):
            worker.start(_Load(model_path, engine, threads), f"instance-{number}")
        try:
            for worker in self._workers:
                worker.ready.result()
        except BaseException:
            self.close()
            raise

    def run(self, batch: torch.Tensor, instance: int = 0) -> torch.Tensor:
        """Run one batch ``(n, *input_shape)`` on one instance and wait. Returns float32 logits."""
        return self.submit(batch, instance).result()

    def submit(self, batch: torch.Tensor, instance: int | None = None) -> Future[torch.Tensor]:
        """Queue one batch on ``instance``, or on the least loaded one. The future raises RunnerError."""
        future: Future[torch.Tensor] = Future()
        if os.getpid() != self._pid:
            raise RunnerError("this runner was made before the process forked; make one in each worker process")
        with self._lock:
            if not self._finalizer.alive:
                raise RunnerError("the runner is closed")
            chosen = self._workers[instance] if instance is not None else min(self._workers, key=_pending)
            chosen.pending += 1
            chosen.tasks.put((future, batch))
        future.add_done_callback(lambda _: self._finished(chosen))
        return future

    def warm(self, batch: torch.Tensor, calls: int = 3) -> None:
        """Run ``batch`` ``calls`` times on every instance.

        The JIT profiles the first call and compiles at the second; oneDNN makes a primitive per input shape.
        """
        waiting = [self.submit(batch, number) for number in range(self.instances) for _ in range(calls)]
        for future in waiting:
            future.result()

    def close(self) -> None:
        """End the threads after the work already queued. Closing twice is fine."""
        self._finalizer()

    def __enter__(self) -> InstancePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finished(self, worker: _Worker) -> None:
        with self._lock:
            worker.pending -= 1


def check_engine(engine: str) -> None:
    """Raise HostError unless this torch build has ``engine``, or this host can run the native kernels."""
    if engine == native.ENGINE:
        native.load()
        return
    supported = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in supported:
        raise HostError(
            f"the model needs torch's quantized engine {engine!r}, and torch {torch.__version__} here has "
            f"{', '.join(supported) or 'none'}; install an official CPU build of torch"
        )


def first_cause(error: BaseException) -> str:
    """Return the line of a torch error that says what happened (the TorchScript interpreter puts it last)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        kind, colon, text = line.partition(": ")
        if colon and kind.endswith("Error") and " " not in kind:
            return text
    return lines[0] if lines else type(error).__name__


class _EngineGate:
    """Lets calls of one engine through together and keeps those of another out meanwhile.

    ``torch.backends.quantized.engine`` is one setting for the process, read when weights are packed and again
    by ``quantized::conv2d_add``. Two wheels built for different engines can so serve from one process.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active = 0
        self._engine: str | None = None
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def hold(self, engine: str) -> Iterator[None]:
        with self._changed:
            if not self._may_enter(engine):
                self._waiting[engine] += 1
                self._changed.wait_for(lambda: self._may_enter(engine))
                self._waiting[engine] -= 1
            _set_engine(engine)
            self._engine = engine
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                if not self._active:
                    self._changed.notify_all()

    def _may_enter(self, engine: str) -> bool:
        # One that could join lets the others go first when they queue, else a busy engine would starve them.
        others = any(count for name, count in self._waiting.items() if name != engine)
        return not self._active or (self._engine == engine and not others)


def _set_engine(engine: str) -> None:
    if torch.backends.quantized.engine == engine:
        return
    torch.backends.quantized.engine = engine
    if torch.backends.quantized.engine != engine:
        raise HostError(f"torch did not take engine {engine!r}; it is {torch.backends.quantized.engine!r}")


_gate = _EngineGate()


def _engine_set(engine: str) -> AbstractContextManager[None]:
    """Return the block in which a model of ``engine`` may load and run. The native kernels do not read the setting."""
    return nullcontext() if engine == native.ENGINE else _gate.hold(engine)


@dataclass(frozen=True)
class _Load:
    """Loads the model on the thread that will serve it."""

    path: Path
    engine: str
    threads: int

    def __call__(self) -> Callable[[torch.Tensor], torch.Tensor]:
        torch.set_num_threads(self.threads)
        if self.engine == native.ENGINE:
            native.load()
            native.set_threads(self.threads)
        try:
            with _engine_set(self.engine), _deprecations_silenced:
                module = torch.jit.load(str(self.path), map_location="cpu")
                module.eval()
        except (RuntimeError, ValueError) as error:
            raise HostError(f"torch {torch.__version__} cannot load {self.path}: {first_cause(error)}") from error

        def call(batch: torch.Tensor) -> torch.Tensor:
            if batch.dim() == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
            with _engine_set(self.engine), torch.inference_mode():
                output = module(batch)
            if not isinstance(output, torch.Tensor):
                raise RunnerError(f"the model returned {type(output).__name__}; expected one tensor")
            return output

        return call


@dataclass
class _Worker:
    """One thread and its queue. It has no reference to the pool, so a forgotten pool can be collected."""

    tasks: queue.SimpleQueue[tuple[Future[torch.Tensor], torch.Tensor] | None] = field(
        default_factory=queue.SimpleQueue
    )
    ready: Future[None] = field(default_factory=Future)
    pending: int = 0
    thread: threading.Thread | None = None

    def start(self, load: _Load, name: str) -> None:
        self.thread = threading.Thread(target=_serve, args=(load, self.tasks, self.ready), name=name, daemon=True)
        self.thread.start()


def _pending(worker: _Worker) -> int:
    return worker.pending


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.tasks.put(None)
    for worker in workers:
        if worker.thread is not None and worker.thread is not threading.current_thread():
            worker.thread.join()


def _serve(load: _Load, tasks: queue.SimpleQueue[Any], ready: Future[None]) -> None:
    try:
        call = load()
    except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
        ready.set_exception(error)
        return
    ready.set_result(None)
    while (task := tasks.get()) is not None:
        future, batch = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(batch))
            except RuntimeError as error:
                message = f"the model failed on a batch of shape {tuple(batch.shape)}: {first_cause(error)}"
                future.set_exception(_caused(RunnerError(message), error))
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
                future.set_exception(error)
        del task, future, batch  # else the last batch would live until the next one comes


def _caused(error: RunnerError, cause: BaseException) -> RunnerError:
    error.__cause__ = cause
    return error


class _DeprecationsSilenced:
    """Silences two warnings of loading that ask the wheel's author, not its user, to change something.

    ``torch.jit.load`` warns in Python. The first quantized tensor warns once in C++, and from the model that
    would go straight to stderr; made here, from Python, it passes through Python's filters. Filters belong to
    the process, so loading threads take turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._saved = warnings.catch_warnings()
        self._saved.__enter__()
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.*is deprecated")
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor.*are deprecated")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)

    def __exit__(self, *_: object) -> None:
        self._saved.__exit__(None, None, None)
        self._lock.release()


_deprecations_silenced = _DeprecationsSilenced()
