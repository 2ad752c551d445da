"""Draws the charts of a bench and of a search for settings, from the rows of their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import charts
from .axes import linear, spread
from .charts import Bar, Cell, Point
from .shapes import Chart

Setting = tuple[int, int, int]
"""threads, instances, batch size"""

_PERCENTILES = (
    ("min", 0.0),
    ("p50", 50.0),
    ("p90", 90.0),
    ("p95", 95.0),
    ("p99", 99.0),
    ("p99_9", 99.9),
    ("max", 100.0),
)


@dataclass(frozen=True)
class Measured:
    """One setting of a search with the median of its runs; ``error`` where none of them succeeded."""

    threads: int
    instances: int
    batch_size: int
    throughput_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    runs: int = 0
    error: str | None = None

    @property
    def setting(self) -> Setting:
        return self.threads, self.instances, self.batch_size

    @property
    def layout(self) -> str:
        return f"{self.instances} x {self.threads}"


def latency_charts(result: Mapping[str, Any], noun: str) -> list[Chart]:
    """Return the histogram of ``noun`` (calls, requests), where the result has one, and the percentile curve."""
    latency = result["latency_ms"]
    found = []
    if histogram := result.get("latency_histogram"):
        marked = {name.replace("_", "."): float(latency[name]) for name in ("p50", "p90", "p99")}
        found.append(
            charts.histogram("Latency histogram", histogram["edges_ms"], histogram["counts"], "ms", marked, noun=noun)
        )
    points = [(float(p), float(ms)) for p, ms in result.get("percentiles") or []]
    if not points:
        points = [(p, float(latency[name])) for name, p in _PERCENTILES]
    found.append(charts.percentile_curve("Latency by percentile", points, "ms", noun=noun))
    return found


def windows_chart(result: Mapping[str, Any]) -> Chart | None:
    rates = [float(rate) for rate in result.get("windows_per_s") or []]
    if not rates:
        return None
    rows = [Bar(f"window {number}", rate, f"{rate:,.1f}") for number, rate in enumerate(rates, start=1)]
    return charts.bars("Throughput over time", rows, "samples/s in equal parts of the measured time")


def peak_chart(peak: Mapping[str, Any] | None) -> Chart | None:
    """Return the p99 of every run of the search for the highest rate, and the bound; None without a search."""
    if not peak or not peak["runs"]:
        return None
    bound, bracket = peak["max_latency_ms"], {peak["rate_per_s"], peak["fails_at_per_s"]}
    points = [
        Point(
            float(run["rate_per_s"]),
            float(run["p99_ms"]),
            f"{run['rate_per_s']:,.0f}/s" if run["rate_per_s"] in bracket else "",
            "PASS" if run["passed"] else "FAIL",
            f"{run['rate_per_s']:,.1f} requests/s: p99 {run['p99_ms']:,.2f} ms",
        )
        for run in sorted(peak["runs"], key=lambda run: not run["passed"])
    ]
    x = linear("requests/s", [point.x for point in points])
    y = spread("p99 latency, ms", [*(point.y for point in points), float(bound)])
    return charts.scatter("Every rate that was tried", points, x, y, level=float(bound))


def tuning_charts(rows: Sequence[Mapping[str, Any]], chosen: Setting | None) -> list[Chart]:
    """Return the heat map and the scatter of a search's rows; nothing where no run succeeded."""
    settings = settings_of(rows)
    good = [each for each in settings if each.error is None]
    if not good:
        return []
    return [_heat_map(settings, chosen), _trade_off(good, chosen)]


def settings_of(rows: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Return each setting once, in the order first measured, with the median of its runs that succeeded."""
    grouped: dict[Setting, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["threads"], row["instances"], row["batch_size"]), []).append(row)
    found = []
    for setting, runs in grouped.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            found.append(Measured(*setting, error=str(runs[0]["error"])))
            continue
        # One whole run, the median one: medians of single figures would be a run that never took place.
        run = sorted(good, key=lambda one: float(one["throughput_per_s"]))[len(good) // 2]
        latency = run["latency_ms"]
        figures = (float(run["throughput_per_s"]), float(latency["p50"]), float(latency["p99"]))
        found.append(Measured(*setting, *figures, runs=len(good)))
    return found


def _heat_map(settings: Sequence[Measured], chosen: Setting | None) -> Chart:
    layouts = sorted({(each.instances, each.threads) for each in settings})
    batches = sorted({each.batch_size for each in settings})
    cells = {}
    for each in settings:
        at = layouts.index((each.instances, each.threads)), batches.index(each.batch_size)
        if each.error is not None:
            cells[at] = Cell(None, "failed", tip=each.error)
            continue
        tip = f"{each.layout}, batch {each.batch_size}: {_figures(each)}"
        cells[at] = Cell(each.throughput_per_s, _short(each.throughput_per_s), each.setting == chosen, tip)
    return charts.heat_map(
        "Throughput by setting, samples/s",
        [f"{instances} x {threads}" for instances, threads in layouts],
        [str(batch) for batch in batches],
        cells,
        "instances x threads",
        "batch size",
    )


def _trade_off(settings: Sequence[Measured], chosen: Setting | None) -> Chart:
    points = [
        Point(
            each.p99_ms,
            each.throughput_per_s,
            f"b{each.batch_size}",
            each.layout,
            f"{each.layout}, batch {each.batch_size}: {_figures(each)}",
            each.setting == chosen,
        )
        for each in sorted(settings, key=lambda one: (one.instances, one.threads, one.batch_size))
    ]
    x = spread("p99 latency, ms", [point.x for point in points])
    y = linear("samples/s", [point.y for point in points], room=0.08)
    return charts.scatter("Throughput against latency", points, x, y, joined=True)


def _figures(each: Measured) -> str:
    runs = f", median of {each.runs} runs" if each.runs > 1 else ""
    return f"{each.throughput_per_s:,.1f} samples/s, p50 {each.p50_ms:.2f} ms, p99 {each.p99_ms:.2f} ms{runs}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
