"""Chunks for a stream: cut from raw values, sound or arrays, in a file or on stdin, one after the other."""

from __future__ import annotations

import math
import struct
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .arrays import load_npy
from .errors import InputError
from .items import ARCHIVE, read_archive
from .signature import Array
from .tensor_spec import TensorSpec

RAW = ("float32", "int16", "uint8", "int64")
"""What raw values may be, little-endian. int16 is sound: it becomes float32 from -1 to 1."""
STDIN = "-"
_LOUDEST = 32768.0
_INT16 = np.dtype("<i2")
Chunk = dict[str, Array]
"""A value ``(1, *shape)`` for each input that a chunk has."""


class Chunks:
    """Yields the chunks of a source. ``left_out`` is then how many values at the end filled no whole chunk."""

    def __init__(self, specs: Sequence[TensorSpec], name: str, raw: str | None, *, pad: bool) -> None:
        """``specs`` are the inputs of a chunk. Raises InputError for a source that cannot hold them."""
        self.left_out = 0
        self._specs, self._name, self._pad = specs, "stdin" if name == STDIN else name, pad
        needed = [each for each in specs if each.default is None]
        self._spec = (needed or list(specs))[0]
        ending = Path(name).suffix.lower()
        if raw is not None and ending in {".npy", ARCHIVE, ".wav"}:
            raise InputError(f"--raw {raw}: {name} says itself what its values are; leave --raw out")
        if ending != ARCHIVE and len(needed) > 1:
            names = ", ".join(each.name for each in needed)
            raise InputError(
                f"{self._name}: a chunk of this model has several inputs ({names}); give them in an .npz file"
            )
        self._raw = raw or ("float32" if self._spec.dtype == "float32" else self._spec.dtype)
        fits = ("float32", "int16") if self._spec.dtype == "float32" else (self._spec.dtype,)
        if ending not in {".npy", ARCHIVE} and (self._raw not in fits or self._raw not in RAW):
            raise InputError(
                f'--raw {self._raw}: the input "{self._spec.name}" is {self._spec.dtype}; '
                + (f"it takes {' or '.join(fits)}" if fits[0] in RAW else "give it in an .npy file")
            )
        read = {".npy": self._of_array, ARCHIVE: self._of_archive, ".wav": self._of_sound}.get(ending, self._of_bytes)
        self._read: Callable[[str], Iterator[Chunk]] = read
        self._source = name

    def __iter__(self) -> Iterator[Chunk]:
        try:
            yield from self._read(self._source)
        except OSError as error:
            raise InputError(f"cannot read {self._name}: {error.strerror or error}") from error

    def _of_bytes(self, name: str) -> Iterator[Chunk]:
        with ExitStack() as opened:
            if name == STDIN:
                if sys.stdin is None:
                    raise InputError("stdin is closed")
                file: BinaryIO = sys.stdin.buffer
            else:
                file = opened.enter_context(Path(name).open("rb"))
            dtype = np.dtype(self._raw).newbyteorder("<")
            # A buffered reader waits until all values of a chunk are there.
            yield from self._cut(lambda count: np.frombuffer(_whole(file.read(count * dtype.itemsize), dtype), dtype))

    def _of_sound(self, name: str) -> Iterator[Chunk]:
        try:
            with wave.open(name, "rb") as file:
                if file.getsampwidth() != _INT16.itemsize or file.getnchannels() != 1:
                    raise InputError(
                        f"{name} has {file.getnchannels()} channels of {8 * file.getsampwidth()} bits; "
                        "a .wav file must have one channel of 16 bits"
                    )
                yield from self._cut(lambda count: np.frombuffer(_whole(file.readframes(count), _INT16), _INT16))
        except (wave.Error, EOFError, RuntimeError, struct.error) as error:  # RuntimeError: of a size beyond the file
            raise InputError(
                f"{name} is no .wav file of whole numbers: {str(error) or 'it ends too early'}; "
                "give other sound as raw values (--raw float32)"
            ) from error

    def _cut(self, read: Callable[[int], Array]) -> Iterator[Chunk]:
        """Yield chunks of what ``read`` returns: up to so many values, fewer only at the end."""
        while len(values := read(self._spec.size)):
            missing = self._spec.size - len(values)
            if missing and not self._pad:
                self.left_out = len(values)
                return
            if values.dtype.kind == "i" and self._spec.dtype == "float32":
                values = values.astype(np.float32) / _LOUDEST
            values = np.pad(values, (0, missing)).astype(self._spec.dtype)
            yield {self._spec.name: values.reshape(1, *self._spec.shape)}

    def _of_array(self, name: str) -> Iterator[Chunk]:
        array = load_npy(Path(name))
        is_sound = math.prod(self._spec.shape) == max(self._spec.shape, default=1)  # one long dimension
        if array.ndim == 1 and is_sound and array.shape != self._spec.shape and self._spec.shape:
            parts = iter(np.split(array, range(self._spec.size, array.size, self._spec.size)))
            yield from self._cut(lambda _: next(parts, array[:0]))
            return
        self._check(self._spec, array)
        for number in range(len(array)):
            yield {self._spec.name: array[number : number + 1]}

    def _of_archive(self, name: str) -> Iterator[Chunk]:
        arrays, known = read_archive(Path(name)), {each.name: each for each in self._specs}
        if unknown := [each for each in arrays if each not in known]:
            raise InputError(f'{name}: a chunk of this model has no input "{unknown[0]}"; it has {", ".join(known)}')
        for each, array in arrays.items():
            self._check(known[each], array)
        counts = {each: len(array) for each, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise InputError(f"{name}: the inputs have different numbers of chunks: {counts}")
        for number in range(next(iter(counts.values()), 0)):
            yield {each: array[number : number + 1] for each, array in arrays.items()}

    def _check(self, spec: TensorSpec, array: Array) -> None:
        shapes = {spec.shape, spec.pixel_shape}
        if array.ndim and (array.shape[1:] in shapes or _fits(spec, array.shape[1:])):
            return
        hint = "; add a first dimension for its only chunk" if array.shape in shapes else ""
        expected = ", ".join(map(str, ("chunks", *spec.shape)))
        raise InputError(
            f'{self._name}: got {array.dtype} {array.shape} for "{spec.name}"; expected ({expected}){hint}'
        )


def _fits(spec: TensorSpec, shape: tuple[int, ...]) -> bool:
    """Return whether a sample differs from the typical one in named dimensions alone. The runner checks their sizes."""
    return len(spec.names) == len(shape) and all(
        name or size == given for name, size, given in zip(spec.names, spec.shape, shape, strict=True)
    )


def _whole(data: bytes, dtype: np.dtype[Any]) -> bytes:
    """Return what are whole values: the last one may be cut off."""
    return data[: len(data) // dtype.itemsize * dtype.itemsize]
