"""The page of ``cpupack report``. All its facts are read from the wheel. None of the wheel's code is run."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpupack.errors import UsageError
from cpupack.runtime.files import BUILD_NAME, RECIPE_NAME
from cpupack.wheel import build_charts as charts
from cpupack.wheel.facts import megabytes, plan_text, scaled, untimed_reason
from cpupack.wheel.foreign import facts_of, read_json, unreadable
from cpupack.wheel.inspect import Inspection, inspect
from cpupack.wheel.layers import percent, slowest_first

LISTED_LAYERS = 40
"""A table with more rows is folded. In print it is unfolded."""

_LAYER_COLUMNS = (
    "name", "kind", "precision", "kernel", "scale", "zero_point", "weight_sqnr_db", "rows_sqnr_db",
    "range_sqnr_db", "output_sqnr_db", "time_share",
)  # fmt: skip


@dataclass(frozen=True)
class WheelReport:
    """A wheel with correct hashes, and the facts that it holds about its build.

    ``facts`` is ``build.json`` (see ``build_facts.py``), empty for a wheel without it. ``components`` are those of the
    bill of materials. ``sha256`` is the hash of the wheel file.
    """

    inspection: Inspection
    sha256: str
    facts: dict[str, Any]
    recipe: str
    components: tuple[dict[str, Any], ...]

    @property
    def page_name(self) -> str:
        """The default name of the page: NAME-VERSION.html."""
        return f"{self.inspection.manifest.name}-{self.inspection.manifest.version}.html"

    def to_dict(self) -> dict[str, Any]:
        """Return all facts of the page, for ``--json``."""
        return {
            **self.inspection.to_dict(),
            "sha256": self.sha256,
            "facts": [list(row) for row in self.inspection.facts],
            "build_facts": self.facts,
            "recipe": self.recipe,
            "components": list(self.components),
        }


def read_report(path: Path) -> WheelReport:
    """Read what a page needs from the wheel ``path``.

    Raises UsageError for a file that is not a wheel made by cpupack, and for a wheel whose files differ from the build.
    """
    inspection = inspect(path)
    if inspection.problems:
        listed = "\n".join(f"  {problem}" for problem in inspection.problems[:5])
        raise UsageError(
            f"{path}: {len(inspection.problems)} files differ from the build\n{listed}",
            hint="build or copy the wheel again",
        )
    package = inspection.manifest.import_name
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        facts = _json(path, archive, f"{package}/{BUILD_NAME}") if f"{package}/{BUILD_NAME}" in names else {}
        with facts_of(path):
            recipe = archive.read(f"{package}/{RECIPE_NAME}").decode("utf-8")
        bills = sorted(name for name in names if ".dist-info/sboms/" in name)
        components = [each for name in bills for each in _json(path, archive, name).get("components", [])]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WheelReport(inspection, sha256, facts, recipe, tuple(components))


def render_report(report: WheelReport) -> str:
    """Return the page as HTML: one file without scripts that loads nothing from the network.

    Raises UsageError for facts that are not of the form that cpupack writes.
    """
    from jinja2 import UndefinedError

    try:
        with facts_of(report.inspection.path):
            return _rendered(report)
    except UndefinedError as error:
        raise unreadable(report.inspection.path, error) from error


def _rendered(report: WheelReport) -> str:
    from cpupack.templates import render

    inspection, facts = report.inspection, report.facts
    manifest = inspection.manifest
    accuracy = facts.get("report") or manifest.accuracy
    plan = facts.get("plan") or {}
    layers = facts.get("layers") or []
    recovery = facts.get("recovery") or {}
    return render(
        "report/wheel.html.j2",
        report=report,
        manifest=manifest,
        inspection=inspection,
        facts=facts,
        accuracy=accuracy,
        layers=layers,
        layer_columns=[name for name in _LAYER_COLUMNS if any(layer.get(name) is not None for layer in layers)],
        fp32_layers=slowest_first(layer for layer in layers if layer.get("reason")),
        listed_layers=LISTED_LAYERS,
        recovery=recovery,
        trial_rows=[_trial_row(trial) for trial in recovery.get("trials") or []],
        notes=facts.get("notes") or manifest.quantize.get("notes") or [],
        speedup=accuracy.get("speedup"),
        untimed=untimed_reason((manifest.task or {}).get("decoder"), manifest.target["cpu"]),
        plan_text=plan_text(manifest),
        tuned_row=manifest.bench.get("build"),
        accuracy_charts=charts.accuracy_charts(accuracy),
        layer_charts=charts.layer_charts(layers),
        size_chart=charts.size_chart(manifest.model["fp32_bytes"], manifest.model["int8_bytes"], inspection.size_bytes),
        speed_chart=charts.speed_chart(facts.get("engines") or {}, manifest.target["engine"], accuracy.get("speedup")),
        tuning_charts=charts.tuning(plan.get("rows") or [], manifest.plan),
        recovery_chart=charts.recovery_chart(recovery),
        megabytes=megabytes,
        scaled=scaled,
        text=value_text,
        cell=cell_text,
        humanized=humanized,
        columns=columns_of,
    )


def _trial_row(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of the table of trials. ``passed`` stands for the gates."""
    hidden = {"gates", "settings", "label"}
    return {
        "label": trial["label"],
        "settings": trial.get("settings"),
        **{key: value for key, value in trial.items() if key not in hidden},
    }


def value_text(value: Any) -> str:
    """Return a JSON value as text for people: numbers with four digits, None as a dash."""
    match value:
        case None:
            return "\N{EN DASH}"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
        case str():
            return value
        case Mapping():
            return ", ".join(f"{str(key).replace('_', ' ')} {value_text(each)}" for key, each in value.items())
        case Sequence():
            return ", ".join(value_text(each) for each in value)
    return str(value)


def cell_text(column: str, value: Any) -> str:
    """Return the text of a table cell: decibels and shares of time with one decimal, so that they align."""
    if column == "time_share" and isinstance(value, float):
        return percent(value)
    return f"{value:.1f}" if column.endswith("_db") and isinstance(value, float) else value_text(value)


_UNITS: dict[str, Callable[[str], str]] = {
    "_db": lambda name: f"{name}, dB",
    "_ms": lambda name: f"{name}, ms",
    "_s": lambda name: f"{name}, s",
    "_bytes": lambda name: f"{name}, bytes",
    "_per_s": lambda name: f"{name}/s",
}


def humanized(key: str) -> str:
    """Return a JSON key as a heading: ``output_sqnr_db`` becomes ``Output SQNR, dB``."""
    unit = max((ending for ending in _UNITS if key.endswith(ending)), key=len, default="")
    words = key.removesuffix(unit).replace("_", " ").strip()
    words = " ".join(
        {"sqnr": "SQNR", "fp32": "FP32", "int8": "INT8", "top1": "top-1", "isa": "ISA"}.get(w, w) for w in words.split()
    )
    words = words[:1].upper() + words[1:]
    return _UNITS[unit](words) if unit else words


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys for which at least one row has a value, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if value not in (None, "", [], {})))


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        found = read_json(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {name} is not JSON: {error}", hint="build it again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: {name} is not a JSON object", hint="build it again")
    return found
