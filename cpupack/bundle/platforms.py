"""The platform tags that a host takes, for ``pip download``: it takes those that are named, and no older ones."""

from __future__ import annotations

import re

_OLDEST_MINOR = {"x86_64": 5, "aarch64": 17}
"""The first glibc 2.x that manylinux tags know for each CPU family (PEP 600)."""
_ALIASES = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_TAG = re.compile(r"manylinux_2_(\d+)_(x86_64|aarch64)")


def taken_by(platform: str) -> list[str] | None:
    """Return ``platform`` and every older tag that such a host takes, None for what is no manylinux tag.

    ``manylinux_2_28_x86_64`` gives itself down to ``manylinux_2_5_x86_64``, the older names of these, and ``linux``.
    """
    found = _TAG.fullmatch(platform)
    if found is None:
        return None
    cpu = found[2]
    tags = []
    for minor in range(int(found[1]), _OLDEST_MINOR[cpu] - 1, -1):
        tags.append(f"manylinux_2_{minor}_{cpu}")
        if minor in _ALIASES:
            tags.append(f"{_ALIASES[minor]}_{cpu}")
    return [*tags, f"linux_{cpu}"]
