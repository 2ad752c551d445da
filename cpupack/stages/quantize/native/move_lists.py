"""Finds how a list grows with the size: which of its rows repeat, in loops inside loops.

A list is read at each size for itself, from its shortest repetitions to its longest. What was found must be the same
at all sizes, but for how often each loop runs and what its rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.loops import Loop, Numbers, Part, Row
from cpupack.size_terms import Fit, Ints, refused

MOVE = 8
"""Numbers of a move."""
_LEAST_ROUNDS = (3, 2)
"""Rounds of a loop: two rows that follow each other have always a distance, and three have one by chance alone. At a
small size, a loop may have two."""
_LONGEST_BODY = 64
_MOST_ROWS, _MOST_AFTER_ROWS = 512, 1 << 15
_WEIGHTS = np.random.default_rng(0).integers(0, 1 << 64, _MOST_ROWS * MOVE, np.uint64)

_Marks = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class _Part:
    """A row, or a loop of parts. ``kind`` is the same for parts that differ in their first rows ``(rows, n)`` alone."""

    kind: int
    first: Ints
    rounds: int = 1
    body: tuple[_Part, ...] = ()
    step: Ints | None = None
    """How far each row goes on from round to round ``(rows, n)``."""


@dataclass
class _Kinds:
    """Numbers of kinds of parts."""

    known: dict[Any, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def of(self, *what: Any) -> int:
        if what not in self.known:
            self.known[what] = next(self.numbers)
        return self.known[what]


def parts_of_lists(
    lists: Sequence[Ints], fit: Fit, what: str, heads: Sequence[Ints] | None = None
) -> tuple[Part, ...]:  # fmt: skip
    """Return the parts that have the rows ``(rows, n)`` of a list at each size, after those of ``heads``.

    Raises QuantizationError where they do not repeat.
    """
    ways = list[list[list[_Part] | None]]()
    for rows in lists:
        ways.append([_read(rows, least) for least in _LEAST_ROUNDS])
        if not any(ways[-1]):
            raise refused(f"{what} repeats in no way")
    for wanted in (_shape(each) for own in zip(*ways, strict=True) for each in own if each):
        found = [next((each for each in own if each and _shape(each) == wanted), None) for own in ways]
        if any(each is None for each in found):
            continue
        given = heads or [rows[:0] for rows in lists]
        firsts = [[_Part(-1, head[at : at + 1]) for at in range(len(head))] for head in given]
        whole = [[*head, *(each or ())] for head, each in zip(firsts, found, strict=True)]
        try:
            return tuple(_part(each, [], fit, what) for each in zip(*whole, strict=True))
        except QuantizationError:
            continue
    raise refused(
        f"{what} repeats in another way for another size; windows of attention are seen to repeat from "
        "four along each side of [sizes] typical on"
    )


def _shape(parts: Sequence[_Part]) -> tuple[Any, ...]:
    """Return which parts are loops, and of what."""
    return tuple(_shape(each.body) for each in parts)


def _read(rows: Ints, least: int) -> list[_Part] | None:
    """Return a list's parts, None where there are too many."""
    kinds = _Kinds()
    parts, length = _first_loops(rows, least, kinds), 1
    marks = _marks(parts)
    while length <= min(_LONGEST_BODY, len(parts) // least):
        if len(parts) > _MOST_AFTER_ROWS:
            return None
        again = _loops(parts, marks, length, least, kinds)
        if len(again) == len(parts):
            length += 1
            continue
        parts, length = again, 1  # what is now shorter may repeat in a shorter way
        marks = _marks(parts)
    return parts if sum(len(each.first) for each in parts) <= _MOST_ROWS else None


def _first_loops(rows: Ints, least: int, kinds: _Kinds) -> list[_Part]:
    """Return rows that go on at one distance as loops: what ``_loops`` finds in long lists first, in less time."""
    steps = np.diff(rows, axis=0)
    same = (steps[1:] == steps[:-1]).all(axis=1)
    ends = np.append(np.flatnonzero(~same) + 1, len(rows) - 1)  # the last row of each run
    row, found, place = kinds.of("row"), list[_Part](), 0
    for end in ends.tolist():
        rounds = end + 1 - place
        if rounds >= least:
            found.append(_loop([_Part(row, rows[place : place + 1])], rounds, steps[place : place + 1], kinds))
            place = end + 1
        while place < end:  # the last one may begin the next run
            found.append(_Part(row, rows[place : place + 1]))
            place += 1
    found += [_Part(row, rows[at : at + 1]) for at in range(place, len(rows))]
    return found


def _loops(parts: list[_Part], marked: _Marks, length: int, least: int, kinds: _Kinds) -> list[_Part]:
    """Return parts with those as loops of which ``length`` parts come again and again at one distance."""
    numbers, marks = marked
    steps = marks[length:] - marks[:-length]
    same = numbers[length:] == numbers[:-length]
    goes_on = same[:-length] & same[length:] & (steps[:-length] == steps[length:])
    pairs, ends = (np.append(np.flatnonzero(~each), len(each)) for each in (same, goes_on))
    found, place = list[_Part](), 0
    for begin in np.flatnonzero(same if least == 2 else goes_on).tolist():
        if begin < place or int(pairs[np.searchsorted(pairs, begin)]) - begin < length:
            continue
        more = 0 if begin >= len(goes_on) else int(ends[np.searchsorted(ends, begin)]) - begin
        rounds = 2 + more // length
        if rounds < least:
            continue
        found += parts[place:begin]
        step = _firsts(parts, begin + length, length) - _firsts(parts, begin, length)
        found.append(_loop(parts[begin : begin + length], rounds, step, kinds))
        place = begin + rounds * length
    return [*found, *parts[place:]]


def _marks(parts: list[_Part]) -> _Marks:
    """Return the kinds of parts, and numbers that differ where their rows do, but by chance.

    The number of a difference is the difference of the numbers.
    """
    sizes = np.array([each.first.size for each in parts])
    begins = np.append(0, sizes.cumsum())
    places = np.arange(begins[-1]) - np.repeat(begins[:-1], sizes)
    rows = np.concatenate([each.first.reshape(-1) for each in parts]).astype(np.uint64)
    sums = np.append(np.uint64(0), (rows * _WEIGHTS[places % len(_WEIGHTS)]).cumsum(dtype=np.uint64))
    return np.array([each.kind for each in parts]), sums[begins[1:]] - sums[begins[:-1]]


def _firsts(parts: list[_Part], place: int, length: int) -> Ints:
    return np.concatenate([each.first for each in parts[place : place + length]])


def _loop(body: Sequence[_Part], rounds: int, step: Ints, kinds: _Kinds) -> _Part:
    first = np.concatenate([each.first for each in body])
    kind = kinds.of(rounds, tuple(each.kind for each in body), step.tobytes())
    return _Part(kind, first, rounds, tuple(body), step)


def _part(own: Sequence[_Part], around: list[list[Ints]], fit: Fit, what: str) -> Part:
    """Return a part in loops whose rows go on by ``around``, of each loop the steps at each size ``(rows, n)``."""
    if not own[0].body:
        numbers = [[each.first for each in own], *around]
        return Row(_numbers(numbers[0], fit, what), tuple(_numbers(each, fit, what) for each in numbers[1:]))
    steps = [*around, [each.step for each in own if each.step is not None]]
    body, begin = list[Part](), 0
    for parts in zip(*(each.body for each in own), strict=True):
        end = begin + len(parts[0].first)
        body.append(_part(parts, [[each[begin:end] for each in level] for level in steps], fit, what))
        begin = end
    return Loop(fit.terms(np.array([each.rounds for each in own]), what), tuple(body))


def _numbers(at_sizes: Sequence[Ints], fit: Fit, what: str) -> Numbers:
    terms = fit.all_terms(np.stack([each.reshape(-1) for each in at_sizes]), what)
    return tuple(tuple(int(one) for one in each) for each in terms)
