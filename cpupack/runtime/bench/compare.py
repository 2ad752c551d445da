"""``bench --compare``: compares this result with the build's or an earlier one, and explains the difference."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..manifest import Manifest, build_rows
from .options import BUILD
from .results import Comparison, Difference

_SETTING = ("threads", "instances", "batch_size")
_FIGURES = ("p50", "p90", "p99")
_NEEDED = ("scenario", "throughput_per_s", "latency_ms", *_SETTING)
_EQUAL_CLOCK = 0.02
_NAMES = {
    "scenario": "scenario",
    "setting": "setting",
    "cores": "cores at work",
    "clock": "clock",
    "cpu": "CPU",
    "isa": "ISA",
    "torch": "torch",
    "engine": "engine",
    "allocator": "allocator",
    "input": "input",
    "package": "package",
}


@dataclass(frozen=True)
class Reference:
    """The result to compare with. ``row`` has the bench's fields; ``host`` and ``manifest`` have what is known of them.

    ``rows`` are all rows measured there. One of them with an equal setting is used in place of ``row``.
    """

    source: str
    row: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    host: Mapping[str, Any]
    manifest: Mapping[str, Any]


def read_reference(wanted: str, package_dir: Path, manifest: Manifest) -> Reference:
    """Return the build's numbers for ``BUILD``, else those of the file that ``bench --json`` wrote.

    Raises InputError when there are none, or when the file is not such a result.
    """
    return _of_build(package_dir, manifest) if wanted == BUILD else _of_file(Path(wanted))


def _of_build(package_dir: Path, manifest: Manifest) -> Reference:
    row = manifest.bench.get("build")
    if not row:
        raise InputError(
            f"--compare: {manifest.name} was built without tuning ({manifest.plan.reason}), so it holds no numbers; "
            "keep a result of bench --json and name its file"
        )
    rows = build_rows(package_dir)
    return Reference(
        source="the build",
        row=row,
        rows=tuple(each for each in rows if "error" not in each),
        host={
            **(manifest.build.get("host") or {}),
            "torch": manifest.torch.get("version"),
            "cpu_mhz": (row.get("cpu_mhz") or {}).get("end"),
        },
        manifest={
            "name": manifest.name,
            "version": manifest.version,
            "engine": manifest.target["engine"],
            "random_weights": manifest.random_weights,
        },
    )


def _of_file(path: Path) -> Reference:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--compare {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"--compare {path} is not JSON: {error}; name a file written by bench --json") from error
    missing = [key for key in _NEEDED if not isinstance(found, dict) or key not in found]
    if missing:
        raise InputError(f"--compare {path} is not a result of bench --json: it has no {missing[0]}")
    return Reference(str(path), found, (), found.get("host") or {}, found.get("manifest") or {})


def compare(result: Mapping[str, Any], reference: Reference) -> Comparison:
    """Return the comparison of ``result`` (the object of ``bench --json``) with ``reference``."""
    row = _same_setting(result, reference)
    comparable = row["scenario"] == result["scenario"]
    differences = _differences(result, row, reference)
    known = [each.factor for each in differences if each.factor is not None]
    expected = math.prod(known) if known else 1.0
    ratio = _ratio(result["throughput_per_s"], row["throughput_per_s"])
    agrees = _agrees(result, row) if comparable else None
    latency_ratio = None
    if comparable and row["batch_size"] == result["batch_size"]:
        latency_ratio = {name: _ratio(result["latency_ms"][name], row["latency_ms"].get(name)) for name in _FIGURES}
    return Comparison(
        against=reference.source,
        reference={key: row[key] for key in _NEEDED},
        throughput_ratio=ratio,
        latency_ratio=latency_ratio,
        expected_ratio=expected,
        agrees=agrees,
        differences=tuple(differences),
        conclusion=_conclusion(ratio, expected, agrees, differences),
    )


def _same_setting(result: Mapping[str, Any], reference: Reference) -> Mapping[str, Any]:
    """Return the reference's row of the same scenario and setting, the median of several; its own row without one."""
    keys = ("scenario", *_SETTING)
    wanted = [result[key] for key in keys]
    alike = sorted(
        (row for row in reference.rows if [row.get(key) for key in keys] == wanted),
        key=lambda row: float(row["throughput_per_s"]),
    )
    return alike[len(alike) // 2] if alike else reference.row


def _differences(result: Mapping[str, Any], row: Mapping[str, Any], reference: Reference) -> list[Difference]:
    here, there = result["host"], reference.host
    found: list[Difference] = []

    def add(what: str, ours: Any, theirs: Any, effect: str, factor: float | None = None) -> None:
        if ours is not None and theirs is not None and ours != theirs:
            text = f"{_NAMES[what]}: {ours} here, {theirs} there; {effect}"
            found.append(Difference(what, ours, theirs, text, factor))

    ours, theirs = result["manifest"], reference.manifest
    add("package", _package(ours), _package(theirs), "another model or build, so the figures may differ")
    add("scenario", result["scenario"], row["scenario"], "the load is another one, so only throughput can be compared")
    add("input", result.get("input"), row.get("input"), "the work outside the model differs")
    cores = {side: _cores_at_work(each, host) for side, each, host in (("here", result, here), ("there", row, there))}
    saturating = result["scenario"] == row["scenario"] == "offline"
    add(
        "cores",
        cores["here"],
        cores["there"],
        "throughput grows with the cores while memory keeps up",
        _ratio(cores["here"], cores["there"]) if saturating else None,
    )
    add("setting", _setting(result), _setting(row), "threads, instances and batch size trade latency for throughput")
    clock = _ratio(here.get("cpu_mhz"), there.get("cpu_mhz"))
    if clock is not None and abs(clock - 1) > _EQUAL_CLOCK:
        ours_mhz, theirs_mhz = (f"{host['cpu_mhz']:,.0f} MHz" for host in (here, there))
        add("clock", ours_mhz, theirs_mhz, "speed follows the clock", clock)
    add("cpu", here.get("cpu"), there.get("cpu"), "another CPU design does more or less work in a cycle")
    add(
        "isa",
        here.get("isa"),
        there.get("isa"),
        "other INT8 instructions: avx512_vnni does twice avx2's work, amx more",
    )
    add("torch", here.get("torch"), there.get("torch"), "other kernels")
    add("engine", ours.get("engine"), theirs.get("engine"), "other kernels")
    add("allocator", here.get("allocator"), there.get("allocator"), "page faults cost up to a tenth of the time")
    return found


def _conclusion(ratio: float | None, expected: float, agrees: bool | None, differences: list[Difference]) -> str:
    if ratio is None:
        return "the reference has no throughput to compare with"
    names = [_NAMES[each.what] for each in differences]
    if agrees:
        return "equal: the reference lies where a second run here would"
    said = f"{ratio:.2f} times the reference's throughput"
    if not differences:
        return (
            f"{said}, and nothing that is known differs; the host may have been busy, or the reference may not say all"
        )
    rest = ratio / expected
    if expected != 1.0 and 0.9 <= rest <= 1.1:
        causes = [_NAMES[each.what] for each in differences if each.factor is not None]
        return f"{said}; {' and '.join(causes)} explain it (expected {expected:.2f})"
    known = f"; {expected:.2f} was expected from clock and cores" if expected != 1.0 else ""
    return f"{said}{known}; these differ: {', '.join(names)}"


def format_comparison(comparison: Mapping[str, Any]) -> str:
    """Return a comparison (the object in ``bench --json``) as lines for a terminal."""
    row, ratio = comparison["reference"], comparison["throughput_ratio"]
    lines = [
        f"compared with {comparison['against']} ({row['scenario']}, {_setting(row)})",
        f"  throughput  {row['throughput_per_s']:,.1f} samples/s there"
        + (f"; here {ratio:.2f} times that" if ratio is not None else ""),
    ]
    if ratios := comparison["latency_ratio"]:
        shown = [f"{name} {row['latency_ms'][name]:.2f} ms ({each:.2f} times)" for name, each in ratios.items() if each]
        lines.append(f"  latency     {'  '.join(shown)}")
    lines += [f"  - {each['text']}" for each in comparison["differences"]]
    return "\n".join([*lines, f"  {comparison['conclusion']}"])


def _agrees(result: Mapping[str, Any], row: Mapping[str, Any]) -> bool | None:
    headline, interval = result.get("headline"), result.get("headline_repeat95")
    if interval is None or _setting(result) != _setting(row):
        return None
    there = row["throughput_per_s"] if headline == "throughput_per_s" else row["latency_ms"].get(headline)
    return None if there is None else bool(interval[0] <= there <= interval[1])


def _cores_at_work(row: Mapping[str, Any], host: Mapping[str, Any]) -> int | None:
    usable = host.get("cores_usable")
    return min(row["threads"] * row["instances"], usable) if usable else None


def _setting(row: Mapping[str, Any]) -> str:
    return f"{row['instances']} x {row['threads']}, batch {row['batch_size']}"


def _package(manifest: Mapping[str, Any]) -> str | None:
    return f"{manifest['name']} {manifest.get('version', '')}".strip() if "name" in manifest else None


def _ratio(here: float | None, there: float | None) -> float | None:
    return here / there if here is not None and there else None
