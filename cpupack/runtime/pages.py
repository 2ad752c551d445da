"""A bench result as one page: a file without scripts that fetches nothing, made from the JSON's own figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jinja2

from . import charts, host, tuned
from .bench import format_table, setting_text
from .charts import Bar, Cell, Point
from .errors import InputError
from .manifest import Manifest, read_manifest
from .shapes import Chart

TEMPLATES = Path(__file__).parent / "templates"
TUNE_NAME = "tune.json"

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
class Tuning:
    """The rows of a search (as ``TunedTable.rows``), where they were measured, and the setting that was chosen."""

    rows: Sequence[Mapping[str, Any]]
    source: str
    chosen: Setting | None


@dataclass(frozen=True)
class Measured:
    """One setting of a search with the medians of its runs; ``error`` where none of them succeeded."""

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


def loader() -> jinja2.BaseLoader:
    """Return what loads the shipped templates, each as ``runtime/NAME``: the build's pages extend them."""
    return jinja2.PrefixLoader({"runtime": jinja2.FileSystemLoader(TEMPLATES)})


def check_target(path: Path) -> None:
    """Raise InputError when ``path`` cannot be written: to be called before measuring, makes nothing that stays."""
    try:
        existed = path.exists()
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise InputError(f"--html {path}: {error.strerror or error}; name a file that can be written") from error


def write_bench_page(path: Path, result: Mapping[str, Any], package_dir: Path) -> None:
    """Write the page of a bench ``result`` of the package in ``package_dir``. Raises InputError when it cannot."""
    manifest = read_manifest(package_dir)
    text = bench_page(result, manifest, find_tuning(package_dir, manifest))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--html {path}: {error.strerror or error}; name a file that can be written") from error


def bench_page(result: Mapping[str, Any], manifest: Manifest, tuning: Tuning | None = None) -> str:
    """Return the page of a bench result (the object of ``bench --json``) as HTML.

    ``latency_histogram`` {edges_ms, counts} and ``percentiles`` [[p, ms], ...] are drawn where the result has them,
    else the curve is drawn from ``latency_ms``. ``tuning`` adds the search's charts.
    """
    environment = jinja2.Environment(
        loader=loader(), undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("runtime/bench.html.j2").render(
        result=result,
        manifest=manifest,
        setting=setting_text(dict(result)),
        terminal=format_table(dict(result)),
        latency=latency_charts(result),
        windows=_windows(result),
        tuning=tuning,
        tuning_charts=tuning_charts(tuning.rows, tuning.chosen) if tuning else [],
    )


def find_tuning(package_dir: Path, manifest: Manifest) -> Tuning | None:
    """Return what was measured to choose a setting: on this host where there is a table of it, else at the build."""
    path = tuned.table_path(manifest)
    table = tuned.read_table(path, rerun=f"{manifest.name} tune")
    if table and table.rows and table.fingerprint == host.fingerprint() and table.model == tuned.model_digest(manifest):
        where = f"on this host by {manifest.name} tune, for {table.objective}"
        return Tuning(table.rows, where, (table.threads, table.instances, table.batch_size))
    shipped = package_dir / TUNE_NAME
    rows = json.loads(shipped.read_text(encoding="utf-8"))["rows"] if shipped.is_file() else []
    if not rows:
        return None
    plan = manifest.plan
    built_on = manifest.build.get("host") or {}
    source = f"at the build on {built_on.get('cpu') or 'another host'}, for {plan.objective}"
    chosen = None
    if plan.threads and plan.instances and plan.batch_size:
        chosen = (plan.threads, plan.instances, plan.batch_size)
    return Tuning(rows, source, chosen)


def latency_charts(result: Mapping[str, Any]) -> list[Chart]:
    """Return the histogram, where the result has one, and the percentile curve."""
    latency = result["latency_ms"]
    found = []
    if histogram := result.get("latency_histogram"):
        marked = {name.replace("_", "."): float(latency[name]) for name in ("p50", "p90", "p99")}
        found.append(charts.histogram("Latency histogram", histogram["edges_ms"], histogram["counts"], "ms", marked))
    points = [(float(p), float(ms)) for p, ms in result.get("percentiles") or []]
    if not points:
        points = [(p, float(latency[name])) for name, p in _PERCENTILES]
    found.append(charts.percentile_curve("Latency by percentile", points, "ms"))
    return found


def _windows(result: Mapping[str, Any]) -> Chart | None:
    rates = [float(rate) for rate in result.get("windows_per_s") or []]
    if not rates:
        return None
    rows = [Bar(f"window {number}", rate, f"{rate:,.1f}") for number, rate in enumerate(rates, start=1)]
    return charts.bars("Throughput over time", rows, "samples/s in equal parts of the measured time")


def tuning_charts(rows: Sequence[Mapping[str, Any]], chosen: Setting | None) -> list[Chart]:
    """Return the heat map and the scatter of a search's rows; nothing where no run succeeded."""
    settings = settings_of(rows)
    good = [each for each in settings if each.error is None]
    if not good:
        return []
    return [_heat_map(settings, chosen), _trade_off(good, chosen)]


def settings_of(rows: Sequence[Mapping[str, Any]]) -> list[Measured]:
    """Return each setting once, in the order first measured, with the medians of its runs that succeeded."""
    grouped: dict[Setting, list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["threads"], row["instances"], row["batch_size"]), []).append(row)
    found = []
    for setting, runs in grouped.items():
        good = [run for run in runs if "error" not in run]
        if not good:
            found.append(Measured(*setting, error=str(runs[0]["error"])))
            continue
        figures = (
            median(float(run["throughput_per_s"]) for run in good),
            median(float(run["latency_ms"]["p50"]) for run in good),
            median(float(run["latency_ms"]["p99"]) for run in good),
        )
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
    return charts.scatter("Throughput against latency", points, "p99 latency, ms", "samples/s", joined=True)


def _figures(each: Measured) -> str:
    runs = f", median of {each.runs} runs" if each.runs > 1 else ""
    return f"{each.throughput_per_s:,.1f} samples/s, p50 {each.p50_ms:.2f} ms, p99 {each.p99_ms:.2f} ms{runs}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or not math.isfinite(value) else f"{value:.1f}"
