"""Makes the page of ``serving.py`` from its rows."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

QUIET_CORES = 0.15
"""Of a host on which nothing else works the kernel's threads and interrupts take up to this much."""

Row = dict[str, Any]
_HEAD = """\
# A server under load

<!-- Written by `python benchmarks/serving.py table`. -->

EfficientNet-Lite0 in INT8 on 2 cores of an AMD EPYC (avx512_vnni), or of the CPU that a heading names. The client runs
on the same 2 cores, in its own process. All servers call the same wheel, so the kernels are the same. "Good" is an
answer within the bound, counted from the scheduled arrival. Requests arrive at random times (Poisson). `serving.py
--help` says how it is measured, and `results/` has every row.
"""


def table(rows: list[Row]) -> str:
    """Return the page."""
    parts: list[tuple[str, Callable[[list[Row]], list[str]]]] = [
        ("goodput", _goodput), ("cpu", _cpu), ("quiet", _quiet), ("jpeg", _jpeg), ("overload", _overload),
    ]  # fmt: skip
    lines = [_HEAD]
    for cpu in sorted({row.get("cpu", "") for row in rows}):  # rows of the first host name none
        if cpu:
            lines += [f"# On 2 cores of an {cpu}", ""]
        for what, make in parts:
            if found := [row for row in rows if row["what"] == what and row.get("cpu", "") == cpu]:
                lines += make(found)
    return "\n".join(lines).rstrip("\n") + "\n"


def _goodput(rows: list[Row]) -> list[str]:
    """Good answers a second of each server at each rate, and each server's best setting."""
    seen: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        seen[_name(row)][row["rate_per_s"]].append(row["good_per_s"])
    rates = sorted({row["rate_per_s"] for row in rows})
    within_ms = rows[0]["within_ms"]
    lines = [
        f"## Good answers a second, JPEG files of about 100 KB, within {within_ms:g} ms",
        "",
        "Medians of the rounds, by the rate that is offered.",
        "",
        "| server | " + " | ".join(f"{rate:g}/s" for rate in rates) + " | peak |",
        "|---|" + "---:|" * (len(rates) + 1),
    ]
    for name, found in sorted(seen.items(), key=lambda one: -_peak(one[1])):
        cells = [f"{statistics.median(found[rate]):.0f}" if found.get(rate) else "" for rate in rates]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {_peak(found):.0f} |")
    best: dict[str, float] = defaultdict(float)
    for row in rows:
        best[row["server"]] = max(best[row["server"]], _peak(seen[_name(row)]))
    if "cpupack" in best:
        ratios = [f"{best['cpupack'] / peak:.2f} times {name}'s" for name, peak in best.items() if name != "cpupack"]
        lines += ["", f"At its best setting, cpupack's peak is {', '.join(ratios)}." if ratios else ""]
    return [*lines, ""]


def _peak(found: dict[float, list[float]]) -> float:
    return max(statistics.median(values) for values in found.values())


def _cpu(rows: list[Row]) -> list[str]:
    lines = [
        "## CPU time of the server, tensors",
        "",
        'One request a call. "Beyond the kernels" is the difference to a process that makes the same calls without a',
        "server: at the same times, or one after the other where the connections send as fast as they are answered.",
        "",
        "| server | body | load | CPU a request | beyond the kernels |",
        "|---|---|---:|---:|---:|",
    ]
    for package, rate in sorted({(row["package"], _load(row)) for row in rows}):
        same = [row for row in rows if (row["package"], _load(row)) == (package, rate)]
        alone = _median(same, "cpu_ms", server="kernels")
        lines.append(f"| the calls of {package} alone | | {rate} | {alone:.3f} ms | |")
        for name, body, size in sorted({(_name(row), row["body"], row["body_kb"]) for row in same if "body" in row}):
            one = [row for row in same if (_name(row), row.get("body"), row.get("body_kb")) == (name, body, size)]
            used = _median(one, "server_cpu_ms_a_request")
            lines.append(f"| {name} | {body}, {size:.1f} KB | {rate} | {used:.3f} ms | {used - alone:.3f} ms |")
    return [*lines, ""]


def _load(row: Row) -> str:
    return "as fast as answered" if row.get("closed") else f"{row['rate_per_s']:g}/s"


def _quiet(rows: list[Row]) -> list[str]:
    lines = [
        "## Latency under little load, tensors of 150 KB",
        "",
        "| | requests/s | p50 | p99 |",
        "|---|---:|---:|---:|",
    ]
    for name, rate in sorted({(_name(row), row["rate_per_s"]) for row in rows}, reverse=True):
        same = [row for row in rows if (_name(row), row["rate_per_s"]) == (name, rate)]
        p50, p99 = (
            statistics.median(row[f"{key}_ms"] if f"{key}_ms" in row else row["latency_ms"][key] for row in same)
            for key in ("p50", "p99")
        )
        lines.append(f"| {name} | {rate:g} | {p50:.2f} ms | {p99:.2f} ms |")
    return [*lines, ""]


def _jpeg(rows: list[Row]) -> list[str]:
    lines = [
        "## JPEG files as fast as the server takes them",
        "",
        "Beside `bench --from images:DIR` of the same wheel, which reads files and has no client.",
        "",
        "| | images/s | of bench | cores of the server | cores of the client |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in sorted({_name(row) for row in rows}, key=lambda one: ("other work" in one, one)):
        same = [row for row in rows if _name(row) == name]
        rate = _median(same, "answered_per_s")
        bench = _median(
            [row for row in rows if _disturbed(row) == _disturbed(same[0])],
            "answered_per_s",
            server="bench",
        )
        cores = (
            ["", ""]
            if name.startswith("bench")
            else [f"{_median(same, 'server_cores'):.2f}", f"{_median(same, 'client_cores'):.2f}"]
        )
        lines.append(f"| {name} | {rate:.0f} | {rate / bench:.2f} | {' | '.join(cores)} |")
    return [*lines, ""]


def _overload(rows: list[Row]) -> list[str]:
    lines = [
        "## More load than it carries",
        "",
        "The last line of a setting is a burst of ten times the rate for a second. Refusals: p99 as the client",
        "measures it, and in the server from the head of the request to the written answer. Cores: of the server, of",
        "the client, and of all other work on the host.",
        "",
        "| setting | offered | good/s | p99 of answered | refused | p99 of refusals | in the server "
        "| error of wait, p90 | memory | cores |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rows = [{**row, "server": f"{row['server']}, {row['body']}"} for row in rows]
    keys = sorted({(_name(row, told=False), bool(row.get("burst")), row["rate_per_s"]) for row in rows})
    for name, is_burst, rate in keys:
        same = [
            row
            for row in rows
            if (_name(row, told=False), bool(row.get("burst")), row["rate_per_s"]) == (name, is_burst, rate)
        ]
        offered = f"{rate:g}/s" + (", then 10 times" if is_burst else "")
        good = f"{_median(same, 'good_per_s'):.0f}"
        if is_burst:
            good += f"; normal after {_median(same, 'recovered_ms'):.0f} ms"
        share = statistics.median(row["refused"] / row["requests"] for row in same)
        refusals = [row["refusal_ms"]["p99"] for row in same if row["refusal_ms"]]
        inside = [row["refusal_in_server_p99_s"] for row in same if row.get("refusal_in_server_p99_s") is not None]
        errors = [row["wait_error_p90"] for row in same if row.get("wait_error_p90") is not None]
        lines.append(
            f"| {name} | {offered} | {good} | {statistics.median(row['latency_ms']['p99'] for row in same):.1f} ms | "
            f"{share:.0%} | {f'{statistics.median(refusals):.1f} ms' if refusals else ''} | "
            f"{f'{1000 * statistics.median(inside):.1f} ms' if inside else ''} | "
            f"{f'{statistics.median(errors):.0%}' if errors else ''} | {_median(same, 'server_mb'):.0f} MB | "
            f"{', '.join(f'{_median(same, key):.2f}' for key in ('server_cores', 'client_cores', 'other_cores'))} |"
        )
    return [*lines, ""]


def _median(rows: Iterable[Row], key: str, **wanted: Any) -> float:
    values = [float(row[key]) for row in rows if all(row.get(name) == value for name, value in wanted.items())]
    return statistics.median(values)


def _name(row: Row, *, told: bool = True) -> str:
    """Return the server with its setting, and if that is to be ``told``, whether other work disturbed it."""
    setting = row.get("setting") or {}
    shown = ", ".join(
        f"{key} {' '.join(map(str, value)) if isinstance(value, list) else json.dumps(value)}"
        for key, value in setting.items()
    )
    name = f"{row['server']} ({shown})" if shown else str(row["server"])
    return f"{name}, other work on the host" if told and _disturbed(row) else name


def _disturbed(row: Row) -> bool:
    """Return whether other work on the host took a part of it that matters."""
    return bool(row.get("other_work")) or row.get("other_cores", 0.0) > QUIET_CORES
