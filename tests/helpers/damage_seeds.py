"""The seeds of the tests that damage programs: two, or those that ``make damage`` asks for."""

from __future__ import annotations

import os


def damage_seeds() -> range:
    """Return the seeds. CPUPACK_DAMAGE_SEEDS is ``FIRST:COUNT``."""
    first, _, count = os.environ.get("CPUPACK_DAMAGE_SEEDS", "0:2").partition(":")
    return range(int(first), int(first) + int(count))
