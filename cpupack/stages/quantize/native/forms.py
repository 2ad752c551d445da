"""Finds the form of the programs of several lengths: what changes in them by the same step from length to length."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine.forms import ALIGNMENT, OFFSETS, Bytes, Form, layers_of
from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER

FEWEST = 3
"""Lengths that prove a form: two give the steps, and any other has to follow from them."""


class NoFormError(Exception):
    """The programs have no form, for the reason in the text."""


@dataclass(frozen=True)
class _Split:
    """A program: header, buffers and layers; its constants one by one; and which of these each layer reads.

    ``reads`` is ``(layers, offsets)``: the number of the constant that begins there.
    """

    head: Bytes
    constants: list[Bytes]
    reads: npt.NDArray[np.int64]


def block_of(programs: Mapping[int, bytes]) -> tuple[bytes, Form]:
    """Return a block that begins with the program of the greatest length, and the form in it of all lengths.

    The memory plan is the greatest one's: where it has a buffer, there is room for that of any other. Raises
    NoFormError.
    """
    splits = {value: _split(programs[value]) for value in sorted(programs)}
    longest = max(splits)
    whole = splits[longest]
    if len(splits) < FEWEST:
        raise NoFormError(f"{len(splits)} lengths prove no form")
    for value, each in splits.items():
        if each.head.size != whole.head.size or not np.array_equal(each.reads, whole.reads):
            raise NoFormError(f"the layers of length {value} are not those of {longest}")
    own, own_steps = _Area(), _Area()
    places = np.zeros(len(whole.constants), np.int64)
    shared = []
    for number, content in enumerate(whole.constants):
        found = {value: each.constants[number] for value, each in splits.items()}
        if all(np.array_equal(content[: each.size], each) for each in found.values()):
            shared.append(number)  # a shorter one is the beginning of the longest
            continue
        places[number] = own.add(content)
        own_steps.add(_steps(found).view(np.uint8))
    # Shared constants come after all that change.
    rest = _Area(len(own.content))
    for number in shared:
        places[number] = rest.add_once(whole.constants[number])
    head = whole.head.copy()
    layers, _ = layers_of(head)
    for column, name in enumerate(OFFSETS):
        layers[name] = places[whole.reads[:, column]]
    head_steps = _steps({value: _without_places(each.head) for value, each in splits.items()}).view(np.uint8)
    gap = -head.size % ALIGNMENT
    head[: HEADER.itemsize].view(HEADER)["constants"] = head.size + gap
    first = head.tobytes() + bytes(gap) + bytes(own.content)
    steps = head_steps.tobytes() + bytes(gap) + bytes(own_steps.content)
    form = Form(len(first), len(first) + len(rest.content))
    block = np.frombuffer(first + bytes(rest.content) + steps, np.uint8).copy()
    identity = np.frombuffer(hashlib.sha256(block.tobytes()).digest()[:8], "<i4")
    block[: HEADER.itemsize].view(HEADER)["identity"] = identity
    return block.tobytes(), form


class _Area:
    """Constants one after the other, from ``first`` on."""

    def __init__(self, first: int = 0) -> None:
        self.content, self._first, self._known = bytearray(), first, dict[bytes, int]()

    def add(self, constant: Bytes) -> int:
        """Append a constant and return where it is."""
        begin = self._first + len(self.content)
        self.content += constant.tobytes() + bytes(-constant.size % ALIGNMENT)
        return begin

    def add_once(self, constant: Bytes) -> int:
        """Do the same, or return where an equal one is."""
        key = hashlib.sha256(constant.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.add(constant)
        return self._known[key]


def _split(program: bytes) -> _Split:
    own = np.frombuffer(program, np.uint8)
    layers, constants = layers_of(own)
    end = HEADER.itemsize + layers.size * LAYER.itemsize
    end += int(own[: HEADER.itemsize].view(HEADER)[0]["buffers"]) * BUFFER.itemsize
    begins = sorted({int(each) for name in OFFSETS for each in layers[name]} | {own.size - constants})
    pieces = [own[constants + begin : constants + after] for begin, after in itertools.pairwise(begins)]
    pieces.append(own[:0])  # what an unused offset at the end of all names
    reads = np.stack([np.searchsorted(begins, layers[name]) for name in OFFSETS], axis=1)
    return _Split(own[:end], pieces, reads)


def _without_places(head: Bytes) -> Bytes:
    """Return a head without the memory plan and the places of constants."""
    found = head.copy()
    header = found[: HEADER.itemsize].view(HEADER)
    for name in ("identity", "alone", "arena_bytes", "constants"):
        header[name] = 0
    layers, _ = layers_of(found)
    for name in OFFSETS:
        layers[name] = 0
    found[HEADER.itemsize : found.size - layers.size * LAYER.itemsize].view(BUFFER)["offset"] = 0
    return found


def _steps(found: Mapping[int, Bytes]) -> npt.NDArray[np.int32]:
    """Return by how much each 32-bit word changes from length to length. Raises NoFormError where that differs."""
    least, longest = min(found), max(found)
    if len({each.size for each in found.values()}) > 1 or found[longest].size % 4:
        raise NoFormError("a constant has another size at another length")
    words = {value: np.ascontiguousarray(each).view("<i4").astype(np.int64) for value, each in found.items()}
    steps = (words[longest] - words[least]) // (longest - least)
    for value, each in words.items():
        if not np.array_equal(each, words[longest] + steps * (value - longest)):
            raise NoFormError(f"what changes with the length does so by another step at {value}")
    if (np.abs(steps) > np.iinfo(np.int32).max).any():
        raise NoFormError("a step is too large")
    return steps.astype("<i4")
