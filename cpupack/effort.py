"""How many samples a step of a build takes where nobody has asked for a number: fewer of a model that takes long.

It goes by the model's multiply-adds, and not by a clock: a build makes the same of a recipe on each host.
"""

from __future__ import annotations

GIGA = 10**9


def samples_within(effort: int, macs: float, *, most: int, least: int) -> int:
    """Return how many samples of ``macs`` multiply-adds are within ``effort``, from ``least`` to ``most``."""
    return min(most, max(least, int(effort / max(macs, 1.0))))


def power_of_two(count: int) -> int:
    """Return the largest power of two up to ``count``, of at least 1."""
    return 1 << (count.bit_length() - 1)
