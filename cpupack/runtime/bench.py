"""The bench that ships in the wheel: measures the package on this host and judges its own result.

The builder's tuner runs exactly this, in fresh processes; what is measured is what ships.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import host, plan, stats
from .cgroup import read_text
from .contract import check_cpu, check_torch, model_path
from .errors import InputError
from .host import HostProbe
from .inputs import random_input
from .manifest import Manifest, check_files, read_manifest
from .preprocess import PreprocessSpec
from .scenarios import SCENARIOS, Clock, Pool, Scenario, WallClock, closed_loop
from .verdict import disturbances, read_counters, weaknesses

if TYPE_CHECKING:
    import torch

DEFAULT_DURATION_S = 5.0
DEFAULT_WARMUP_S = 5.0
WINDOWS = 5

_WARM_CALLS = 2
"""With the first call, which is timed apart, three: what oneDNN and the JIT take to settle on a shape."""
_WARM_ROUND_S = 0.2
_WARM_TOLERANCE = 0.05
_BUFFER_BYTES = 128 * 2**20


def positive_int(text: str) -> int:
    """Parse a whole number from 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return value


def natural(text: str) -> int:
    """Parse a whole number from 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive_seconds(text: str) -> float:
    """Parse a finite number above 0, for argparse."""
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seconds(text: str) -> float:
    """Parse a finite number from 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the bench's options. What is not given comes from the plan (see ``info``)."""
    names = "; ".join(f"{scenario.name}: {scenario.summary}" for scenario in SCENARIOS.values())
    parser.add_argument(
        "--scenario", choices=list(SCENARIOS), default="offline", help=f"{names} (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of one instance")
    parser.add_argument("--instances", type=positive_int, metavar="N", help="copies of the model run in parallel")
    parser.add_argument("--batch-size", type=positive_int, metavar="N", help="samples a call")
    parser.add_argument("--duration", type=positive_seconds, metavar="SECONDS", help="measured time, after warm-up")
    parser.add_argument(
        "--warmup",
        type=seconds,
        default=DEFAULT_WARMUP_S,
        metavar="SECONDS",
        help="longest time to wait for call times to settle (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="seed of the inputs (default: %(default)s)"
    )


def run(package_dir: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Bench the package as ``args`` (of ``add_arguments``) say. Returns the contract's fields.

    Besides those of ``measure``: threads, instances, plan (reasons), cold_start_ms {import, load, first_call,
    total}, peak_memory_bytes, input, input_data, seed, host, manifest. Raises RunnerError.
    """
    scenario = SCENARIOS[args.scenario]
    manifest = read_manifest(package_dir)
    check_cpu(manifest)
    check_files(package_dir, manifest)
    if scenario.name == "single-stream" and (args.instances or 1) > 1:
        raise InputError(
            f"--instances {args.instances}: single-stream has one request at a time, so only one instance "
            "would work; use --threads, or --scenario offline"
        )
    probe = HostProbe()
    decided = plan.decide(
        manifest,
        threads=args.threads,
        instances=args.instances,
        batch_size=args.batch_size,
        objective=scenario.objective,
        probe=probe,
    )

    import torch

    from .pool import InstancePool

    check_torch(manifest, str(torch.__version__))
    imported_ms = process_age_ms()
    batches = make_batches(manifest, decided.batch_size, args.seed)
    engine = manifest.target["engine"]
    loading = time.perf_counter()
    with InstancePool(model_path(package_dir, manifest), engine, decided.threads, decided.instances) as pool:
        load_ms = (time.perf_counter() - loading) * 1000.0
        duration_s = args.duration or manifest.bench.get("duration_s") or DEFAULT_DURATION_S
        measured = measure(pool, batches, decided.batch_size, scenario, duration_s, args.warmup, WallClock(), probe)
    first_call_ms = measured.pop("first_call_ms")
    return {
        **measured,
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
        "input": "uint8" if manifest.pixel_input else "float32",
        "input_data": _input_data(manifest, len(batches)),
        "seed": args.seed,
        "host": host.describe(probe, engine=engine),
        "manifest": {
            "name": manifest.name,
            "version": manifest.version,
            "engine": engine,
            "isa": manifest.target.get("isa"),
            "random_weights": manifest.random_weights,
            "torch": manifest.torch.get("version"),
        },
    }


def measure(
    pool: Pool,
    batches: Sequence[Any],
    batch_size: int,
    scenario: Scenario,
    duration_s: float,
    warmup_s: float,
    clock: Clock,
    probe: HostProbe,
) -> dict[str, Any]:
    """Warm up, measure, judge.

    Returns scenario, batch_size, duration_s (every instance was busy), samples done in it, calls,
    throughput_per_s with its 95 % interval from the windows' rates, windows_per_s, latency_ms of one call,
    headline, warmup, first_call_ms, valid, invalid_reasons,
    disturbed (from outside the process).
    """
    first = closed_loop(pool, batches, batch_size, clock, lambda _calls, _now: False)
    warmup = warm_up(pool, batches, batch_size, clock, warmup_s)
    cpus = probe.budget().cpus
    before = read_counters(probe, cpus)
    calls = scenario.drive(pool, batches, batch_size, clock, duration_s)
    after = read_counters(probe, cpus)

    begin_s = float(calls.start_s.min())
    # Up to here every instance was busy; the calls that others still had under way count by their share.
    end_s = min(float(calls.end_s[calls.instance == number].max()) for number in np.unique(calls.instance))
    elapsed_s = end_s - begin_s
    samples = calls.samples_between(begin_s, end_s)
    rates = stats.window_rates(calls, begin_s, end_s, WINDOWS)
    low, high = stats.interval_95(rates)
    disturbed = disturbances(before, after, len(cpus))
    reasons = weaknesses(len(calls), scenario.min_calls, elapsed_s, rates) + disturbed
    return {
        "scenario": scenario.name,
        "headline": scenario.headline,
        "batch_size": batch_size,
        "duration_s": elapsed_s,
        "samples": round(samples),
        "calls": len(calls),
        "throughput_per_s": samples / elapsed_s,
        "throughput_ci95_per_s": [low, high],
        "windows_per_s": rates,
        "latency_ms": stats.latency_summary(calls.latency_ms),
        "warmup": warmup,
        "first_call_ms": float(first.latency_ms.max()),
        "valid": not reasons,
        "invalid_reasons": reasons,
        "disturbed": bool(disturbed),
    }


def warm_up(pool: Pool, batches: Sequence[Any], batch_size: int, clock: Clock, limit_s: float) -> dict[str, Any]:
    """Run every instance in rounds until two in a row agree on the median call, or ``limit_s`` is over.

    Returns calls, duration_s, and whether it got stable. At least one round of two calls an instance runs.
    """
    begin_s = clock.now()
    calls, stable, last = 0, False, math.nan
    while not stable:
        round_s = clock.now()
        done = closed_loop(pool, batches, batch_size, clock, _warm_until(round_s + _WARM_ROUND_S))
        calls += len(done)
        median = float(np.median(done.latency_ms))
        stable = abs(median - last) <= _WARM_TOLERANCE * last
        last = median
        now = clock.now()
        if now - begin_s + (now - round_s) > limit_s:
            break
    return {"calls": calls, "duration_s": clock.now() - begin_s, "stable": stable}


def _warm_until(end_s: float) -> Callable[[int, float], bool]:
    return lambda count, now: count < _WARM_CALLS or now < end_s


@dataclass(frozen=True)
class _Shape:
    """How many distinct batches of which size fit the memory set aside for inputs."""

    batch: tuple[int, ...]

    @property
    def count(self) -> int:
        bytes_each = 4 * math.prod(self.batch)
        return max(3, min(16, _BUFFER_BYTES // bytes_each))


def make_batches(manifest: Manifest, batch_size: int, seed: int) -> list[torch.Tensor]:
    """Return distinct batches of what the model takes, equal for equal seeds.

    Random pixels where there is preprocessing (uint8 for a model with ``pixel_input``, else normalized to float32),
    else standard normal values. Several are used in turn, since one buffer again and again would sit in the cache as no
    real input does.
    """
    import torch

    shape = _Shape((batch_size, *manifest.input_shape))
    generator = np.random.default_rng(seed)
    spec = PreprocessSpec.from_dict(manifest.preprocess) if manifest.preprocess else None
    return [
        torch.from_numpy(
            random_input(generator, batch_size, manifest.input_shape, spec, pixel_input=manifest.pixel_input)
        )
        for _ in range(shape.count)
    ]


def _input_data(manifest: Manifest, count: int) -> str:
    if manifest.preprocess is None:
        kind = "standard normal values"
    else:
        kind = "random pixels" if manifest.pixel_input else "random uint8 pixels, normalized beforehand"
    return f"{count} distinct batches of {kind}"


def process_age_ms() -> float:
    """Return the time since the kernel started this process, to 10 ms (proc(5), field 22 of stat)."""
    text = read_text(Path("/proc/self/stat"))
    if text is None:
        return time.process_time() * 1000.0
    started_ticks = int(text.rpartition(")")[2].split()[19])
    ticks_per_s = 100  # USER_HZ, the unit of this file on every architecture torch runs on
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / ticks_per_s) * 1000.0


def format_table(result: dict[str, Any]) -> str:
    """Return the result as lines for a terminal."""
    manifest, machine, latency = result["manifest"], result["host"], result["latency_ms"]
    cold, memory, quota = result["cold_start_ms"], result["peak_memory_bytes"], machine["cgroup_quota"]
    low, high = result["throughput_ci95_per_s"]
    rows = [
        ("setting", setting_text(result)),
        (
            "throughput",
            f"{result['throughput_per_s']:,.1f} samples/s (95 % interval {low:,.1f} to {high:,.1f}; "
            f"{result['samples']:,} samples in {result['duration_s']:.1f} s)",
        ),
        (
            f"latency of {'one' if result['batch_size'] == 1 else 'a batch'}",
            "  ".join(f"{name.replace('_', '.')} {latency[name]:.2f}" for name in ("p50", "p90", "p99", "max")) + " ms",
        ),
        (
            "cold start",
            f"{cold['total'] / 1000:.2f} s (start and imports {cold['import'] / 1000:.2f}, "
            f"load {cold['load'] / 1000:.2f}, first call {cold['first_call'] / 1000:.2f})",
        ),
        ("peak memory", f"{memory / 2**20:,.0f} MiB" if memory else "unknown"),
        (
            "host",
            f"{machine['cpu']}, {machine['isa'] or machine['machine']}, {machine['cores_usable']} usable of "
            f"{machine['cores_physical']} cores" + (f", quota {quota:g}" if quota is not None else ""),
        ),
        ("software", f"torch {machine['torch']}, engine {machine['engine']}, python {machine['python']}"),
        ("input", f"{result['input']}: {result['input_data']}, seed {result['seed']}"),
    ]
    title = f"{manifest['name']} {manifest['version']}, {result['scenario']}"
    title += " (random weights: speed only)" if manifest["random_weights"] else ""
    verdict = [("verdict", "valid" if result["valid"] else "NOT valid")]
    verdict += [("", f"- {reason}") for reason in result["invalid_reasons"]]
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows + verdict)])


def setting_text(row: dict[str, Any]) -> str:
    """Return ``2 instances x 1 thread, batch 8``."""
    instances, threads = row["instances"], row["threads"]
    return (
        f"{instances} instance{'s' * (instances != 1)} x {threads} thread{'s' * (threads != 1)}, "
        f"batch {row['batch_size']}"
    )
