"""``NAME plan``: which setting carries a rate of requests within a latency bound here, or how many hosts would.

It measures nothing: the rows of the tuned table say how long calls take (``NAME tune``), ``queueing.py`` how long
requests then wait.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ..bench.options import positive_seconds
from ..bench.server import shapes_up_to
from ..errors import InputError, IntegrityError
from ..files import TUNE_NAME
from ..host.probe import HostProbe
from ..manifest import Manifest, read_manifest
from ..plan import table
from .queueing import REQUESTS, simulate

MAX_UTILISATION = 0.8
"""Share of what the instances can do at most: beyond it a little more load means much longer queues."""
_TEXT_WIDTH = 90
_RATE_STEP = 0.01
"""How close the highest rate is looked for, as a share of the rate at full utilisation."""

MODEL = (
    f"random (Poisson) arrivals; a free instance takes what waits, up to the batch size, as `bench --scenario server` "
    f"does; calls take the tuned time, which is the queue M/D/c at batch 1; {REQUESTS:,} requests simulated; what the "
    f"p99 of a call is above its mean is added; at most {MAX_UTILISATION:.0%} utilisation"
)


@dataclass(frozen=True)
class CallTime:
    """Time of one call of ``size`` samples with all instances of a layout busy."""

    size: int
    mean_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Profile:
    """What was measured of one layout: call times by ascending size."""

    threads: int
    instances: int
    calls: tuple[CallTime, ...]

    def call_ms(self, size: int) -> float:
        """Return the mean time of a call: measured, interpolated, or that of the next larger size that was measured."""
        for smaller, larger in pairwise(self.calls):
            if smaller.size <= size <= larger.size:
                share = (size - smaller.size) / (larger.size - smaller.size)
                return smaller.mean_ms + share * (larger.mean_ms - smaller.mean_ms)
        return next(call.mean_ms for call in self.calls if call.size >= size)


@dataclass(frozen=True)
class Candidate:
    """A setting under a load. ``utilisation`` is the share of ``capacity_per_s``, ``p99_ms`` from arrival to answer.

    ``waiting_ms`` is the mean time until a call begins.
    """

    threads: int
    instances: int
    batch_size: int
    rate_per_s: float
    capacity_per_s: float
    utilisation: float
    waiting_ms: float
    p99_ms: float

    @property
    def cores(self) -> int:
        return self.threads * self.instances

    def __str__(self) -> str:
        instances = f"{self.instances} instance{'s' * (self.instances != 1)}"
        return f"{instances} x {self.threads} thread{'s' * (self.threads != 1)}, batch up to {self.batch_size}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``NAME plan``."""
    parser.add_argument(
        "--rate", type=positive_seconds, required=True, metavar="PER_S", help="requests a second, one sample each"
    )
    parser.add_argument(
        "--max-latency-ms", type=positive_seconds, required=True, metavar="MS",
        help="bound on the p99 from arrival to answer",
    )  # fmt: skip


def run(package_dir: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Answer for ``args`` (of ``add_arguments``).

    Returns rate_per_s, max_latency_ms, feasible (on this host), setting (of one host: the fields of ``Candidate``, or
    None where no number of hosts would do), hosts, peak_per_s (the highest rate of this host within the bound),
    max_utilisation, reasons, model, source, disturbed (the share of measurements that other work disturbed), check (the
    command that measures it) and host (cores_usable). Raises InputError when nothing was tuned on a host like this.
    """
    manifest = read_manifest(package_dir)
    probe = HostProbe()
    rows, source = measured_rows(package_dir, manifest, os.environ, probe)
    answer = plan_capacity(profiles(rows), args.rate, args.max_latency_ms)
    setting = answer["setting"]
    check = None
    if setting is not None:
        check = (
            f"{manifest.name} bench --scenario server --rate {setting['rate_per_s']:g} "
            f"--max-latency-ms {args.max_latency_ms:g} --threads {setting['threads']} "
            f"--instances {setting['instances']} --batch-size {setting['batch_size']}"
        )
    return {
        **answer,
        "source": source,
        "disturbed": sum(bool(row.get("disturbed")) for row in rows) / len(rows),
        "check": check,
        "host": {"cores_usable": probe.budget().usable},
        "manifest": {"name": manifest.name, "version": manifest.version},
    }


def measured_rows(
    package_dir: Path, manifest: Manifest, environ: Mapping[str, str], probe: HostProbe
) -> tuple[list[dict[str, Any]], str]:
    """Return the rows that hold on this host, and where they come from: its own table, else the wheel's.

    Raises InputError when neither was made on this CPU with as many cores.
    """
    refused = []
    found = table.find_table(manifest, environ, probe)
    if found.table is None:
        refused.append("there is no host-tuned table")
    elif found.problem is not None:
        refused.append(f"the host-tuned table does not hold: {found.problem}")
    elif rows := _complete(found.table.rows):
        return rows, f"tuned on this host ({found.path})"
    built_on = manifest.build.get("host") or {}
    problem = table.mismatch(built_on, built_on.get("cores_usable"), probe)
    if not manifest.plan.tuned:
        refused.append("the build tuned nothing")
    elif problem is not None:
        refused.append(f"the build's table does not hold: {problem}")
    elif rows := _complete(_build_rows(package_dir)):
        return rows, "tuned at build time on an equal CPU"
    raise InputError(f"nothing to plan with: {'; '.join(refused)}; run `{manifest.name} tune` first")


def profiles(rows: Sequence[Mapping[str, Any]]) -> list[Profile]:
    """Return a profile for each layout in ``rows``; of repeated measurements the median counts."""
    by_layout: dict[tuple[int, int], dict[int, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_layout[row["threads"], row["instances"]][row["batch_size"]].append(row)
    return [
        Profile(threads, instances, tuple(_call_time(size, instances, sizes[size]) for size in sorted(sizes)))
        for (threads, instances), sizes in sorted(by_layout.items())
    ]


def plan_capacity(measured: Sequence[Profile], rate_per_s: float, max_latency_ms: float) -> dict[str, Any]:
    """Return the answer of ``run`` without what it adds about the host."""
    found = [
        candidate
        for profile in measured
        for call in profile.calls
        if (candidate := _fewest_instances(profile, call, rate_per_s, max_latency_ms)) is not None
    ]
    answer = {
        "rate_per_s": rate_per_s,
        "max_latency_ms": max_latency_ms,
        "max_utilisation": MAX_UTILISATION,
        "model": MODEL,
    }
    best, peak = min(found, key=_cost, default=None), _peak(measured, max_latency_ms)
    if best is not None:
        reasons = [f"{best} is the least that does: {_why(best)}.", *_alternatives(best, found, measured)]
        return {
            **answer,
            "feasible": True,
            "setting": asdict(best),
            "hosts": 1,
            "peak_per_s": max(rate_per_s, peak.rate_per_s if peak else 0.0),
            "reasons": reasons,
        }
    if peak is None:
        fastest = min((call for one in measured for call in one.calls), key=lambda call: call.p99_ms)
        reason = (
            f"The fastest call measured, of {fastest.size} samples, has a p99 of {fastest.p99_ms:.1f} ms even without "
            "waiting: no number of hosts helps. Smaller batches or more threads may: tune with --objective latency."
        )
        return {**answer, "feasible": False, "setting": None, "hosts": None, "peak_per_s": 0.0, "reasons": [reason]}
    profile = next(one for one in measured if (one.threads, one.instances) == (peak.threads, peak.instances))
    hosts, each = _hosts(peak, profile, rate_per_s, max_latency_ms)
    reasons = [
        f"This host carries {peak.rate_per_s:.1f}/s at most: {peak}, {_why(peak)}.",
        f"{hosts} hosts like this carry {rate_per_s:g}/s, {rate_per_s / hosts:.1f}/s each: {_why(each)}.",
    ]
    return {
        **answer,
        "feasible": False,
        "setting": asdict(each),
        "hosts": hosts,
        "peak_per_s": peak.rate_per_s,
        "reasons": reasons,
    }


def format_plan(answer: Mapping[str, Any]) -> str:
    """Return the answer as lines for a terminal."""
    setting = answer["setting"]
    asked = f"{answer['rate_per_s']:g} requests/s with a p99 of at most {answer['max_latency_ms']:g} ms"
    if answer["feasible"]:
        lines = [f"{asked}: yes, on this host"]
    elif setting is not None:
        lines = [f"{asked}: not on this host; on {answer['hosts']} like it"]
    else:
        lines = [f"{asked}: no"]
    rows = []
    if setting is not None:
        chosen = Candidate(**setting)
        rows += [
            ("setting", f"{chosen}" + ("" if answer["feasible"] else " (each host)")),
            ("cores", f"{chosen.cores} of {answer['host']['cores_usable']} usable"),
            ("utilisation", f"{chosen.utilisation:.0%} of {chosen.capacity_per_s:,.1f}/s"),
            ("p99", f"{chosen.p99_ms:.1f} ms, of it {chosen.waiting_ms:.1f} ms waiting on average"),
        ]
    rows += [("this host", f"at most {answer['peak_per_s']:,.1f}/s within the bound")]
    rows += [("why" if not number else "", reason) for number, reason in enumerate(answer["reasons"])]
    rows += [("calls", answer["source"]), ("model", answer["model"])]
    if answer["disturbed"] > 0:
        rows.append(("caution", f"other work disturbed {answer['disturbed']:.0%} of the measurements"))
    if answer["check"]:
        rows.append(("check it", answer["check"]))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        # The command to check it with stays on one line, to be copied.
        parts = [text] if name == "check it" else textwrap.wrap(text, _TEXT_WIDTH, break_on_hyphens=False)
        lines += [f"  {label:<{width}}  {part}" for label, part in zip([name, *[""] * len(parts)], parts, strict=False)]
    return "\n".join(lines)


def _complete(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the rows of finished measurements."""
    return [row for row in rows if isinstance(row, dict) and "error" not in row and row.get("throughput_per_s")]


def _build_rows(package_dir: Path) -> list[Any]:
    path = package_dir / TUNE_NAME
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"cannot read {path}: {error}; reinstall the package") from error
    return list(rows)


def _call_time(size: int, instances: int, rows: Sequence[Mapping[str, Any]]) -> CallTime:
    # The time between two calls of an instance, which is what its capacity follows from.
    mean_ms = 1000.0 * size * instances / median(float(row["throughput_per_s"]) for row in rows)
    return CallTime(size, mean_ms, max(mean_ms, median(float(row["latency_ms"]["p99"]) for row in rows)))


def _fewest_instances(profile: Profile, call: CallTime, rate_per_s: float, max_latency_ms: float) -> Candidate | None:
    """Return the setting with the fewest instances that does it in batches of at most ``call.size``, None if none does.

    With fewer instances busy than were measured each is at least as fast, so the measured times hold as bounds.
    """
    low = math.ceil(rate_per_s * call.mean_ms / 1000.0 / call.size / MAX_UTILISATION)
    high = profile.instances
    if low > high:
        return None
    best = _under(profile, high, call.size, rate_per_s)
    if best.p99_ms > max_latency_ms:
        return None
    low = max(1, low)
    while low < high:
        middle = (low + high) // 2
        tried = _under(profile, middle, call.size, rate_per_s)
        if tried.p99_ms <= max_latency_ms:
            best, high = tried, middle
        else:
            low = middle + 1
    return best


def _peak(measured: Sequence[Profile], max_latency_ms: float) -> Candidate | None:
    """Return the setting that carries the highest rate within the bound, at that rate; None where none carries any."""
    best: Candidate | None = None
    pairs = [(profile, call) for profile in measured for call in profile.calls]
    for profile, call in sorted(pairs, key=lambda pair: _saturated_per_s(*pair), reverse=True):
        most_per_s = MAX_UTILISATION * _saturated_per_s(profile, call)
        if best is not None and most_per_s <= best.rate_per_s:
            break
        found = _highest_rate(profile, call.size, most_per_s, max_latency_ms)
        if found is not None and (best is None or found.rate_per_s > best.rate_per_s):
            best = found
    return best


def _highest_rate(profile: Profile, size: int, most_per_s: float, max_latency_ms: float) -> Candidate | None:
    """Return the highest rate up to ``most_per_s`` within the bound, by bisection."""
    at_most = _under(profile, profile.instances, size, most_per_s)
    if at_most.p99_ms <= max_latency_ms:
        return at_most
    best = None
    low, high = 0.0, most_per_s
    while high - low > _RATE_STEP * most_per_s:
        middle = (low + high) / 2
        tried = _under(profile, profile.instances, size, middle)
        if tried.p99_ms <= max_latency_ms:
            best, low = tried, middle
        else:
            high = middle
    return best


def _under(profile: Profile, instances: int, size: int, rate_per_s: float) -> Candidate:
    """Return the setting at a rate, as the queueing model has it."""
    of_size = next(call for call in profile.calls if call.size == size)
    call_s = {shape: profile.call_ms(shape) / 1000.0 for shape in shapes_up_to(size)}
    queue = simulate(rate_per_s, instances, call_s)
    capacity_per_s = 1000.0 * size * instances / of_size.mean_ms
    return Candidate(
        threads=profile.threads,
        instances=instances,
        batch_size=size,
        rate_per_s=rate_per_s,
        capacity_per_s=capacity_per_s,
        utilisation=rate_per_s / capacity_per_s,
        waiting_ms=1000.0 * float(np.mean(queue.waiting_s)),
        p99_ms=1000.0 * float(np.percentile(queue.latency_s, 99)) + of_size.p99_ms - of_size.mean_ms,
    )


def _hosts(peak: Candidate, profile: Profile, rate_per_s: float, max_latency_ms: float) -> tuple[int, Candidate]:
    """Return how many hosts share the rate evenly within the bound, and one of them."""
    for hosts in itertools.count(math.ceil(rate_per_s / peak.rate_per_s)):
        each = _under(profile, peak.instances, peak.batch_size, min(rate_per_s / hosts, peak.rate_per_s))
        if each.p99_ms <= max_latency_ms:
            break
    return hosts, each


def _saturated_per_s(profile: Profile, call: CallTime) -> float:
    return 1000.0 * call.size * profile.instances / call.mean_ms


def _cost(candidate: Candidate) -> tuple[int, int, float]:
    """Return what to keep small: cores first, then the batch, then the latency."""
    return candidate.cores, candidate.batch_size, candidate.p99_ms


def _why(candidate: Candidate) -> str:
    if candidate.utilisation >= 1.0:
        return f"overloaded, {candidate.rate_per_s:g}/s for {candidate.capacity_per_s:.1f}/s"
    return f"utilisation {candidate.utilisation:.0%}, p99 {candidate.p99_ms:.1f} ms"


def _alternatives(best: Candidate, found: Sequence[Candidate], measured: Sequence[Profile]) -> list[str]:
    """Return a sentence on one instance less, and one on the setting of lowest latency when that is another one."""
    reasons = []
    if best.instances > 1:
        full = next(
            one
            for one in measured
            if one.threads == best.threads
            and one.instances >= best.instances
            and any(call.size == best.batch_size for call in one.calls)
        )
        fewer = _under(full, best.instances - 1, best.batch_size, best.rate_per_s)
        reasons.append(f"With one instance less: {_why(fewer)}.")
    quickest = min(found, key=lambda one: one.p99_ms)
    if quickest.p99_ms < 0.9 * best.p99_ms:
        reasons.append(f"{quickest} would answer sooner: {_why(quickest)}.")
    return reasons
