"""Finds the form of the programs of several lengths: what changes in them by the same step from length to length."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.runtime.engine.forms import ALIGNMENT, OFFSETS, Bytes, Form, layers_of
from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER
from cpupack.runtime.tensor_spec import LARGEST_EXACT
from cpupack.stages.quantize.native.walks import UNUSED

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
    own, changes = _Area(), list[_Change]()
    places = np.zeros(len(whole.constants), np.int64)
    shared = []
    for number, content in enumerate(whole.constants):
        found = {value: each.constants[number] for value, each in splits.items()}
        if all(_begins(content, each) for each in found.values()):
            shared.append(number)  # a shorter one is the beginning of the longest
            continue
        places[number] = own.add(content)
        changes.append(_change(found))
    # Shared constants come after all that change.
    rest = _Area(len(own.content))
    for number in shared:
        places[number] = rest.add_once(_used(whole.constants[number]))
    head = whole.head.copy()
    layers, _ = layers_of(head)
    for column, name in enumerate(OFFSETS):
        layers[name] = places[whole.reads[:, column]]
    changes.insert(0, _change({value: _without_places(each.head) for value, each in splits.items()}))
    gap = -head.size % ALIGNMENT
    head[: HEADER.itemsize].view(HEADER)["constants"] = head.size + gap
    first = head.tobytes() + bytes(gap) + bytes(own.content)
    steps, bends, rates = (_aligned([getattr(each, name) for each in changes]) for name in ("steps", "bends", "rates"))
    form = Form(len(first), len(first) + len(rest.content), any(bends), any(rates))
    found_block = first + bytes(rest.content) + steps + bends * form.bends + rates * form.rates
    block = np.frombuffer(found_block, np.uint8).copy()
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


def _begins(whole: Bytes, each: Bytes) -> bool:
    """Return whether a constant is the beginning of that of the greatest length, where it has values."""
    if np.array_equal(whole[: each.size], each):
        return True
    if each.size > whole.size or each.size % 4:
        return False
    words = each.view(np.uint32)
    return bool(((words == UNUSED) | (words == whole[: each.size].view(np.uint32))).all())


def _used(constant: Bytes) -> Bytes:
    """Return a constant with zeros where it has no values."""
    if constant.size % 4 or not (unused := constant.view(np.uint32) == UNUSED).any():
        return constant
    return np.asarray(np.where(unused, np.uint32(0), constant.view(np.uint32)), np.uint32).view(np.uint8)


def _aligned(parts: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return parts one after the other, each filled up as the constants are that they belong to."""
    return b"".join(each.tobytes() + bytes(-each.nbytes % ALIGNMENT) for each in parts)


@dataclass(frozen=True)
class _Change:
    """By how much 32-bit words change: see ``Form``."""

    steps: npt.NDArray[np.int32]
    bends: npt.NDArray[np.int32]
    rates: npt.NDArray[np.float32]


def _change(found: Mapping[int, Bytes]) -> _Change:
    """Return by how much each 32-bit word changes from length to length. Raises NoFormError where there is no rule."""
    least, longest = min(found), max(found)
    if len({each.size for each in found.values()}) > 1 or found[longest].size % 4:
        raise NoFormError("a constant has another size at another length")
    words = {value: np.ascontiguousarray(each).view("<i4").astype(np.int64) for value, each in found.items()}
    last, rates = words[longest], _rates(found)
    steps = np.where(rates != 0, 0, (last - words[least]) // (longest - least))
    bends = np.zeros_like(steps)
    bent = np.zeros(steps.shape, bool)
    for value, each in words.items():
        bent |= (each != last + steps * (value - longest)) & (rates == 0)
    if bent.any():
        if len(found) <= FEWEST:
            raise NoFormError("what changes with the length does so by another step at each")
        # Products of two lengths: they are on a parabola through three of the lengths.
        middle = sorted(found)[-2]
        one, two = least - longest, middle - longest
        squares = [each * (each + 1) // 2 for each in (one, two)]
        by_one, by_two = words[least] - last, words[middle] - last
        whole = one * squares[1] - two * squares[0]
        steps = np.where(bent, (by_one * squares[1] - by_two * squares[0]) // whole, steps)
        bends = np.where(bent, (one * by_two - two * by_one) // whole, bends)
    for value, each in words.items():
        away = value - longest
        follows = each == last + steps * away + bends * (away * (away + 1) // 2)
        if not (follows | (rates != 0)).all():
            raise NoFormError(f"what changes with the length does so by another step at {value}")
    if max(np.abs(steps).max(initial=0), np.abs(bends).max(initial=0)) > np.iinfo(np.int32).max:
        raise NoFormError("a step is too large")
    return _Change(steps.astype("<i4"), bends.astype("<i4"), rates.astype("<f4"))


def _rates(found: Mapping[int, Bytes]) -> npt.NDArray[np.float64]:
    """Return by how much words change that are lengths as float32: whole numbers on a line; 0 for other words."""
    least, longest = min(found), max(found)
    with np.errstate(invalid="ignore"):  # integers may have the bits of a signaling NaN
        numbers = {value: np.ascontiguousarray(each).view("<f4").astype(np.float64) for value, each in found.items()}
    counts = np.ones(numbers[longest].shape, bool)
    for each in numbers.values():
        with np.errstate(invalid="ignore"):  # most words are no float32
            counts &= (np.abs(each) >= 1.0) & (np.abs(each) <= LARGEST_EXACT) & (each == np.trunc(each))
    last = np.where(counts, numbers[longest], 0.0)
    rates = np.where(counts, last - np.where(counts, numbers[least], 0.0), 0.0) / (longest - least)
    for value, each in numbers.items():
        rates[np.where(counts, each, 0.0) != last + rates * (value - longest)] = 0.0
    rates[rates != rates.astype(np.float32)] = 0.0
    return rates
