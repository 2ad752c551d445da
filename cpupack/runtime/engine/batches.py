"""Chooses how many samples of a list go into one call, for models that run every batch size equally well."""

from __future__ import annotations

HAND_OVER_S = 0.0003
"""Extra time of a call that another thread runs, with a margin."""

FILE_TURNS = 8
"""Batches for each instance at least when inputs must be decoded first: an instance is idle until its first batch is
ready, so small batches start it sooner."""

_WORTH_IT = 4
"""Smallest batch worth a call. Each call reads all weights, so a smaller batch costs more for each sample."""


def even_size(count: int, size: int, instances: int, sample_s: float, turns: int = 1) -> int:
    """Return the batch size, at most ``size``, that keeps ``instances`` busy to the end of ``count`` samples.

    Every instance gets the same number of batches, at least ``turns`` unless batches would be tiny. For example, 96
    samples in batches of 32 would leave one of two instances idle for a quarter of the time, so they go in batches of
    24. ``sample_s`` is the time of one sample: where smaller batches save less than handing them over costs, the result
    is ``size``.
    """
    needed = max(turns, -(-count // (size * instances)))
    part = max(-(-count // (needed * instances)), min(_WORTH_IT, -(-count // instances)))
    won_s = (min(count, size) - part) * sample_s
    return part if part < size and won_s > HAND_OVER_S else size
