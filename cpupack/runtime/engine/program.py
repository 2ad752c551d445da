"""A saved model that is one program of the native kernels, read without torch (``session.py`` runs it).

``model.pt`` is a TorchScript file, which is a zip archive. Where the model is a program and nothing else, the build
adds the small JSON record ``extra/cpupack-program.json``, which names the record that holds the program. The runner
reads that record and hands it to the kernels through ctypes. It never imports torch, which would take most of the
start. ``torch.jit.load`` opens the same file, and the program is stored once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
import struct
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import HostError, IntegrityError
from ..files import UNREADABLE
from ..host.limits import system_fault
from ..open_sizes import Size
from . import library as native_library
from .lengths import Lengths
from .program_format import HEADER, MAGIC, MASKED_WIDTH, VERSION
from .results import ResultMemory
from .sized import SizedPrograms
from .sizes import Sizes

PROGRAM_NOTE = "cpupack-program.json"
"""Name of the record below ``extra/`` that says where the program is."""
_NOTE_SCHEMA = 1


@dataclass(frozen=True)
class Layout:
    """How the results of a sample lie: an array of ``shape``, or with ``image`` one of height, width and channels.

    The model's output has the shape of the array, and of an image channels, height and width.
    """

    shape: tuple[int, ...]
    image: bool = False

    @classmethod
    def from_dict(cls, section: dict[str, Any]) -> Layout:
        """Read what ``dataclasses.asdict`` gave. Raises KeyError, TypeError or ValueError on damage."""
        found = cls(tuple(int(size) for size in section["shape"]), bool(section["image"]))
        if min(found.shape, default=0) < 1 or (found.image and len(found.shape) != 3):
            raise ValueError(f"no results have the shape {found.shape}")
        return found

    def of(self, results: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return results ``(n, values)`` in the shape of the model's output, as a view."""
        shaped = results.reshape(len(results), *self.shape)
        return shaped.transpose(0, 3, 1, 2) if self.image else shaped


@dataclass(frozen=True)
class Program:
    """A program in memory (uint8), its inputs and its outputs.

    ``pixel_shape`` and ``float_shape`` are the shapes of one input, channels first, None where the program does not
    take that kind. ``outputs`` is the number of float32 results for one input. ``bytes_each`` is the memory that one
    sample of a batch needs while it is computed. ``version`` is the number of its format. The results of a sample are
    in ``layout``, None for a row. With ``lengths`` this is the program of the greatest length, and ``parts`` has those
    of all lengths in turn, which share their constants. The arrays of its results come from ``results``. With
    ``sized`` this describes the size that was built, and ``sized`` has the programs.
    """

    memory: npt.NDArray[np.uint8]
    pixel_shape: tuple[int, int, int] | None
    float_shape: tuple[int, int, int] | None
    outputs: int
    bytes_each: int
    version: int = VERSION
    layout: Layout | None = None
    lengths: Lengths | None = None
    parts: tuple[Program, ...] = ()
    sized: SizedPrograms | None = None
    results: ResultMemory = field(default_factory=ResultMemory, compare=False, repr=False)

    @cached_property
    def address(self) -> int:
        """Where the program is in memory."""
        return self.memory.ctypes.data

    @property
    def nbytes(self) -> int:
        """Memory of the program, or of those of all sizes."""
        return self.memory.nbytes if self.sized is None else self.sized.nbytes

    def most_samples(self, *size: int) -> int:
        """Return how many samples of a size one call takes, so that it needs no more memory than one of the largest."""
        if self.sized is None:
            return 1 << 30
        largest, own = (self.sized.arena_bytes(*each) for each in (self.sized.sizes.range.most, size))
        return max(1, largest // own)

    def fixed(self, *size: int) -> Program:
        """Return the program of one size, in memory of its own. Only for a program of several sizes."""
        assert self.sized is not None
        memory, sizes = self.sized.alone(*size), self.sized.sizes
        pixels, floats = (
            None if each is None else sizes.range.engine_shape(each[0], size)
            for each in (self.pixel_shape, self.float_shape)
        )
        layout = self.layout and dataclasses.replace(self.layout, shape=sizes.result_shape(*size))
        return Program(
            memory, pixels, floats, sizes.outputs(*size), self.sized.arena_bytes(*size), self.version,
            layout,
        )  # fmt: skip

    @property
    def typical_size(self) -> Size:
        """The size that was built. Only for a program of several sizes."""
        assert self.sized is not None
        shape, taken = self.pixel_shape or self.float_shape, self.sized.sizes.range
        assert shape is not None
        return (shape[1], shape[2]) if taken.is_image else taken.typical(taken.shape)

    @property
    def takes_rgb(self) -> bool:
        """Whether it can be called with RGB pixels and the value of the fourth channel."""
        return self.pixel_shape is not None and self.pixel_shape[0] == 4 and self.pixel_shape[2] <= MASKED_WIDTH


def note_text(
    record: str, lengths: Lengths | None = None, layout: Layout | None = None, sizes: Sizes | None = None
) -> str:
    """Return the text of ``PROGRAM_NOTE`` for a program in ``record``, such as ``constants/0``, or for several."""
    note: dict[str, Any] = {"schema": _NOTE_SCHEMA, "record": record}
    if lengths is not None:
        note["lengths"] = lengths.to_dict()
    if layout is not None:
        note["layout"] = dataclasses.asdict(layout)
    if sizes is not None:
        note["sizes"] = sizes.to_dict()
    return json.dumps(note, sort_keys=True)


def is_program(path: Path, engine: str) -> bool:
    """Return whether the saved model is a program and nothing else, so that it runs without torch. Loads nothing.

    A file that is no archive gives False: torch then says what is wrong with it.
    """
    if engine != native_library.ENGINE:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return _note_name(archive) is not None
    except UNREADABLE as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        return False


def read_program(path: Path) -> Program:
    """Read the program of a saved model for which ``is_program`` is true.

    Raises IntegrityError when the archive, the record that names the program, or the program itself is missing or
    damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member, note = _member(archive)
        lengths, layout = note.lengths, note.layout
        form = None if lengths is None else lengths.form
        if form is not None and form.steps + form.size > member.file_size:
            raise ValueError("a form goes beyond its end")
        room = 0 if form is None or lengths is None else form.room(len(lengths.values))
        memory = _read_stored(path, member, room)
        program = _parse(memory) if lengths is None else _parse_lengths(memory, lengths)
        if layout is not None and math.prod(layout.shape) != program.outputs:
            raise ValueError(f"its {program.outputs} results are not of the shape {layout.shape}")
        program = dataclasses.replace(program, layout=layout)
        return program if note.sizes is None else _with_sizes(program, note.sizes)
    except UNREADABLE as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        raise IntegrityError(f"cannot load the native program in {path}: {error}; reinstall the package") from error


def stored_program(path: Path) -> npt.NDArray[np.uint8]:
    """Return the bytes of the program that a saved model has. Raises IntegrityError as ``read_program`` does."""
    try:
        with zipfile.ZipFile(path) as archive:
            member, _ = _member(archive)
        return _read_stored(path, member, 0)
    except UNREADABLE as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        raise IntegrityError(f"cannot load the native program in {path}: {error}; reinstall the package") from error


def _with_sizes(program: Program, sizes: Sizes) -> Program:
    """Return the program with those of other sizes. Raises ValueError where they are not of this program."""
    shape = program.pixel_shape or program.float_shape
    taken = sizes.range
    typical = None if shape is None else shape[1:] if taken.is_image else taken.typical(taken.shape)
    if shape is None or typical is None or not taken.takes(*typical) or taken.engine_shape(shape[0], typical) != shape:
        raise ValueError(f"its program is for {shape}, which is none of its sizes")
    if sizes.outputs(*typical) != program.outputs:
        raise ValueError(f"its {program.outputs} results are not those of its sizes")
    try:
        return dataclasses.replace(
            program, memory=program.memory[:0].copy(), sized=SizedPrograms(program.memory, sizes)
        )
    except (IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"its sizes are damaged: {error}") from error


def _note_name(archive: zipfile.ZipFile) -> str | None:
    """Return the full name of ``PROGRAM_NOTE`` in the archive, None without one. torch puts all below one folder."""
    ending = f"/extra/{PROGRAM_NOTE}"
    names = [name for name in archive.namelist() if name.endswith(ending)]
    return names[0] if len(names) == 1 and names[0].count("/") == 2 else None


@dataclass(frozen=True)
class _Note:
    """What is said about a program: its lengths or sizes if it has several, and the layout of its results."""

    lengths: Lengths | None = None
    layout: Layout | None = None
    sizes: Sizes | None = None


def _member(archive: zipfile.ZipFile) -> tuple[zipfile.ZipInfo, _Note]:
    """Return the record that holds the program, and what is said about it.

    Raises ValueError when the archive does not name one that it has.
    """
    note_name = _note_name(archive)
    if note_name is None:
        raise ValueError(f"it has no record extra/{PROGRAM_NOTE}, so the model needs torch")
    note = json.loads(archive.read(note_name))
    record = note.get("record") if isinstance(note, dict) else None
    if not isinstance(record, str) or note.get("schema") != _NOTE_SCHEMA:
        raise ValueError(f"extra/{PROGRAM_NOTE} does not name a record: {note!r}")
    try:
        member = archive.getinfo(f"{note_name.partition('/')[0]}/{record}")
    except KeyError:
        raise ValueError(f"its record {record}, which should hold the program, is missing") from None
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its record {record} is compressed")
    try:
        return member, _Note(
            Lengths.from_dict(note["lengths"]) if "lengths" in note else None,
            Layout.from_dict(note["layout"]) if "layout" in note else None,
            Sizes.from_dict(note["sizes"]) if "sizes" in note else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the lengths, sizes or layout in extra/{PROGRAM_NOTE} are damaged: {error}") from None


def _read_stored(path: Path, member: zipfile.ZipInfo, room: int) -> npt.NDArray[np.uint8]:
    """Read a record that is stored uncompressed, into large pages, because every call walks through all weights.

    ``room`` bytes are before it.

    Does not use ``zipfile``, whose checksum takes longer than reading. The runner has hashed the whole file before.
    """
    with path.open("rb") as file:
        if not 0 <= member.file_size <= os.fstat(file.fileno()).st_size:
            raise ValueError("it is truncated")
        file.seek(member.header_offset)
        header = file.read(30)  # the fixed part of a local file header; then come its name and its extra field
        name_bytes, extra_bytes = struct.unpack("<26xHH", header)
        file.seek(name_bytes + extra_bytes, 1)
        # Private, because Python's default is shared memory, which gets large pages on few systems.
        memory = mmap.mmap(-1, max(1, room + member.file_size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # kernels and sandboxes without large pages refuse: small ones serve too
                memory.madvise(mmap.MADV_HUGEPAGE)
        if file.readinto(memoryview(memory)[room : room + member.file_size]) != member.file_size:
            raise ValueError("it is truncated")
    return np.frombuffer(memory, np.uint8)


def _parse_lengths(memory: npt.NDArray[np.uint8], lengths: Lengths) -> Program:
    """Return the program of the greatest length, with those of the others. Raises ValueError on damage."""
    if not all(0 <= offset <= memory.size for offset in lengths.offsets):
        raise ValueError("a program begins beyond its end")
    if lengths.form is not None:
        lengths.form.spread(memory, lengths.values)
    parts = tuple(_parse(memory[offset:]) for offset in lengths.offsets)
    for place, part in enumerate(parts):
        wanted = [
            sum(math.prod(each.at(lengths.values[place])) for each in fields)
            for fields in (lengths.inputs, lengths.outputs)
        ]
        if part.float_shape != (wanted[0], 1, 1) or part.outputs != wanted[1]:
            raise ValueError(f"the program of length {lengths.values[place]} does not take rows of {wanted[0]} values")
    return dataclasses.replace(parts[-1], lengths=lengths, parts=parts)


def _parse(memory: npt.NDArray[np.uint8]) -> Program:
    if memory.size < HEADER.itemsize:
        raise ValueError("it is too short for a program")
    header = memory[: HEADER.itemsize].view(HEADER)[0]
    if header["magic"] != MAGIC:
        raise ValueError("it holds no program of this format")
    pixels, floats = int(header["input_channels_pixels"]), int(header["input_channels_float"])
    height, width = int(header["input_height"]), int(header["input_width"])
    return Program(
        memory=memory,
        pixel_shape=(pixels, height, width) if pixels else None,
        float_shape=(floats, height, width) if floats else None,
        outputs=int(header["outputs"]),
        bytes_each=int(header["arena_bytes"]),
        version=int(header["version"]),
    )
