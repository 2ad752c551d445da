"""Finds how a list of moves or of gathered places grows with the size: blocks that repeat, in one or two loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.sizes import Run
from cpupack.size_terms import Fit, Ints

MOVE = 8
"""Numbers of a move."""
_LONGEST_BLOCK, _LONGEST_OF_GATHERS, _MOST_RUNS = 64, 8, 64
_MOST_ALONE = 4
"""Moves before and after those that repeat."""


@dataclass(frozen=True)
class _Loops:
    """``rounds`` times ``blocks`` blocks of moves ``first`` ``(moves, 8)``, at these distances."""

    rounds: int
    blocks: int
    first: Ints
    step: Ints
    stride: Ints


def runs_of(lists: Sequence[Ints], fit: Fit, what: str) -> tuple[Run, ...] | None:
    """Return the runs that have the moves ``(n, 8)`` of each size; None where they do not repeat.

    A gather's list has one number in place of eight, and is longer.
    """
    shortest = min(len(each) for each in lists)
    is_gather = lists[0].shape[1] == 1
    longest, most_alone = (_LONGEST_OF_GATHERS, 0) if is_gather else (_LONGEST_BLOCK, _MOST_ALONE)
    for head in range(min(most_alone, shortest) + 1):
        for period in range(1, min(longest, shortest) + 1):
            tails = {(len(each) - head) % period for each in lists}
            if len(tails) > 1 or max(tails) > most_alone or (head and head % period == 0):
                continue
            found = [_loops_between(each, head, period, max(tails)) for each in lists]
            if len({len(each) for each in found}) > 1 or not found[0]:
                continue
            try:
                return tuple(_run(each, fit, what) for each in zip(*found, strict=True))
            except QuantizationError:
                continue  # blocks of another length may repeat
    return None


def _run(loops: Sequence[_Loops], fit: Fit, what: str) -> Run:
    """Return the run that has these loops at each size. Raises QuantizationError."""
    shape = (*loops[0].first.shape, len(fit.products))
    rounds, blocks = (fit.terms(np.array([getattr(each, n) for each in loops]), what) for n in ("rounds", "blocks"))
    first, step, stride = (
        _nested(fit.all_terms(np.stack([getattr(each, name).ravel() for each in loops]), what), shape)
        for name in ("first", "step", "stride")
    )
    return Run(blocks, first, step, rounds, stride)


def _loops_between(moves: Ints, head: int, period: int, tail: int) -> list[_Loops]:
    """Return moves as loops over blocks, between ``head`` and ``tail`` moves that belong to none, as those of a border.

    Empty where there are too many loops.
    """
    between = _loops(moves[head : len(moves) - tail], period)
    if not between:
        return []
    return [*_alone(moves[:head]), *between, *_alone(moves[len(moves) - tail :])]


def _alone(moves: Ints) -> list[_Loops]:
    none = np.zeros_like(moves[:1])
    return [_Loops(1, 1, move[None], none, none) for move in moves]


def _loops(moves: Ints, period: int) -> list[_Loops]:
    """Return a whole number of blocks of ``period`` moves as loops. Empty where there are too many."""
    blocks = moves.reshape(-1, period, moves.shape[1])
    firsts, counts = _in_a_row(blocks)
    steps = np.zeros_like(blocks[firsts])
    steps[counts > 1] = blocks[firsts[counts > 1] + 1] - blocks[firsts[counts > 1]]
    found, place = list[_Loops](), 0
    strides = np.diff(blocks[firsts], axis=0)
    alike = (counts[1:] == counts[:-1]) & (steps[1:] == steps[:-1]).all(axis=(1, 2))
    goes_on = alike[1:] & alike[:-1] & (strides[1:] == strides[:-1]).all(axis=(1, 2))
    while place < len(firsts):
        if len(found) == _MOST_RUNS:
            return []
        end = place + 1
        if place < len(alike) and alike[place]:
            rest = goes_on[place:]
            end = place + 2 + (len(rest) if rest.all() else int(rest.argmin()))
        stride = strides[place] if end > place + 1 else np.zeros_like(blocks[0])
        found.append(_Loops(end - place, int(counts[place]), blocks[firsts[place]], steps[place], stride))
        place = end
    return found


def _in_a_row(blocks: Ints) -> tuple[Ints, Ints]:
    """Return the first block of each run, and how many follow each other at one distance."""
    steps = np.diff(blocks, axis=0)
    changes = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=(1, 2))) + 1
    firsts, first = list[int](), 0
    while first < len(blocks):
        firsts.append(first)
        place = int(np.searchsorted(changes, first, "right"))
        # Up to the block before the first other distance.
        first = int(changes[place]) + 1 if place < len(changes) else len(blocks)
    return np.array(firsts), np.diff([*firsts, len(blocks)])


def _nested(terms: Ints, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(tuple(tuple(int(one) for one in each) for each in move) for move in terms.reshape(shape))
