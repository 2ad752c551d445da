"""How many of a list of samples go into one call, where any batch size serves as well as any other."""

from __future__ import annotations

HAND_OVER_S = 0.0003
"""What a call costs more when another thread runs it, with some room for a bad moment."""

FILE_TURNS = 8
"""Batches for each instance of inputs that have yet to be decoded: the first waits for all of its own, idle."""

_WORTH_IT = 4
"""Weights are read once for so many samples at least: below that a batch costs more a sample."""


def even_size(count: int, size: int, instances: int, sample_s: float, turns: int = 1) -> int:
    """Return the batch size, at most ``size``, that keeps ``instances`` busy to the end of ``count`` samples.

    All have the same number of turns, ``turns`` at least unless batches would be tiny. 96 samples by 32 on two
    instances would leave one idle for a quarter of the time: they go by 24. Where a sample takes ``sample_s`` and
    smaller batches win less than handing over costs, the size stays.
    """
    needed = max(turns, -(-count // (size * instances)))
    part = max(-(-count // (needed * instances)), min(_WORTH_IT, -(-count // instances)))
    won_s = (min(count, size) - part) * sample_s
    return part if part < size and won_s > HAND_OVER_S else size
