"""The bench that ships in the wheel: measures the package on this host and judges its own result.

The builder's tuner runs this same code in fresh processes, so what is measured is what ships.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..engine.contract import check_cpu, model_path, require_torch
from ..engine.program import is_program
from ..errors import InputError
from ..host import probe as host_probe
from ..host.cgroup import read_text
from ..host.probe import HostProbe
from ..manifest import Manifest, check_files, read_manifest
from ..plan import decide as plan_decide
from ..plan.decide import Plan
from . import compare as bench_compare
from . import feeds, peak, server
from .feeds import Feed
from .measure import measure, measure_server
from .options import BenchOptions
from .results import BenchResult, ColdStart, Measurement, PackageFacts
from .scenarios import QUERY_SAMPLES, SCENARIOS, WallClock
from .server import Load
from .start import measure_start
from .verdict import other_place

DEFAULT_DURATION_S = 5.0


def run(package_dir: Path, options: BenchOptions, on_note: Callable[[str], None] = lambda _note: None) -> BenchResult:
    """Bench the package in ``package_dir``. ``on_note`` hears of progress. Raises RunnerError."""
    manifest = read_manifest(package_dir)
    check_cpu(manifest)
    check_files(package_dir, manifest)
    probe = HostProbe()
    decided = decide(manifest, options, probe)
    # Files are read before anything is measured, so that a wrong one is an error at once.
    reference = (
        None if options.compare is None else bench_compare.read_reference(options.compare, package_dir, manifest)
    )
    texts = None if options.text_file is None else feeds.read_texts(options.text_file, manifest)
    files = None if options.image_dir is None else feeds.list_images(options.image_dir, manifest)
    if options.loadgen:
        from . import loadgen

        loadgen.check_installed()

    require_torch(manifest, model_path(package_dir, manifest))
    imported_ms = process_age_ms()
    feed: AbstractContextManager[Feed]
    if texts is not None and options.text_file is not None:
        feed = feeds.open_texts(package_dir, decided, options.text_file, texts, options.seed)
    elif files is None or options.image_dir is None:
        feed = feeds.open_made_up(package_dir, manifest, decided, options.seed)
    else:
        feed = feeds.open_files(package_dir, decided, options.image_dir, files, options.seed)
    loading = time.perf_counter()
    with feed as opened:
        load_ms = (time.perf_counter() - loading) * 1000.0
        measured = _measure(opened, manifest, decided, options, probe, on_note)
        instances = opened.instances
        memory = (instances.memory_per_instance_bytes, instances.shared_bytes)
    path = model_path(package_dir, manifest)
    # A model of torch starts as slowly as torch is imported, which the cold start of this process shows.
    measured_start = options.start and is_program(path, manifest.target["engine"])
    start = measure_start(package_dir, manifest, decided) if measured_start else None
    here = host_probe.describe(probe, engine=manifest.target["engine"])
    elsewhere = other_place(here, manifest.build.get("host") or {}, manifest.torch.get("version"))
    judgement = measured.judgement
    result = BenchResult(
        measurement=dataclasses.replace(
            measured,
            judgement=dataclasses.replace(judgement, invalid_reasons=(*judgement.invalid_reasons, *elsewhere)),
        ),
        threads=decided.threads,
        instances=decided.instances,
        plan=decided.reasons,
        cold_start=ColdStart(imported_ms, load_ms, measured.first_call_ms),
        peak_memory_bytes=probe.peak_memory_bytes(),
        memory_per_instance_bytes=memory[0],
        memory_shared_bytes=memory[1],
        input=opened.kind,
        input_data=opened.text,
        seed=options.seed,
        host={**here, "cpu_mhz": judgement.cpu_mhz.end},
        package=PackageFacts(
            name=manifest.name,
            version=manifest.version,
            engine=manifest.target["engine"],
            isa=manifest.target.get("isa"),
            random_weights=manifest.random_weights,
            torch=manifest.torch.get("version"),
        ),
        start=start,
    )
    if reference is None:
        return result
    return dataclasses.replace(result, comparison=bench_compare.compare(result.to_dict(), reference))


def decide(manifest: Manifest, options: BenchOptions, probe: HostProbe) -> Plan:
    """Return the plan for the scenario: that of the host, but multi-stream spreads one query over the instances."""
    threads, instances, batch_size = options.threads, options.instances, options.batch_size
    if options.scenario != "multi-stream":
        objective = SCENARIOS[options.scenario].objective if options.scenario in SCENARIOS else None
        return plan_decide.decide(
            manifest, threads=threads, instances=instances, batch_size=batch_size, objective=objective, probe=probe
        )
    decided = plan_decide.decide(manifest, threads=threads, instances=instances, batch_size=batch_size, probe=probe)
    most = min(decided.instances, QUERY_SAMPLES)
    if most != decided.instances:
        decided = plan_decide.decide(manifest, threads=threads, instances=most, batch_size=batch_size, probe=probe)
        why = f"multi-stream: a query has {QUERY_SAMPLES} samples."
        decided = dataclasses.replace(decided, reasons={**decided.reasons, "instances": why})
    if batch_size is not None:
        return decided
    why = f"multi-stream: the {QUERY_SAMPLES} samples of a query over {most} instance{'s' * (most != 1)}."
    reasons = {**decided.reasons, "batch_size": why}
    return dataclasses.replace(decided, batch_size=math.ceil(QUERY_SAMPLES / most), reasons=reasons)


def _measure(
    feed: Feed,
    manifest: Manifest,
    decided: Plan,
    options: BenchOptions,
    probe: HostProbe,
    on_note: Callable[[str], None],
) -> Measurement:
    clock, size, warmup_s = WallClock(), decided.batch_size, options.warmup_s
    duration_s = options.duration_s or manifest.bench.get("duration_s") or DEFAULT_DURATION_S
    bound = options.max_latency_ms or manifest.plan.max_latency_ms
    if options.loadgen:
        from . import loadgen

        wish = loadgen.Wish(options.scenario, duration_s, options.seed, options.rate_per_s, bound, options.loadgen_out)
        return loadgen.measure(feed, size, wish, warmup_s, clock, probe)
    if options.scenario != server.NAME:
        scenario = SCENARIOS[options.scenario]
        return measure(feed.pool, feed.batches_of(size), size, scenario, duration_s, warmup_s, clock, probe)
    cuts = {shape: feed.batches_of(shape) for shape in server.shapes_up_to(size)}
    if options.rate_per_s is not None:
        load = Load(options.rate_per_s, duration_s, options.seed, bound)
        return measure_server(feed.pool, cuts, load, warmup_s, clock, probe)
    if bound is None:
        raise InputError("--find-peak needs --max-latency-ms; the plan has no bound of its own")

    capacity = measure(feed.pool, cuts[size], size, SCENARIOS["offline"], peak.CAPACITY_S, warmup_s, clock, probe)
    warm = False

    def try_rate(rate_per_s: float, attempt: int) -> Measurement:
        nonlocal warm
        # Without a wish for the duration, a run is as long as it takes to see enough requests.
        enough_s = 0.0 if options.duration_s else 1.1 * server.MIN_REQUESTS / rate_per_s
        load = Load(rate_per_s, max(duration_s, enough_s), options.seed + attempt, bound, stop_when_failed=True)
        tried = measure_server(feed.pool, cuts, load, None if warm else warmup_s, clock, probe)
        warm = True
        on_note(str(peak.peak_run(tried)))
        return tried

    found = peak.find_peak(try_rate, capacity.figures.throughput_per_s)
    return dataclasses.replace(found, first_call_ms=capacity.first_call_ms)


def process_age_ms() -> float:
    """Return the time since the kernel started this process, to 10 ms (proc(5), field 22 of stat)."""
    text = read_text(Path("/proc/self/stat"))
    if text is None:
        return time.process_time() * 1000.0
    started_ticks = int(text.rpartition(")")[2].split()[19])
    ticks_per_s = 100  # USER_HZ, the unit of this file on every architecture torch runs on
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / ticks_per_s) * 1000.0
