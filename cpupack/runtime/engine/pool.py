"""Runs instances of the model, one thread each, and decides which instance runs which batch."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import HostError, RunnerError
from . import program as native_program

if TYPE_CHECKING:
    import torch

Batch = TypeVar("Batch", "torch.Tensor", npt.NDArray[Any])

_TORCH_WARM_CALLS = 3
"""The JIT profiles the first call and compiles at the second; oneDNN makes a primitive for each input shape."""


class InstancePool:
    """``instances`` of one model with ``threads`` each. Each has a thread of its own; they run in parallel.

    Only its own thread loads, warms and runs a model of torch. With libgomp, calls from a second thread would start a
    second set of workers, and workers stop spinning when there are more threads than CPUs (25 % slower at batch 1). A
    native program is in memory once, and a caller that waits for its result runs an idle instance itself (``run``).

    ``cpus`` are the CPUs that each instance keeps to. Where ``takes_rgb`` is true, uint8 batches may have three
    channels, and the kernels add ``mask`` as the fourth (``inputs.mask_value``); that needs a ``mask``. Raises
    HostError when ``engine`` does not exist here or the file cannot be loaded, and IntegrityError when the native
    program in the file is damaged.
    """

    def __init__(
        self,
        model_path: Path,
        engine: str,
        threads: int,
        instances: int,
        cpus: tuple[tuple[int, ...], ...] | None = None,
        mask: int | None = None,
    ) -> None:
        if threads < 1 or instances < 1:
            raise ValueError(f"threads is {threads} and instances is {instances}; both start at 1")
        if cpus is not None and len(cpus) != instances:
            raise ValueError(f"CPUs are given for {len(cpus)} instances, and there are {instances}")
        self.engine, self.threads, self.instances = engine, threads, instances
        self._program_bytes = 0
        self._resident_before = 0
        load: _Loader
        if native_program.is_program(model_path, engine):
            program = native_program.read_program(model_path)
            self._program_bytes = program.memory.nbytes
            load = _NativeLoad(program, threads, mask if program.takes_rgb else None)
        else:
            from . import torch_jit

            torch_jit.check_engine(engine)
            load = _TorchLoad(model_path, engine, threads)
            self._resident_before = _resident_bytes()
        self.is_program = isinstance(load, _NativeLoad)
        self.takes_rgb = isinstance(load, _NativeLoad) and load.mask is not None
        # An instance is bound to CPUs through its own thread, so no other thread may run it then.
        self._inline = self.is_program and cpus is None
        self._workers = [_Worker() for _ in range(instances)]
        self._lock = threading.Lock()
        self._pid = os.getpid()  # a forked child has no threads, so work queued there would wait for ever
        # Daemon threads do not keep the interpreter alive. The finalizer ends them in order before it exits.
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        for number, worker in enumerate(self._workers):
            worker.start(load, cpus[number] if cpus is not None else None, f"instance-{number}")
        try:
            for worker in self._workers:
                worker.ready.result()
        except BaseException:
            self.close()
            raise

    @property
    def shared_bytes(self) -> int:
        """Memory that all instances share: a native program and its prepared weights. 0 for a model of torch."""
        return self._program_bytes + max(
            (worker.instance.prepared_bytes() for worker in self._workers if worker.instance is not None), default=0
        )

    @property
    def memory_per_instance_bytes(self) -> int:
        """Memory of one instance without ``shared_bytes``, for the batch sizes used so far.

        For a native program the number is exact. torch does not report its memory, so for a model of torch it is the
        growth of the process since loading began, divided by the instances. That includes the weights, because each
        instance packs its own copy.
        """
        if self.is_program:
            return max(worker.instance.memory_bytes() for worker in self._workers if worker.instance is not None)
        return max(0, _resident_bytes() - self._resident_before) // self.instances

    def run(self, batch: Batch, instance: int | None = None) -> Batch:
        """Run one batch ``(n, *input_shape)`` on ``instance``, or on the least loaded one, and wait.

        Returns float32 outputs, a tensor for a tensor, an array for an array. Raises RunnerError.
        """
        self.check_usable()
        worker = self._claim(instance) if self._inline else None
        if worker is None:
            return self.submit(batch, instance).result()
        # Handing over to another thread and back takes 0.1 ms, a tenth of the time of a small model.
        try:
            assert worker.instance is not None
            result: Batch = worker.instance.call(batch)
            return result
        finally:
            worker.turn.release()
            self._finished(worker)

    def submit(self, batch: Batch, instance: int | None = None) -> Future[Batch]:
        """Queue one batch on ``instance``, or on the least loaded one. The future raises RunnerError."""
        future: Future[Batch] = Future()
        self.check_usable()
        with self._lock:
            if not self._finalizer.alive:
                raise RunnerError("the runner is closed")
            chosen = self._workers[instance] if instance is not None else min(self._workers, key=_pending)
            chosen.pending += 1
            chosen.tasks.put((future, batch))
        future.add_done_callback(lambda _: self._finished(chosen))
        return future

    def warm(self, batch: Any, calls: int | None = None) -> None:
        """Run ``batch`` on every instance ``calls`` times; None means as many times as calls are slow at first."""
        count = calls or (1 if self.is_program else _TORCH_WARM_CALLS)
        waiting = [self.submit(batch, number) for number in range(self.instances) for _ in range(count)]
        for future in waiting:
            future.result()

    def check_usable(self) -> None:
        """Raise RunnerError in a forked child, where a batch would wait for ever."""
        if os.getpid() != self._pid:
            raise RunnerError("this runner was made before the process forked; make one in each worker process")

    def close(self) -> None:
        """End the threads after the work already queued. Closing twice is fine."""
        self._finalizer()

    def __enter__(self) -> InstancePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _claim(self, instance: int | None) -> _Worker | None:
        """Return an idle instance, which the caller runs and then gives back, or None when all are busy."""
        with self._lock:
            if not self._finalizer.alive:
                raise RunnerError("the runner is closed")
            for worker in self._workers if instance is None else [self._workers[instance]]:
                if not worker.pending and worker.turn.acquire(blocking=False):
                    worker.pending += 1
                    return worker
        return None

    def _finished(self, worker: _Worker) -> None:
        with self._lock:
            worker.pending -= 1


@dataclass(frozen=True)
class _Instance:
    """A loaded model: how to call it, how much memory it has alone and shared with the others, how to close it."""

    call: Callable[[Any], Any]
    memory_bytes: Callable[[], int]
    prepared_bytes: Callable[[], int]
    close: Callable[[], None]


_Loader = Callable[[], _Instance]


@dataclass(frozen=True)
class _NativeLoad:
    program: native_program.Program
    threads: int
    mask: int | None

    def __call__(self) -> _Instance:
        session = native_program.Session(self.program, self.threads)
        try:
            session.make_ready()
        except BaseException:
            session.close()
            raise

        def call(batch: Any) -> Any:
            if isinstance(batch, np.ndarray):
                rgb = batch.ndim == 4 and batch.shape[1] == 3 and batch.dtype == np.uint8
                return session(batch, self.mask if rgb else None)
            import torch

            return torch.from_numpy(call(batch.numpy()))

        return _Instance(call, lambda: session.memory_bytes, lambda: session.prepared_bytes, session.close)


@dataclass(frozen=True)
class _TorchLoad:
    """Loads the model on the thread that will serve it."""

    path: Path
    engine: str
    threads: int

    def __call__(self) -> _Instance:
        from . import torch_jit

        return _Instance(torch_jit.load(self.path, self.engine, self.threads), lambda: 0, lambda: 0, lambda: None)


@dataclass
class _Worker:
    """One thread and its queue. It has no reference to the pool, so that an unused pool can be collected.

    ``turn`` is held by the thread that runs the instance. ``pending`` counts its batches, queued and running.
    """

    tasks: queue.SimpleQueue[tuple[Future[Any], Any] | None] = field(default_factory=queue.SimpleQueue)
    ready: Future[None] = field(default_factory=Future)
    turn: threading.Lock = field(default_factory=threading.Lock)
    pending: int = 0
    thread: threading.Thread | None = None
    instance: _Instance | None = None

    def start(self, load: _Loader, cpus: tuple[int, ...] | None, name: str) -> None:
        self.thread = threading.Thread(target=_serve, args=(self, load, cpus), name=name, daemon=True)
        self.thread.start()


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # proc(5): size, resident, ...
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _pending(worker: _Worker) -> int:
    return worker.pending


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.tasks.put(None)
    for worker in workers:
        if worker.thread is not None and worker.thread is not threading.current_thread():
            worker.thread.join()


def _serve(worker: _Worker, load: _Loader, cpus: tuple[int, ...] | None) -> None:
    with ExitStack() as stack:
        try:
            if cpus is not None:
                _keep_to(cpus)  # before OpenMP or the kernels start threads, which inherit it
            worker.instance = instance = load()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
            worker.ready.set_exception(error)
            return
        stack.callback(_close, worker, instance)
        worker.ready.set_result(None)
        while (task := worker.tasks.get()) is not None:
            future, batch = task
            if future.set_running_or_notify_cancel():
                try:
                    with worker.turn:
                        result = instance.call(batch)
                    future.set_result(result)
                    del result
                except BaseException as error:  # noqa: BLE001 - handed to the thread that asked, which raises it
                    future.set_exception(error)
            del task, future, batch  # else the last batch would stay in memory until the next one comes


def _close(worker: _Worker, instance: _Instance) -> None:
    with worker.turn:  # a caller may be running it
        instance.close()


def _keep_to(cpus: tuple[int, ...]) -> None:
    try:
        os.sched_setaffinity(0, cpus)  # of the calling thread alone
    except OSError as error:
        raise HostError(f"the plan's CPUs {', '.join(map(str, cpus))} cannot be used here: {error}") from error
