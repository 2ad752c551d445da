"""The CPUs of a replica and the layout of its server, from the plan in the wheel and the rows it was chosen from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpupack.errors import UsageError
from cpupack.runtime.capacity.planning import HTTP_MS, Candidate, highest_load
from cpupack.runtime.capacity.profiles import Profile, profiles
from cpupack.runtime.manifest import Manifest


@dataclass(frozen=True)
class Shape:
    """A replica: ``cpus`` whole CPUs, and the layout, None where the server decides it on its host.

    ``carries_per_s`` is the rate of tensors within the promise by the build's measurements, None where nothing says.
    ``why`` is a sentence for people.
    """

    cpus: int
    threads: int | None
    instances: int | None
    batch_size: int | None
    carries_per_s: float | None
    why: str


def choose_shape(
    manifest: Manifest, rows: Sequence[dict[str, Any]], cpus: int | None, max_latency_ms: float | None
) -> Shape:
    """Return the shape of a replica. ``rows`` are the build's measurements of layouts.

    With a promise it is the layout that carries most within it, without one the wheel's plan. ``cpus`` changes how many
    instances there are. Raises UsageError for a promise that no layout holds, for CPUs that the plan's threads do not
    divide, and where neither the plan nor the user names the CPUs.
    """
    plan = manifest.plan
    built_on = f"measured at the build on {(manifest.build.get('host') or {}).get('cpu', 'a CPU that is not recorded')}"
    if max_latency_ms is not None and rows:
        return _within(profiles(rows), cpus, max_latency_ms, built_on)
    if not plan.tuned or plan.threads is None or plan.instances is None:
        if cpus is None:
            raise UsageError(
                "the wheel has no tuned plan, so nothing says how many CPUs a replica needs",
                hint="name --cpus, or build the wheel without --no-tune on a CPU like the cluster's",
            )
        return Shape(cpus, None, None, None, None, "the server decides its layout: the wheel was not tuned")
    threads, instances = plan.threads, plan.instances
    if cpus is not None:
        if cpus % threads:
            raise UsageError(
                f"--cpus {cpus}: an instance of the wheel's plan has {threads} threads",
                hint=f"choose a multiple of {threads}",
            )
        instances = cpus // threads
    return Shape(
        threads * instances, threads, instances, plan.batch_size, None, f"the plan of the wheel, {built_on}"
    )  # fmt: skip


def _within(measured: Sequence[Profile], cpus: int | None, max_latency_ms: float, built_on: str) -> Shape:
    """Return the layout that carries most within the promise, for a CPU of a replica the most where none are given."""
    candidates = list(measured)
    if cpus is not None:
        # Times of calls hold for fewer instances, too: each has more of the host's memory bandwidth then.
        candidates = [
            dataclasses.replace(one, instances=cpus // one.threads)
            for one in measured
            if cpus % one.threads == 0 and cpus // one.threads <= one.instances
        ]
        if not candidates:
            most = max(one.threads * one.instances for one in measured)
            raise UsageError(
                f"--cpus {cpus}: the build measured no layout of so many CPUs, {most} at most, so nothing says what "
                f"they carry within --max-latency-ms",
                hint=f"choose up to {most} CPUs a replica and more replicas",
            )
    best: Candidate | None = highest_load(candidates, max_latency_ms - HTTP_MS)
    if best is None:
        fastest = min(call.p99_ms for one in candidates for call in one.calls) + HTTP_MS
        raise UsageError(
            f"--max-latency-ms {max_latency_ms:g} cannot be held: one request takes {fastest:.3g} ms ({built_on})",
            hint='promise more, or tune with objective = "latency", or build a faster model',
        )
    return Shape(
        best.cores,
        best.threads,
        best.instances,
        best.batch_size,
        best.rate_per_s,
        f"{best} carries {best.rate_per_s:.0f} tensors a second within {max_latency_ms:g} ms, {built_on}",
    )
