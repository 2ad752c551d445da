"""Lists of moves for ``Op.MOVE``: which bytes of a buffer go where in another buffer, in as few entries as possible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.stages.quantize.native.program import Buffer

Ints = npt.NDArray[np.int64]

EITHER, NEIGHBOURS, APART = range(3)
FILL = -1
"""Replaces an element's number and means the layer's constant."""
_COLUMNS = 8  # of struct cpupack_move
_LONGEST_PERIOD = 64
_MOST_TRIED = 1 << 10
"""Runs of a row that periods are tried on: a long row repeats."""
_AS_GOOD = 2
"""A step that joins what it joins at another size may give so many times as many moves as the best one."""
_AT_ONCE = 1 << 18
"""Number of bytes to process together."""


def memory_places(elements: torch.Tensor, buffer: Buffer) -> Ints:
    """Return where elements, by channel, frame, row and column, are in a sample's bytes (no border). FILL stays."""
    numbers = elements.numpy().astype(np.int64)
    positions = buffer.positions
    places: Ints = np.where(numbers < 0, FILL, numbers % positions * buffer.channels + numbers // positions)
    return places


@dataclass(frozen=True)
class Joins:
    """Which runs of bytes become one move.

    Those that follow each other in the target (NEIGHBOURS), or every ``period``-th one (APART) of rows of ``runs``.
    EITHER, or APART with a period of 0, says that it was not the same in all rows.
    """

    kind: int = EITHER
    period: int = 0
    runs: int = 0


def moves_of(
    sources: Ints, targets: Ints, source: Buffer, target: Buffer, joins: Joins | None = None
) -> tuple[npt.NDArray[np.int32], Joins]:
    """Return moves ``(n, 8)`` from ``sources`` (or FILL) in one buffer's memory to ``targets`` in another's.

    A move joins runs of bytes in the way that gives the fewest, unless ``joins`` says it. Which it was is returned,
    too.
    """
    by_target = np.argsort(targets, kind="stable")
    row = target.width * target.channels
    # No move crosses rows, so processing a few rows at a time limits the memory.
    rows = targets[by_target] // row
    cuts = np.searchsorted(rows, np.arange(0, target.frames * target.height, max(1, _AT_ONCE // row)))
    parts = [part for part in np.split(by_target, cuts[1:]) if len(part)]
    found = [_moves_of_rows(sources[part], targets[part], source, target, joins or Joins()) for part in parts]
    moves = np.concatenate([each for each, _ in found]) if found else np.empty((0, _COLUMNS), np.int32)
    chosen = {each for _, each in found}
    if len(chosen) == 1:
        return moves, chosen.pop()
    kinds = {each.kind for each in chosen}
    return moves, Joins(kinds.pop() if len(kinds) == 1 else EITHER)


def _moves_of_rows(
    sources: Ints, targets: Ints, source: Buffer, target: Buffer, joins: Joins
) -> tuple[npt.NDArray[np.int32], Joins]:
    from_row, to_row = source.width * source.channels, target.width * target.channels
    rows = np.where(sources < 0, -1, sources // from_row), targets // to_row
    # Neighbours in both become one run of bytes.
    filled = sources < 0
    joined = (targets[1:] == targets[:-1] + 1) & (rows[1][1:] == rows[1][:-1]) & (rows[0][1:] == rows[0][:-1])
    joined &= np.where(filled[1:], filled[:-1], sources[1:] == sources[:-1] + 1)
    first = np.flatnonzero(np.concatenate([[True], ~joined]))
    length = np.diff(np.append(first, len(sources)))
    runs = np.stack(
        [
            rows[0][first], np.where(filled[first], 0, sources[first] % from_row), rows[1][first],
            targets[first] % to_row, length,
        ],
        1,
    )  # fmt: skip
    each_row, lengths = np.unique(runs[:, 2], return_counts=True)
    longest_row = int(lengths.max())
    sample = runs[runs[:, 2] == each_row[lengths.argmax()]][:_MOST_TRIED]
    period = _best_period(sample, longest_row, joins)
    found = _repeated(_by_period(runs, period))
    return found, Joins(NEIGHBOURS) if period == 1 else Joins(APART, period, longest_row)


def _best_period(sample: Ints, longest_row: int, joins: Joins) -> int:
    """Return the step in which runs of a row repeat best. In a pixel shuffle every r-th run repeats, not neighbours."""
    if joins.kind == NEIGHBOURS:
        return 1
    longest = len(sample) // 2 if joins.kind == APART else min(len(sample) // 2, _LONGEST_PERIOD)
    periods = range(2 if joins.kind == APART else 1, longest + 1)
    counts = {period: len(_repeated(_by_period(sample, period))) for period in periods}
    fewest = min(counts.values(), default=len(sample))
    if joins.kind == APART and joins.period:
        # In narrow rows another step may give fewer moves by chance: that of the other size, or as much longer as the
        # rows are, joins what it joined there.
        scaled, rest = divmod(joins.period * longest_row, joins.runs)
        alike = {each: counts[each] for each in (joins.period, *([] if rest else [scaled])) if each in counts}
        if alike and min(alike.values()) <= _AS_GOOD * fewest:
            counts, fewest = alike, min(alike.values())
    # Of two that are as good the longer one, which is the better one for wider images: these have the same moves then.
    return 1 if fewest == len(sample) else max(period for period, count in counts.items() if count == fewest)


def _by_period(runs: Ints, period: int) -> Ints:
    """Return runs with every ``period``-th run of a row next to each other."""
    if period == 1:
        return runs
    number = np.arange(len(runs))
    starts = np.concatenate([[True], runs[1:, 2] != runs[:-1, 2]])
    number = number - np.maximum.accumulate(np.where(starts, number, 0))
    order = np.lexsort((number, number % period, runs[:, 2]))
    found: Ints = runs[order]
    return found


def _repeated(runs: Ints) -> npt.NDArray[np.int32]:
    """Join runs of one length in the same rows, at equal distances, to one move each."""
    steps = np.diff(runs, axis=0)
    linked = (steps[:, 0] == 0) & (steps[:, 2] == 0) & (steps[:, 4] == 0)
    moves = []
    first = 0
    # Where a link continues the one before it.
    goes_on = linked[1:] & linked[:-1] & (steps[1:, 1] == steps[:-1, 1]) & (steps[1:, 3] == steps[:-1, 3])
    ends = np.append(np.flatnonzero(~goes_on) + 2, len(runs))  # the index after the last run of each sequence of links
    place = 0
    while first < len(runs):
        if first == len(runs) - 1 or not linked[first]:
            moves.append((first, 1, 0, 0))
            first += 1
            continue
        while ends[place] < first + 2:
            place += 1
        end = int(ends[place])
        moves.append((first, end - first, steps[first, 1], steps[first, 3]))
        first = end
    found: npt.NDArray[Any] = np.empty((len(moves), _COLUMNS), np.int32)
    table = np.array(moves, np.int64).reshape(-1, 4)
    found[:, :5] = runs[table[:, 0]]
    found[:, 5:] = table[:, 1:]
    return found
