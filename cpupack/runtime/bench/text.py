"""Shows the object of ``bench --json`` as lines for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import compare as bench_compare

_SHOWN = ("p50", "p90", "p99", "max")


def _each(result: dict[str, Any]) -> str:
    """Return the memory of each instance; results of older packages do not have it."""
    each, shared = result.get("memory_per_instance_bytes"), result.get("memory_shared_bytes")
    if each is None:
        return ""
    return f"; {each / 2**20:,.1f} an instance" + (f", {shared / 2**20:,.1f} shared" if shared else "")


def format_table(result: dict[str, Any]) -> str:
    """Return a result (the object of ``bench --json``) as lines for a terminal."""
    manifest, machine = result["manifest"], result["host"]
    cold, memory, quota = result["cold_start_ms"], result["peak_memory_bytes"], machine["cgroup_quota"]
    rows = [("setting", setting_text(result)), *_figures(result)]
    rows += [
        (
            "cold start",
            f"{cold['total'] / 1000:.2f} s (start and imports {cold['import'] / 1000:.2f}, "
            f"load {cold['load'] / 1000:.2f}, first call {cold['first_call'] / 1000:.2f})",
        ),
        *_start(result.get("start"), result.get("memory_shared_bytes")),
        ("peak memory", (f"{memory / 2**20:,.0f} MiB" if memory else "unknown") + _each(result)),
    ]
    if faults := result.get("page_faults"):
        rows.append(("page faults", f"{faults['minor_per_call']:,.1f} minor a call, {faults['major']:,} major in all"))
    clock = f", {machine['cpu_mhz']:,.0f} MHz" if machine.get("cpu_mhz") else ""
    governor = f", governor {machine['governor']}" if machine["governor"] else ""
    rows += [
        (
            "host",
            f"{machine['cpu']}, {machine['isa'] or machine['machine']}, {machine['cores_usable']} usable of "
            f"{machine['cores_physical']} cores"
            + (f", quota {quota:g}" if quota is not None else "")
            + clock
            + governor,
        ),
        (
            "software",
            f"torch {machine['torch']}, engine {machine['engine']}, python {machine['python']}, "
            f"allocator {machine['allocator']}",
        ),
        ("input", f"{result['input']}: {result['input_data']}, seed {result['seed']}"),
    ]
    title = f"{manifest['name']} {manifest['version']}, {result['scenario']}"
    title += " (random weights: speed only)" if manifest["random_weights"] else ""
    rows += [("verdict", "valid" if result["valid"] else "NOT valid")]
    rows += [("", f"- {reason}") for reason in result["invalid_reasons"]]
    width = max(len(name) for name, _ in rows)
    lines = [title, *(f"  {name:<{width}}  {text}" for name, text in rows)]
    if comparison := result.get("comparison"):
        lines += ["", bench_compare.format_comparison(comparison)]
    return "\n".join(lines)


def _start(start: dict[str, float] | None, shared: float | None) -> list[tuple[str, str]]:
    if start is None:
        return []
    seconds = {name: start[f"{name}_ms"] / 1000 for name in ("total", "import", "load", "first_call", "interpreter")}
    return [
        (
            "fresh start",
            f"{seconds['total']:.2f} s from import to first prediction (import {seconds['import']:.2f}, "
            f"load {seconds['load']:.2f}, first call {seconds['first_call']:.2f}), after {seconds['interpreter']:.2f} "
            "of Python",
        ),
        (
            "resident",
            f"{start['resident_bytes'] / 2**20:,.0f} MiB after the first prediction"
            + (f", {shared / 2**20:,.1f} of them the program" if shared else ""),
        ),
    ]


def _figures(result: dict[str, Any]) -> list[tuple[str, str]]:
    latency = result["latency_ms"]
    low, high = result["throughput_ci95_per_s"]
    rows = [
        (
            "throughput",
            f"{result['throughput_per_s']:,.1f} samples/s (95 % interval {low:,.1f} to {high:,.1f}; "
            f"{result['samples']:,} samples in {result['duration_s']:.1f} s)",
        ),
        (
            f"latency of {_unit(result)}",
            "  ".join(f"{name.replace('_', '.')} {latency[name]:.2f}" for name in _SHOWN) + " ms",
        ),
    ]
    if interval := result.get("headline_repeat95"):
        known = interval[1] is not None and math.isfinite(interval[1])  # JSON has null for infinity
        said = f"between {_span(result, interval)}, 19 times in 20" if known else "unknown, there were too few calls"
        rows.append(("a second run", f"{_headline(result)} {said}"))
    if served := result.get("server"):
        rows += _server(served, result.get("peak"))
    if driven := result.get("loadgen"):
        rows.append(("LoadGen", f"{driven['version']}: {driven['validity']}; logs in {driven['out']}"))
    return rows


def _unit(result: dict[str, Any]) -> str:
    if result["scenario"] == "server":
        return "a request"
    if result["scenario"] == "multi-stream":
        return "a query"
    return "one" if result["batch_size"] == 1 else "a batch"


def _headline(result: dict[str, Any]) -> str:
    return "throughput" if result["headline"] == "throughput_per_s" else str(result["headline"]).replace("_", ".")


def _span(result: dict[str, Any], interval: list[float]) -> str:
    low, high = interval
    if result["headline"] == "throughput_per_s":
        return f"{low:,.1f} and {high:,.1f} samples/s"
    return f"{low:.2f} and {high:.2f} ms"


def _server(served: dict[str, Any], found: dict[str, Any] | None) -> list[tuple[str, str]]:
    waiting, sizes = served["waiting_ms"], served["calls_by_size"]
    rows = [
        (
            "requests",
            f"{served['requests']:,} at {served['rate_per_s']:,.1f}/s, Poisson arrivals; "
            f"waited {waiting['mean']:.2f} ms on average, p99 {waiting['p99']:.2f} ms",
        ),
    ]
    if len(sizes) > 1:
        rows.append(("calls", ", ".join(f"{calls:,} of {size}" for size, calls in sizes.items())))
    if served["passed"] is not None:
        rows.append(
            (
                "bound",
                f"{'PASS' if served['passed'] else 'FAIL'}: {served['over_bound']:.2%} of the requests took more than "
                f"{served['max_latency_ms']:g} ms (at most {1 - served['percentile'] / 100:.0%})",
            )
        )
    if found is not None:
        rows.append(("peak", _peak(found)))
    return rows


def _peak(found: dict[str, Any]) -> str:
    bound = f"p99 within {found['max_latency_ms']:g} ms"
    if not found["rate_per_s"]:
        return f"no rate that was tried keeps {bound}; the lowest that failed is {found['fails_at_per_s']:,.1f}/s"
    text = f"{found['rate_per_s']:,.1f} requests/s with {bound}"
    if found["fails_at_per_s"]:
        text += f"; {found['fails_at_per_s']:,.1f}/s fails (tolerance {found['tolerance']:.0%})"
    return f"{text}; {len(found['runs'])} runs"


def setting_text(row: Mapping[str, Any]) -> str:
    """Return ``2 instances x 1 thread, batch 8``."""
    return f"{layout_text(row['threads'], row['instances'])}, batch {row['batch_size']}"


def layout_text(threads: int, instances: int) -> str:
    """Return ``2 instances x 1 thread``."""
    return f"{instances} instance{'s' * (instances != 1)} x {threads} thread{'s' * (threads != 1)}"
