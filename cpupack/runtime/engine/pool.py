"""Runs instances of the model, one thread each, and decides which instance runs which batch."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import HostError, RunnerError
from ..threads import Answer
from . import program as native_program
from .crew import Crew
from .session import Session, prepare_call

if TYPE_CHECKING:
    import torch

Batch = TypeVar("Batch", "torch.Tensor", npt.NDArray[Any])

_TORCH_WARM_CALLS = 3
"""The JIT profiles the first call and compiles at the second; oneDNN makes a primitive for each input shape."""
_ALONE = (0,)


class InstancePool:
    """``instances`` of one model with ``threads`` each. Each has a thread of its own; they run in parallel.

    Only its own thread loads, warms and runs a model of torch. With libgomp, calls from a second thread would start a
    second set of workers, and workers stop spinning when there are more threads than CPUs (25 % slower at batch 1). A
    native program is in memory once, and a caller that waits for its result runs an idle instance itself (``run``).

    ``cpus`` are the CPUs that each instance keeps to. Where ``takes_rgb`` is true, uint8 batches may have three
    channels, and the kernels add ``mask`` as the fourth (``inputs.mask_value``); that needs a ``mask``. ``meanwhile``
    is called while the instances load; what it raises ends the pool. Raises HostError when ``engine`` does not exist
    here or the file cannot be loaded, and IntegrityError when the native program in the file is damaged.
    """

    def __init__(
        self,
        model_path: Path,
        engine: str,
        threads: int,
        instances: int,
        cpus: tuple[tuple[int, ...], ...] | None = None,
        mask: int | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        if threads < 1 or instances < 1:
            raise ValueError(f"threads is {threads} and instances is {instances}; both start at 1")
        if cpus is not None and len(cpus) != instances:
            raise ValueError(f"CPUs are given for {len(cpus)} instances, and there are {instances}")
        self.engine, self.threads, self.instances = engine, threads, instances
        self._program: native_program.Program | None = None
        self._mask: int | None = None
        self._resident_before = 0
        load: _Loader
        if native_program.is_program(model_path, engine):
            program = self._program = native_program.read_program(model_path)
            self._mask = mask if program.takes_rgb else None
            load = _NativeLoad(program, threads, self._mask)
        else:
            from . import torch_jit  # noqa: F401 - its memory is not that of an instance

            self._resident_before = _resident_bytes()
            load = _TorchLoad(model_path, engine, threads)
        self.is_program = self._program is not None
        self.takes_rgb = self._mask is not None
        # An instance is bound to CPUs through its own thread, so no other thread may run it then.
        self._inline = self.is_program and cpus is None
        self._pid = os.getpid()  # a forked child has no threads, so work queued there would wait for ever
        self._turn = itertools.count()
        self._crews: list[Crew] = []
        self._loaded: list[_Instance] = []
        # The finalizer ends threads and kernels in order before the interpreter exits.
        self._finalizer = weakref.finalize(self, _close, self._crews, self._loaded)
        try:
            self._crews += [Crew() for _ in range(instances)]
            loading = [
                crew.submit(_load, load, cpus[number] if cpus is not None else None)
                for number, crew in enumerate(self._crews)
            ]
            if meanwhile is not None:
                meanwhile()
            self._loaded += [each.result() for each in loading]
        except BaseException:
            self.close()
            raise

    @property
    def runs_in_caller(self) -> bool:
        """Whether ``run`` uses the thread of its caller while the instance is idle."""
        return self._inline

    @property
    def shared_bytes(self) -> int:
        """Memory that all instances share: a native program and its prepared weights. 0 for a model of torch."""
        programs = [] if self._program is None else [self._program, *self._program.parts]
        own = max((each.nbytes for each in programs), default=0)  # each reaches to the end of all
        return own + max(each.prepared_bytes() for each in self._loaded)

    @property
    def memory_per_instance_bytes(self) -> int:
        """Memory of one instance without ``shared_bytes``, for the batch sizes used so far.

        For a native program the number is exact. torch does not report its memory, so for a model of torch it is the
        growth of the process since loading began, divided by the instances. That includes the weights, because each
        instance packs its own copy.
        """
        if self.is_program:
            return max(each.memory_bytes() for each in self._loaded)
        return max(0, _resident_bytes() - self._resident_before) // self.instances

    def run(self, batch: Batch, instance: int | None = None) -> Batch:
        """Run one batch ``(n, *input_shape)`` on ``instance``, or on the least loaded one, and wait.

        Returns float32 outputs, a tensor for a tensor, an array for an array. Raises RunnerError. An exception that a
        signal handler raises meanwhile leaves the pool usable.
        """
        self.check_usable()
        if self._inline:
            result = self._run_idle(batch, instance)
            if result is not None:
                return result
        return self.submit(batch, instance).result()

    def submit(self, batch: Batch, instance: int | None = None) -> Answer[Batch]:
        """Queue one batch on ``instance``, or on the least loaded one. The answer raises RunnerError."""
        self.check_usable()
        number = instance if instance is not None else min(self._in_turn(), key=lambda each: self._crews[each].load)
        return self._crews[number].submit(self._loaded[number].call, batch)

    def warm(self, batch: Any, calls: int | None = None) -> None:
        """Run ``batch`` on every instance ``calls`` times; None means as many times as calls are slow at first."""
        count = calls or (1 if self.is_program else _TORCH_WARM_CALLS)
        waiting = [self.submit(batch, number) for number in range(self.instances) for _ in range(count)]
        for future in waiting:
            future.result()

    def most_samples(self, *size: int) -> int:
        """Return how many samples of a size one call takes at most, for the sake of memory."""
        return 1 << 30 if self._program is None else self._program.most_samples(*size)

    def result_shape(self) -> tuple[int, ...] | None:
        """Return the shape of a sample's result, -1 where it changes with the size; None for a model of one size."""
        if self._program is None or self._program.sized is None:
            return None
        shape = self._program.sized.sizes.open_result_shape()
        image = self._program.layout is not None and self._program.layout.image
        return (shape[-1], *shape[:-1]) if image else shape

    def check_usable(self) -> None:
        """Raise RunnerError in a forked child, where a batch would wait for ever."""
        if os.getpid() != self._pid:
            raise RunnerError("this runner was made before the process forked; make one in each worker process")

    def close(self) -> None:
        """End the threads after the work already queued. Closing twice is fine, also after an interrupted close."""
        _close(self._crews, self._loaded)
        self._finalizer.detach()

    def __enter__(self) -> InstancePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_idle(self, batch: Batch, instance: int | None) -> Batch | None:
        """Run a batch on an idle instance in this thread, or return None when all are busy.

        Handing over to another thread and back takes 0.1 ms, a tenth of the time of a small model.
        """
        assert self._program is not None
        array = batch if isinstance(batch, np.ndarray) else batch.numpy()
        call = prepare_call(self._program, array, _mask_for(array, self._mask))
        for number in self._in_turn() if instance is None else (instance,):
            session = self._loaded[number].session
            if self._crews[number].waiting or session is None:
                continue  # those who wait come first
            result = session.run(call, wait=False)
            if result is not None:
                answer: Batch = _like(batch, result)
                return answer
        return None

    def _in_turn(self) -> Sequence[int]:
        """Return the instances, another one first each time: callers at the same moment then choose different ones."""
        if self.instances == 1:
            return _ALONE
        first = next(self._turn) % self.instances
        return [*range(first, self.instances), *range(first)]


@dataclass(frozen=True)
class _Instance:
    """A loaded model: how to call it, how much memory it has alone and shared with the others, how to close it.

    ``session`` is that of a native program.
    """

    call: Callable[[Any], Any]
    memory_bytes: Callable[[], int]
    prepared_bytes: Callable[[], int]
    close: Callable[[], None]
    session: Session | None = None


_Loader = Callable[[], _Instance]


@dataclass(frozen=True)
class _NativeLoad:
    program: native_program.Program
    threads: int
    mask: int | None

    def __call__(self) -> _Instance:
        session = Session(self.program, self.threads)
        try:
            session.make_ready()
        except BaseException:
            session.close()
            raise

        def call(batch: Any) -> Any:
            array = batch if isinstance(batch, np.ndarray) else batch.numpy()
            return _like(batch, session(array, _mask_for(array, self.mask)))

        return _Instance(call, lambda: session.memory_bytes, lambda: session.prepared_bytes, session.close, session)


@dataclass(frozen=True)
class _TorchLoad:
    """Loads the model on the thread that will serve it."""

    path: Path
    engine: str
    threads: int

    def __call__(self) -> _Instance:
        from . import torch_jit

        torch_jit.check_engine(self.engine)
        return _Instance(torch_jit.load(self.path, self.engine, self.threads), lambda: 0, lambda: 0, lambda: None)


def _load(load: _Loader, cpus: tuple[int, ...] | None) -> _Instance:
    if cpus is not None:
        _keep_to(cpus)  # before OpenMP or the kernels start threads, which inherit it
    return load()


def _close(crews: list[Crew], loaded: list[_Instance]) -> None:
    for crew in crews:
        crew.close()
    for instance in loaded:
        instance.close()  # waits for a caller that runs it


def _mask_for(batch: npt.NDArray[Any], mask: int | None) -> int | None:
    rgb = batch.ndim == 4 and batch.shape[1] == 3 and batch.dtype == np.uint8
    return mask if rgb else None


def _like(batch: Any, result: npt.NDArray[np.float32]) -> Any:
    """Return a tensor if the batch is one."""
    if isinstance(batch, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result)


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]  # proc(5): size, resident, ...
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _keep_to(cpus: tuple[int, ...]) -> None:
    try:
        os.sched_setaffinity(0, cpus)  # of the calling thread alone
    except OSError as error:
        raise HostError(f"the plan's CPUs {', '.join(map(str, cpus))} cannot be used here: {error}") from error
