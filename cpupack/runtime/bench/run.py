"""The bench that ships in the wheel: measures the package on this host and judges its own result.

The builder's tuner runs exactly this, in fresh processes; what is measured is what ships.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..engine.contract import check_cpu, model_path, require_torch
from ..errors import InputError
from ..host import probe as host_probe
from ..host.cgroup import read_text
from ..host.probe import HostProbe
from ..manifest import Manifest, check_files, read_manifest
from ..plan import decide as plan_decide
from ..plan.decide import Plan
from . import compare as bench_compare
from . import feeds, options, peak, server
from .feeds import Feed, make_batches
from .measure import WINDOWS, measure, measure_server, warm_up
from .options import add_arguments, positive_int, positive_seconds
from .scenarios import QUERY_SAMPLES, SCENARIOS, WallClock
from .server import Load
from .text import format_table, setting_text
from .verdict import other_place

__all__ = [
    "WINDOWS", "add_arguments", "format_table", "make_batches", "measure", "measure_server", "positive_int",
    "positive_seconds", "process_age_ms", "run", "setting_text", "warm_up",
]  # fmt: skip

DEFAULT_DURATION_S = 5.0


def run(
    package_dir: Path, args: argparse.Namespace, on_note: Callable[[str], None] = lambda _note: None
) -> dict[str, Any]:
    """Bench the package as ``args`` (of ``add_arguments``) say. Returns the contract's fields.

    Besides those of ``measure``: threads, instances, plan (reasons), cold_start_ms {import, load, first_call,
    total}, peak_memory_bytes, memory_per_instance_bytes, memory_shared_bytes (of one set of weights), input,
    input_data, seed, host, manifest; with ``--find-peak`` peak, with ``--loadgen`` loadgen, with ``--compare``
    comparison. ``on_note`` hears of progress. Raises RunnerError.
    """
    options.check(args)
    manifest = read_manifest(package_dir)
    check_cpu(manifest)
    check_files(package_dir, manifest)
    probe = HostProbe()
    decided = decide(manifest, args, probe)
    # What can be wrong with files is found before anything is measured.
    reference = None if args.compare is None else bench_compare.read_reference(args.compare, package_dir, manifest)
    files = None if args.source is None else feeds.list_images(args.source, manifest)
    if args.loadgen:
        from . import loadgen

        loadgen.check_installed()

    require_torch(manifest, model_path(package_dir, manifest))
    imported_ms = process_age_ms()
    feed: AbstractContextManager[Feed]
    if files is None:
        feed = feeds.open_made_up(package_dir, manifest, decided, args.seed)
    else:
        feed = feeds.open_files(package_dir, decided, args.source, files, args.seed)
    loading = time.perf_counter()
    with feed as opened:
        load_ms = (time.perf_counter() - loading) * 1000.0
        measured = _measure(opened, manifest, decided, args, probe, on_note)
        instances = opened.instances
        memory = (instances.memory_per_instance_bytes, instances.shared_bytes)
    first_call_ms = measured.pop("first_call_ms")
    here = host_probe.describe(probe, engine=manifest.target["engine"])
    reasons = [
        *measured["invalid_reasons"],
        *other_place(here, manifest.build.get("host") or {}, manifest.torch.get("version")),
    ]
    result = {
        **measured,
        "valid": not reasons,
        "invalid_reasons": reasons,
        "threads": decided.threads,
        "instances": decided.instances,
        "plan": decided.reasons,
        "cold_start_ms": {
            "import": imported_ms,
            "load": load_ms,
            "first_call": first_call_ms,
            "total": imported_ms + load_ms + first_call_ms,
        },
        "peak_memory_bytes": probe.peak_memory_bytes(),
        "memory_per_instance_bytes": memory[0],
        "memory_shared_bytes": memory[1],
        "input": opened.kind,
        "input_data": opened.text,
        "seed": args.seed,
        "host": {**here, "cpu_mhz": measured["cpu_mhz"]["end"]},
        "manifest": {
            "name": manifest.name,
            "version": manifest.version,
            "engine": manifest.target["engine"],
            "isa": manifest.target.get("isa"),
            "random_weights": manifest.random_weights,
            "torch": manifest.torch.get("version"),
        },
    }
    if reference is not None:
        result["comparison"] = bench_compare.compare(result, reference)
    return result


def decide(manifest: Manifest, args: argparse.Namespace, probe: HostProbe) -> Plan:
    """Return the plan for the scenario: the host's, but for multi-stream one query is spread over the instances."""
    wish = {"threads": args.threads, "instances": args.instances, "batch_size": args.batch_size}
    if args.scenario != "multi-stream":
        objective = SCENARIOS[args.scenario].objective if args.scenario in SCENARIOS else None
        return plan_decide.decide(manifest, **wish, objective=objective, probe=probe)
    decided = plan_decide.decide(manifest, **wish, probe=probe)
    instances = min(decided.instances, QUERY_SAMPLES)
    if instances != decided.instances:
        decided = plan_decide.decide(manifest, **{**wish, "instances": instances}, probe=probe)
        why = f"multi-stream: a query has {QUERY_SAMPLES} samples."
        decided = dataclasses.replace(decided, reasons={**decided.reasons, "instances": why})
    if args.batch_size is not None:
        return decided
    why = f"multi-stream: the {QUERY_SAMPLES} samples of a query over {instances} instance{'s' * (instances != 1)}."
    reasons = {**decided.reasons, "batch_size": why}
    return dataclasses.replace(decided, batch_size=math.ceil(QUERY_SAMPLES / instances), reasons=reasons)


def _measure(
    feed: Feed,
    manifest: Manifest,
    decided: Plan,
    args: argparse.Namespace,
    probe: HostProbe,
    on_note: Callable[[str], None],
) -> dict[str, Any]:
    clock, size = WallClock(), decided.batch_size
    duration_s = args.duration or manifest.bench.get("duration_s") or DEFAULT_DURATION_S
    bound = args.max_latency_ms or manifest.plan.max_latency_ms
    if args.loadgen:
        from . import loadgen

        wish = loadgen.Wish(args.scenario, duration_s, args.seed, args.rate, bound, args.loadgen_out)
        return loadgen.measure(feed, size, wish, args.warmup, clock, probe)
    if args.scenario != server.NAME:
        return measure(
            feed.pool, feed.batches_of(size), size, SCENARIOS[args.scenario], duration_s, args.warmup, clock, probe
        )
    cuts = {shape: feed.batches_of(shape) for shape in server.shapes_up_to(size)}
    if not args.find_peak:
        load = Load(args.rate, duration_s, args.seed, bound)
        return measure_server(feed.pool, cuts, load, args.warmup, clock, probe)
    if bound is None:
        raise InputError("--find-peak needs --max-latency-ms; the plan has no bound of its own")

    capacity = measure(feed.pool, cuts[size], size, SCENARIOS["offline"], peak.CAPACITY_S, args.warmup, clock, probe)

    warmup_s: float | None = args.warmup

    def try_rate(rate_per_s: float, attempt: int) -> dict[str, Any]:
        nonlocal warmup_s
        # Without a wish, as long as it takes to see enough requests.
        enough_s = 0.0 if args.duration else 1.1 * server.MIN_REQUESTS / rate_per_s
        load = Load(rate_per_s, max(duration_s, enough_s), args.seed + attempt, bound, stop_when_failed=True)
        tried = measure_server(feed.pool, cuts, load, warmup_s, clock, probe)
        warmup_s = None
        on_note(peak.row_text(peak.row(tried)))
        return tried

    found = peak.find_peak(try_rate, capacity["throughput_per_s"])
    return {**found, "first_call_ms": capacity["first_call_ms"]}


def process_age_ms() -> float:
    """Return the time since the kernel started this process, to 10 ms (proc(5), field 22 of stat)."""
    text = read_text(Path("/proc/self/stat"))
    if text is None:
        return time.process_time() * 1000.0
    started_ticks = int(text.rpartition(")")[2].split()[19])
    ticks_per_s = 100  # USER_HZ, the unit of this file on every architecture torch runs on
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / ticks_per_s) * 1000.0
