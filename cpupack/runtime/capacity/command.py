"""``NAME plan``: which setting carries a rate of requests within a latency bound here, or how many hosts would.

It measures nothing. The rows of the tuned table (``NAME tune``) say how long calls take, and ``queueing.py`` computes
how long requests then wait.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bench.options import positive_seconds, require_positive
from ..errors import InputError
from ..host.probe import HostProbe
from ..manifest import read_manifest
from . import fleet as fleets
from .fleet import Fleet, FleetOptions, Job
from .planning import MAX_UTILISATION, MODEL, Candidate, CapacityPlan, plan_capacity
from .profiles import measured_rows, profiles

_TEXT_WIDTH = 90


@dataclass(frozen=True)
class CapacityOptions:
    """The rate in requests a second and the bound on their p99. Raises InputError for one that is not above 0.

    ``fleet`` asks for replicas behind a balancer, None for this host alone.
    """

    rate_per_s: float
    max_latency_ms: float
    fleet: FleetOptions | None = None

    def __post_init__(self) -> None:
        require_positive("--rate", self.rate_per_s)
        require_positive("--max-latency-ms", self.max_latency_ms)


@dataclass(frozen=True)
class CapacityResult:
    """The plan, and the facts that it is based on.

    ``source`` says where the call times come from, and ``disturbed`` which share of their measurements other work
    disturbed. ``check`` is the command that measures the plan, None without a setting.
    """

    plan: CapacityPlan
    source: str
    disturbed: float
    check: str | None
    cores_usable: int
    name: str
    version: str
    options: FleetOptions | None = None
    fleets: tuple[Fleet, ...] = ()
    job: Job | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``plan --json`` prints."""
        plan = self.plan
        return {
            "rate_per_s": plan.rate_per_s,
            "max_latency_ms": plan.max_latency_ms,
            "max_utilisation": MAX_UTILISATION,
            "model": MODEL,
            "feasible": plan.feasible,
            "setting": None if plan.setting is None else asdict(plan.setting),
            "hosts": plan.hosts,
            "peak_per_s": plan.peak_per_s,
            "reasons": list(plan.reasons),
            "source": self.source,
            "disturbed": self.disturbed,
            "check": self.check,
            "host": {"cores_usable": self.cores_usable},
            "manifest": {"name": self.name, "version": self.version},
            "fleet": self._fleet(),
        }

    def _fleet(self) -> dict[str, Any] | None:
        if self.options is None or self.job is None:
            return None
        return {
            "chosen": self.fleets[0].to_dict() if self.fleets else None,
            "others": [each.to_dict() for each in self.fleets[1:]],
            "job": asdict(self.job),
            "decode_ms": self.options.decode_ms,
            "cost_per_cpu_hour": self.options.cost_per_cpu_hour,
            "model": fleets.MODEL,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``NAME plan``."""
    parser.add_argument(
        "--rate", type=positive_seconds, required=True, metavar="PER_S", help="requests a second, one sample each"
    )
    parser.add_argument(
        "--max-latency-ms", type=positive_seconds, required=True, metavar="MS",
        help="bound on the p99 from arrival to answer",
    )  # fmt: skip
    default = FleetOptions()
    add = parser.add_argument_group("fleet").add_argument
    add("--fleet", action="store_true", help="say how many replicas of which shape carry the rate behind a balancer")
    add("--spare", type=int, metavar="N", help=f"replicas that may fail at once (default: {default.spare})")
    add("--decode-ms", type=float, metavar="MS", help="time to decode a request's image; `serve --plan` prints it")
    add("--cost-per-cpu-hour", type=float, metavar="PRICE", help="price of a CPU for an hour, in any currency")
    add("--images", type=float, metavar="N", help=f"samples of one large job to estimate (default: {default.images:g})")


def from_arguments(args: argparse.Namespace) -> CapacityOptions:
    """Return the options that ``args`` hold (of a parser with ``add_arguments``). Raises InputError."""
    names = ("spare", "decode_ms", "cost_per_cpu_hour", "images")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and not args.fleet:
        raise InputError(f"--{next(iter(given)).replace('_', '-')} needs --fleet")
    return CapacityOptions(args.rate, args.max_latency_ms, FleetOptions(**given) if args.fleet else None)


def run(package_dir: Path, options: CapacityOptions) -> CapacityResult:
    """Plan for this host. Raises InputError when nothing was tuned on a host like this."""
    manifest = read_manifest(package_dir)
    probe = HostProbe()
    rows, source = measured_rows(package_dir, manifest, os.environ, probe)
    measured = profiles(rows)
    plan = plan_capacity(measured, options.rate_per_s, options.max_latency_ms)
    found: tuple[Fleet, ...] = ()
    if options.fleet is not None:
        found = fleets.plan_fleet(measured, options.rate_per_s, options.max_latency_ms, options.fleet)
    return CapacityResult(
        plan=plan,
        source=source,
        disturbed=sum(bool(row.get("disturbed")) for row in rows) / len(rows),
        check=None if plan.setting is None else _check(manifest.name, plan.setting, options.max_latency_ms),
        cores_usable=probe.budget().usable,
        name=manifest.name,
        version=manifest.version,
        options=options.fleet,
        fleets=found,
        job=None if options.fleet is None else fleets.job(measured, options.fleet, found[0] if found else None),
    )


def _check(name: str, setting: Candidate, max_latency_ms: float) -> str:
    return (
        f"{name} bench --scenario server --rate {setting.rate_per_s:g} --max-latency-ms {max_latency_ms:g} "
        f"--threads {setting.threads} --instances {setting.instances} --batch-size {setting.batch_size}"
    )


def format_plan(answer: Mapping[str, Any]) -> str:
    """Return a result (the object of ``plan --json``) as lines for a terminal."""
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
            ("p99", f"{chosen.p99_ms:.1f} ms; requests wait {chosen.waiting_ms:.1f} ms on average"),
        ]
    rows += [("this host", f"at most {answer['peak_per_s']:,.1f}/s within the bound")]
    rows += [("why" if not number else "", reason) for number, reason in enumerate(answer["reasons"])]
    rows += [("calls", answer["source"]), ("model", answer["model"])]
    if answer["disturbed"] > 0:
        rows.append(("caution", f"other work disturbed {answer['disturbed']:.0%} of the measurements"))
    rows += _fleet_rows(answer)
    if answer["check"]:
        rows.append(("check it", answer["check"]))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        # The command stays on one line, so that it can be copied.
        parts = [text] if name == "check it" else textwrap.wrap(text, _TEXT_WIDTH, break_on_hyphens=False)
        lines += [f"  {label:<{width}}  {part}" for label, part in zip([name, *[""] * len(parts)], parts, strict=False)]
    return "\n".join(lines)


def _fleet_rows(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what ``--fleet`` found, none without it."""
    fleet = answer["fleet"]
    if fleet is None:
        return []
    rows = []
    chosen = fleet["chosen"]
    if chosen is None:
        rows.append(("fleet", "no number of replicas holds the bound: one request alone takes longer"))
    else:
        rows.append(("fleet", _fleet_text(chosen)))
        each, degraded = Candidate(**chosen["each"]), Candidate(**chosen["degraded"])
        rows.append(
            ("a replica", f"{each}; {each.rate_per_s:.1f}/s, {each.utilisation:.0%} busy, p99 {each.p99_ms:.1f} ms")
        )
        if chosen["spare"]:
            rows.append((
                f"{chosen['spare']} failed",
                f"{degraded.rate_per_s:.1f}/s each, {degraded.utilisation:.0%} busy, p99 {degraded.p99_ms:.1f} ms",
            ))  # fmt: skip
    rows += [("or" if not number else "", _fleet_text(other)) for number, other in enumerate(fleet["others"])]
    job = fleet["job"]
    cost = "" if job["cost"] is None else f", {job['cost']:,.2f} at {fleet['cost_per_cpu_hour']:g} for each"
    hours = "" if job["hours_on_fleet"] is None else f"; {job['hours_on_fleet']:,.1f} h on this fleet"
    speed = f"{job['cpu_hours']:,.1f} CPU hours ({job['per_cpu_per_s']:,.1f}/s a CPU)"
    rows.append(("one job", f"{job['images']:,.0f} samples: {speed}{cost}{hours}"))
    decoding = f"decoding takes {fleet['decode_ms']:g} ms a request"
    rows.append(("", decoding if fleet["decode_ms"] else "requests are tensors; --decode-ms is for images"))
    return [*rows, ("model of it", fleet["model"])]


def _fleet_text(fleet: Mapping[str, Any]) -> str:
    cost = "" if fleet["cost_per_hour"] is None else f", {fleet['cost_per_hour']:,.2f} an hour"
    size = fleet["cpus_of_a_replica"]
    replicas = f"{fleet['replicas']:,} replicas of {size} CPU{'' if size == 1 else 's'} ({fleet['spare']} spare)"
    return f"{replicas}, {fleet['cpus']:,} CPUs{cost}"
