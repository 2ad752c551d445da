"""Joins the programs of several lengths of a sample in one block that has each constant once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER

_ALIGNMENT = 64
_OFFSETS = ("weights", "scales", "biases", "table")


def join_programs(programs: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """Return a block of programs and where each begins in it, the last one at 0.

    A program's constants are those from its ``header.constants`` on, so each may find its own in what all share.
    """
    order = [len(programs) - 1, *range(len(programs) - 1)]
    heads, begins, at = [], {}, 0
    for number in order:
        own = np.frombuffer(programs[number], np.uint8)
        head = bytearray(programs[number][: _constants_of(own)])
        head += bytes(-len(head) % _ALIGNMENT)
        begins[number] = at
        heads.append(head)
        at += len(head)
    shared, places = bytearray(), dict[bytes, int]()
    for number, head in zip(order, heads, strict=True):
        _share(programs[number], head, shared, places, at - begins[number])
    block = np.frombuffer(b"".join([*heads, shared]), np.uint8).copy()
    identity = np.frombuffer(hashlib.sha256(block.tobytes()).digest()[:8], "<i4")
    for begin in begins.values():
        block[begin : begin + HEADER.itemsize].view(HEADER)["identity"] = identity
    return block.tobytes(), [begins[number] for number in range(len(programs))]


def _constants_of(program: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
    return int(program[: HEADER.itemsize].view(HEADER)[0]["constants"])


def _share(program: bytes, head: bytearray, shared: bytearray, places: dict[bytes, int], constants: int) -> None:
    """Have the layers of a head find their constants in ``shared``, which gets those that it does not have."""
    view = np.frombuffer(head, np.uint8)
    header = view[: HEADER.itemsize].view(HEADER)[0]
    first = HEADER.itemsize + int(header["buffers"]) * BUFFER.itemsize
    layers = view[first : first + int(header["layers"]) * LAYER.itemsize].view(LAYER)
    before = int(header["constants"])
    own = program[before:]
    begins = sorted({int(each) for name in _OFFSETS for each in layers[name]} | {len(own)})
    moved = {}
    for begin, end in itertools.pairwise(begins):
        content = own[begin:end]
        key = hashlib.sha256(content).digest()
        if key not in places:
            shared += bytes(-len(shared) % _ALIGNMENT)
            places[key] = len(shared)
            shared += content
        moved[begin] = places[key]
    moved.setdefault(len(own), len(shared))
    for name in _OFFSETS:
        layers[name] = [moved[int(each)] for each in layers[name]]
    header["constants"] = constants
