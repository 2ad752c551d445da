"""Runs programs of the native kernels, one call at a time, with memory and a team of threads of its own."""

from __future__ import annotations

import ctypes
import dataclasses
import weakref
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import HostError, IntegrityError, RunnerError
from ..host.limits import why_no_thread
from ..open_sizes import Size
from . import library as native_library
from .program import Program
from .prototypes import Piece

Floats = npt.NDArray[np.float32]
_ERROR_PROGRAM, _NO_THREADS, _BUSY, _CLOSED = 1, 5, 6, 7
"""Codes of kernels/engine/engine.h."""
_FLOAT32, _UINT8 = np.dtype(np.float32), np.dtype(np.uint8)
"""numpy takes longer to compare a dtype with a type, and a call of a small layer would notice."""
_Byte = ctypes.c_char * 1


class Call(NamedTuple):
    """A batch as the kernels read it, and the memory for its result.

    ``shape`` is the batch's as it was given. ``size`` is that of its samples, None for a program of one size.
    """

    batch: npt.NDArray[Any]
    mask: int
    result: npt.NDArray[np.float32]
    shape: tuple[int, ...]
    size: Size | None = None


def prepare_call(program: Program, batch: npt.NDArray[Any], mask: int | None = None) -> Call:
    """Check uint8 or float32 ``(n, channels, height, width)`` or ``(n, channels)``, and make it dense.

    A batch of other dimensions is read as the values of each sample in a row: sequences, videos.
    With a ``mask`` (0..255) the batch is RGB, and the kernels add the mask as the fourth channel. A batch in
    channels_last order is read without a copy, any other is copied. Raises RunnerError for a batch that the program
    does not take.
    """
    shape = program.float_shape if batch.dtype == _FLOAT32 else program.pixel_shape
    if shape is None or batch.dtype not in (_FLOAT32, _UINT8):
        raise RunnerError(f"the model does not take {batch.dtype}")
    if mask is not None:
        if not program.takes_rgb:
            raise RunnerError("the model does not take pixels of three channels")
        shape = (3, *shape[1:])
    given, size, outputs = batch.shape, None, program.outputs
    if program.sized is not None and (batch.ndim == 4 or not program.sized.sizes.range.is_image):
        sizes = program.sized.sizes
        taken = sizes.range
        size = taken.size_in(batch) if len(batch) or not taken.inputs else taken.typical(())
        if not (taken.takes(*size) if taken.is_image or taken.inputs else taken.fits(given[1:])):
            raise RunnerError(f"the model failed on a batch of shape {given}: it takes {taken.text()}")
        if taken.inputs and not (batch[:, -len(taken.names) :] == batch[:1, -len(taken.names) :]).all():
            raise RunnerError("the model failed on a batch whose rows have different sizes")
        shape, outputs = taken.engine_shape(shape[0], size), sizes.outputs(*size)
    if mask is None and batch.ndim not in (1, 2, 4):
        batch = batch.reshape(len(batch), -1)
    if batch.shape[1:] != shape and (batch.ndim != 2 or (*batch.shape[1:], 1, 1) != shape):
        raise RunnerError(f"the model failed on a batch of shape {given}: it takes (n, {', '.join(map(str, shape))})")
    dense = np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if batch.ndim == 4 else batch)
    result = program.results.take(len(batch), outputs)
    return Call(dense, -1 if mask is None else mask, result, given, size)


class Session:
    """A program with memory for its activations and a team of ``threads``. Any thread may call it.

    It runs one call at a time. The kernels take the turn and give it back inside one C call, so an exception that a
    signal handler raises cannot keep it. Raises HostError when this CPU or system cannot run the kernels.
    """

    def __init__(self, program: Program, threads: int) -> None:
        self._program, self._library = program, native_library.open_library()
        self._run, self._try_run = self._library.cpupack_run, self._library.cpupack_try_run
        self._session = self._library.cpupack_new_session(threads)
        if not self._session:
            raise HostError("no memory for another instance of the native kernels")
        # ``close`` may come while another thread calls, so the session itself lives as long as this object.
        self._end = weakref.finalize(self, self._library.cpupack_end_session, self._session)
        self._end.atexit = False

    def __call__(self, batch: npt.NDArray[Any], mask: int | None = None) -> npt.NDArray[np.float32]:
        """Run a batch (see ``prepare_call``) when it is its turn; returns what ``run`` does."""
        result = self.run(prepare_call(self._program, batch, mask))
        assert result is not None
        return result

    def make_ready(self, batch_size: int = 1, *, all_lengths: bool = False, size: Size | None = None) -> None:
        """Do what would else be part of the first call of that size: check the program, prepare weights, start a team.

        Of programs that follow from a form, the first and the last are checked here, the others when they first run;
        with ``all_lengths`` all are. ``size`` is that of the samples, where the program takes several; None for the
        typical one. Raises IntegrityError for a program that the kernels do not take, and HostError where
        something is missing.
        """
        if self._program.sized is not None:
            with self._program.sized.at(*(size or self._program.typical_size)) as found:
                self._make_ready(found.memory, batch_size)
            return
        parts = self._program.parts or (self._program,)
        if self._program.lengths is not None and self._program.lengths.form is not None:
            parts = parts if all_lengths else (parts[0], parts[-1])
        for part in parts:
            self._make_ready(part.memory, batch_size)

    def _make_ready(self, memory: npt.NDArray[np.uint8], batch_size: int) -> None:
        failed = self._library.cpupack_make_ready(self._session, memory.ctypes.data, memory.size, batch_size)
        if failed == _NO_THREADS:
            raise HostError(why_no_thread())
        if failed:
            kind = IntegrityError if failed == _ERROR_PROGRAM else HostError
            raise kind(f"the model cannot run: {self._library.cpupack_error(failed).decode()}")

    def run(self, call: Call, *, wait: bool = True) -> npt.NDArray[np.float32] | None:
        """Run a call; returns float32 ``(n, outputs)``, or ``(n, *shape)`` where the program has a layout.

        Returns None where another call runs and ``wait`` is false. Raises RunnerError after ``close``, or when the
        kernels refuse; HostError when the system refuses a thread.
        """
        result, lengths, layout = call.result, self._program.lengths, self._program.layout
        run = self._run_lengths if lengths is not None else self._run_sized if call.size is not None else self._run_one
        if len(result) and not run(self._program, call, wait=wait):
            return None
        if layout is not None and call.size is not None:
            assert self._program.sized is not None
            layout = dataclasses.replace(layout, shape=self._program.sized.sizes.result_shape(*call.size))
        return result if layout is None else layout.of(result)

    def _run_sized(self, program: Program, call: Call, *, wait: bool) -> bool:
        """Run a batch in the program of its size."""
        assert program.sized is not None
        assert call.size is not None
        with program.sized.at(*call.size) as found:
            return self._run_one(dataclasses.replace(program, memory=found.memory), call, wait=wait)

    def _run_lengths(self, program: Program, call: Call, *, wait: bool) -> bool:
        """Run the rows of a call in the programs of their lengths. Where it has begun, it waits for its turn."""
        lengths = program.lengths
        assert lengths is not None
        ends = lengths.ends(call.batch)
        for pack in lengths.packs(ends):
            parts = [program.parts[place] for place, _ in pack]
            given = [lengths.cut(call.batch[numbers], place) for place, numbers in pack]
            found = [np.empty((len(each), part.outputs), np.float32) for each, part in zip(given, parts, strict=True)]
            if len(pack) == 1:
                done = self._run_one(parts[0], Call(given[0], call.mask, found[0], call.shape), wait=wait)
            else:
                done = self._run_pieces(parts, given, found, call, wait=wait)
            if not done:
                return False
            for (place, numbers), results in zip(pack, found, strict=True):
                lengths.put(results, place, call.result, numbers, ends[numbers])
            wait = True
        return True

    def _run_pieces(
        self, parts: list[Program], given: list[Floats], found: list[Floats], call: Call, *, wait: bool
    ) -> bool:
        """Run samples of several lengths together, those of each in its program, and write to ``found``."""
        each_piece = [
            Piece(part.memory.ctypes.data, part.memory.size, len(rows)) for part, rows in zip(parts, given, strict=True)
        ]
        pieces = (Piece * len(parts))(*each_piece)
        batch = np.concatenate([each.reshape(-1) for each in given])
        result = np.empty(sum(each.size for each in found), np.float32)
        code = self._library.cpupack_run_pieces(
            self._session, pieces, len(parts), batch.ctypes.data, result.ctypes.data, wait
        )
        first = 0
        for each in found:
            each.reshape(-1)[:] = result[first : first + each.size]
            first += each.size
        return self._has_run(code, call.shape)

    def _run_one(self, program: Program, call: Call, *, wait: bool) -> bool:
        batch, result = call.batch, call.result
        code = (self._run if wait else self._try_run)(
            self._session, program.address, program.memory.size, _pointer(batch),
            batch.dtype == _FLOAT32, call.mask, len(result), _pointer(result),
        )  # fmt: skip
        return self._has_run(code, call.shape)

    def _has_run(self, code: int, shape: tuple[int, ...]) -> bool:
        """Return whether a call has run; false where another one runs. Raises RunnerError or HostError."""
        if not code:
            return True
        if code == _BUSY:
            return False
        if code == _CLOSED:
            raise RunnerError("the runner is closed")
        if code == _NO_THREADS:
            raise HostError(why_no_thread())
        reason = self._library.cpupack_error(code).decode()
        raise RunnerError(f"the model failed on a batch of shape {shape}: {reason}")

    @property
    def memory_bytes(self) -> int:
        """Memory of the activations, for the batch sizes used so far."""
        return int(self._library.cpupack_session_bytes(self._session))

    @property
    def prepared_bytes(self) -> int:
        """Memory of the weights that the kernels have prepared from the program, once for all sessions."""
        return int(self._library.cpupack_prepared_bytes(self._session))

    def close(self) -> None:
        """Wait for the call that runs, end the team and free the memory. Closing twice is fine."""
        self._library.cpupack_close_session(self._session)


def _pointer(array: npt.NDArray[Any]) -> Any:
    """Return a dense array that is not empty as C functions take it. ``array.ctypes`` takes three times as long."""
    memory: Any = array
    return _Byte.from_buffer(memory) if array.flags.writeable else array.ctypes.data
