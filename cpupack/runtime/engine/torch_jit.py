"""Loads and calls a saved TorchScript model. This is the only place in a wheel that uses ``torch.jit``."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import HostError, RunnerError
from . import library


def load(path: Path, engine: str, threads: int) -> Callable[[Any], Any]:
    """Load the model on the thread that will serve it, with ``threads`` OpenMP threads. Returns a function to call it.

    The function takes a batch ``(n, *input_shape)``, a tensor or an array, and returns one of that kind. Raises
    HostError when torch cannot load the file.
    """
    torch.set_num_threads(threads)
    if engine == library.ENGINE:
        library.load()
        library.set_threads(threads)
    try:
        with _engine_set(engine), _deprecations_silenced():
            module = torch.jit.load(str(path), map_location="cpu")
            module.eval()
    except (RuntimeError, ValueError) as error:
        raise HostError(f"torch {torch.__version__} cannot load {path}: {first_cause(error)}") from error

    def call(batch: Any) -> Any:
        tensor = batch if isinstance(batch, torch.Tensor) else torch.from_numpy(_shareable(batch))
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        try:
            with _engine_set(engine), torch.inference_mode():
                output = module(tensor)
        except RuntimeError as error:
            message = f"the model failed on a batch of shape {tuple(batch.shape)}: {first_cause(error)}"
            raise RunnerError(message) from error
        if not isinstance(output, torch.Tensor):
            raise RunnerError(f"the model returned {type(output).__name__}; expected one tensor")
        return output if isinstance(batch, torch.Tensor) else output.numpy()

    return call


def check_engine(engine: str) -> None:
    """Raise HostError unless this torch build has ``engine``, or this host can run the native kernels."""
    if engine == library.ENGINE:
        library.load()
        return
    supported = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in supported:
        raise HostError(
            f"the model needs torch's quantized engine {engine!r}, and torch {torch.__version__} here has "
            f"{', '.join(supported) or 'none'}; install an official CPU build of torch"
        )


def first_cause(error: BaseException) -> str:
    """Return the line of a torch error that says what happened; the TorchScript interpreter puts it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        kind, colon, text = line.partition(": ")
        if colon and kind.endswith("Error") and " " not in kind:
            return text
    return lines[0] if lines else type(error).__name__


def _shareable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array, copied if torch cannot share its memory (read-only, or negative strides)."""
    return array if array.flags.writeable and min(array.strides, default=0) >= 0 else array.copy()


class _EngineGate:
    """Lets calls of one engine run at the same time, and makes calls of another engine wait.

    ``torch.backends.quantized.engine`` is one setting for the process. torch reads it when it packs weights, and again
    in ``quantized::conv2d_add``. With this gate, two wheels built for different engines can serve from one process.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active = 0
        self._engine: str | None = None
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def hold(self, engine: str) -> Iterator[None]:
        entered = False
        try:  # from the start: a signal handler may raise while this call waits or enters
            with self._changed:
                self._wait(engine)
                _set_engine(engine)
                self._engine = engine
                self._active += 1
                entered = True
            yield
        finally:
            if entered:
                with self._changed:
                    self._active -= 1
                    if not self._active:
                        self._changed.notify_all()

    def _wait(self, engine: str) -> None:
        """Wait until a call of ``engine`` may enter. The lock is held."""
        self._waiting[engine] += 1
        try:
            self._changed.wait_for(lambda: self._may_enter(engine))
        except BaseException:
            self._changed.notify_all()  # calls of another engine may have waited for this one to have its turn
            raise
        finally:
            self._waiting[engine] -= 1

    def _may_enter(self, engine: str) -> bool:
        # A call that could join waits when calls of another engine wait, or a busy engine would starve them.
        others = any(count for name, count in self._waiting.items() if name != engine)
        return not self._active or (self._engine == engine and not others)


def _set_engine(engine: str) -> None:
    if torch.backends.quantized.engine == engine:
        return
    torch.backends.quantized.engine = engine
    if torch.backends.quantized.engine != engine:
        raise HostError(f"torch did not accept engine {engine!r}; it still uses {torch.backends.quantized.engine!r}")


_gate = _EngineGate()


def _engine_set(engine: str) -> AbstractContextManager[None]:
    """Return the context in which a model of ``engine`` may load and run. The native kernels need none."""
    return nullcontext() if engine == library.ENGINE else _gate.hold(engine)


_loading = threading.Lock()


@contextmanager
def _deprecations_silenced() -> Iterator[None]:
    """Silence two deprecation warnings of loading, which concern the wheel's author and not its user.

    ``torch.jit.load`` warns in Python. The first quantized tensor of a process warns once in C++. If the model made
    that tensor, the warning would go straight to stderr. Made here, from Python, it passes through Python's filters.
    Filters belong to the process, so threads that load take turns.
    """
    with _loading, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.load.*is deprecated")
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor.*are deprecated")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
        yield
