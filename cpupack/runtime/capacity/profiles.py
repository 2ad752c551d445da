"""Call times of each layout, from the rows of a tuned table that holds on this host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import InputError
from ..host.probe import HostProbe
from ..manifest import Manifest, build_rows
from ..plan import table


@dataclass(frozen=True)
class CallTime:
    """Time of one call of ``size`` samples while all instances of the layout are busy."""

    size: int
    mean_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Profile:
    """The call times of one layout, by ascending size."""

    threads: int
    instances: int
    calls: tuple[CallTime, ...]

    def call_ms(self, size: int) -> float:
        """Return the mean time of a call: interpolated, or that of the smallest measured size for a smaller one."""
        for smaller, larger in pairwise(self.calls):
            if smaller.size <= size <= larger.size:
                share = (size - smaller.size) / (larger.size - smaller.size)
                return smaller.mean_ms + share * (larger.mean_ms - smaller.mean_ms)
        return next(call.mean_ms for call in self.calls if call.size >= size)


def measured_rows(
    package_dir: Path, manifest: Manifest, environ: Mapping[str, str], probe: HostProbe
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows that hold on this host and where they come from: this host's own table, else the wheel's.

    Raises InputError when neither was made on this CPU with the same number of cores.
    """
    refused = []
    found = table.find_table(manifest, environ, probe)
    if found.table is None:
        refused.append("there is no host-tuned table")
    elif found.problem is not None:
        refused.append(f"the host-tuned table does not hold: {found.problem}")
    elif rows := complete(found.table.rows):
        return rows, f"tuned on this host ({found.path})"
    built_on = manifest.build.get("host") or {}
    problem = table.mismatch(built_on, built_on.get("cores_usable"), probe)
    if not manifest.plan.tuned:
        refused.append("the build tuned nothing")
    elif problem is not None:
        refused.append(f"the build's table does not hold: {problem}")
    elif rows := complete(build_rows(package_dir)):
        return rows, "tuned at build time on an equal CPU"
    raise InputError(f"nothing to plan with: {'; '.join(refused)}; run `{manifest.name} tune` first")


def profiles(rows: Sequence[Mapping[str, Any]]) -> list[Profile]:
    """Return a profile for each layout in ``rows``, with the median of repeated measurements."""
    by_layout: dict[tuple[int, int], dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_layout[row["threads"], row["instances"]][row["batch_size"]].append(row)
    return [
        Profile(threads, instances, tuple(_call_time(size, instances, sizes[size]) for size in sorted(sizes)))
        for (threads, instances), sizes in sorted(by_layout.items())
    ]


def complete(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the rows of measurements that succeeded."""
    return [row for row in rows if isinstance(row, dict) and "error" not in row and row.get("throughput_per_s")]


def _call_time(size: int, instances: int, rows: Sequence[Mapping[str, Any]]) -> CallTime:
    # This is the time between two calls of an instance, because that limits its capacity.
    mean_ms = 1000.0 * size * instances / median(float(row["throughput_per_s"]) for row in rows)
    return CallTime(size, mean_ms, max(mean_ms, median(float(row["latency_ms"]["p99"]) for row in rows)))
