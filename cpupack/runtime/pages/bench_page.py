"""Writes a bench result as one HTML page from the figures of its JSON. The page has no scripts and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..bench.text import format_table, setting_text
from ..errors import InputError
from ..host import probe as host_probe
from ..manifest import Manifest, build_rows, read_manifest
from ..plan import table as plan_table
from ..writing import whole_file
from . import bench_charts
from .bench_charts import Setting

TEMPLATES = Path(__file__).parent / "templates"

_UNITS = {"server": ("a request", "requests"), "multi-stream": ("a query", "queries")}
"""What a latency belongs to and what is counted, for scenarios where that is not a call of the model."""


@dataclass(frozen=True)
class Tuning:
    """The rows of a search (as ``TunedTable.rows``), where they were measured, and the setting that was chosen."""

    rows: Sequence[Mapping[str, Any]]
    source: str
    chosen: Setting | None


def loader() -> jinja2.BaseLoader:
    """Return the loader of the shipped templates, each as ``runtime/NAME``. The build's pages extend them."""
    return jinja2.PrefixLoader({"runtime": jinja2.FileSystemLoader(TEMPLATES)})


def check_target(path: Path) -> None:
    """Raise InputError when ``path`` cannot be written. To be called before measuring; it leaves no file behind."""
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
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(f"--html {path}: {error.strerror or error}; name a file that can be written") from error


def bench_page(result: Mapping[str, Any], manifest: Manifest, tuning: Tuning | None = None) -> str:
    """Return the page of a bench result (the object of ``bench --json``) as HTML.

    ``latency_histogram`` {edges_ms, counts} and ``percentiles`` [[p, ms], ...] are drawn where the result has them,
    else the curve is drawn from ``latency_ms``. ``tuning`` adds the search's charts.
    """
    unit, noun = _UNITS.get(result["scenario"], ("one" if result["batch_size"] == 1 else "a batch", "calls"))
    environment = jinja2.Environment(
        loader=loader(), undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("runtime/bench.html.j2").render(
        result=result,
        manifest=manifest,
        setting=setting_text(dict(result)),
        terminal=format_table(dict(result)),
        unit=unit,
        noun=noun,
        latency=bench_charts.latency_charts(result, noun),
        windows=bench_charts.windows_chart(result),
        peak_chart=bench_charts.peak_chart(result.get("peak")),
        tuning=tuning,
        tuning_charts=bench_charts.tuning_charts(tuning.rows, tuning.chosen) if tuning else [],
    )


def find_tuning(package_dir: Path, manifest: Manifest) -> Tuning | None:
    """Return the measurements that a setting was chosen from: on this host if it has a table, else at the build."""
    path = plan_table.table_path(manifest)
    table = None if path is None else plan_table.read_table(path, rerun=f"{manifest.name} tune")
    if (
        table
        and table.rows
        and table.fingerprint == host_probe.fingerprint()
        and table.model == plan_table.model_digest(manifest)
    ):
        where = f"on this host by {manifest.name} tune, for {table.objective}"
        return Tuning(table.rows, where, (table.threads, table.instances, table.batch_size))
    rows = build_rows(package_dir)
    if not rows:
        return None
    plan = manifest.plan
    built_on = manifest.build.get("host") or {}
    source = f"at the build on {built_on.get('cpu') or 'another host'}, for {plan.objective}"
    chosen = None
    if plan.threads and plan.instances and plan.batch_size:
        chosen = (plan.threads, plan.instances, plan.batch_size)
    return Tuning(rows, source, chosen)
