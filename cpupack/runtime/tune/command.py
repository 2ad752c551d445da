"""``NAME tune``: searches this host for the best setting and keeps it where the next Runner finds it.

Each candidate is measured by the package's own bench in a fresh process: threads of an earlier candidate, its
memory and its caches would else be part of the next one's result. The builder's tune stage uses the same
functions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..bench.run import positive_int, positive_seconds, setting_text
from ..engine.contract import check_cpu
from ..host import probe as host_probe
from ..host import processes
from ..host.probe import HostProbe
from ..manifest import read_manifest
from ..plan import decide
from ..plan import table as plan_table
from .search import MeasurementFailedError, Outcome, Setting, Space, TuningFailedError, make_space, search

__all__ = [
    "BenchProcess",
    "MeasurementFailedError",
    "Outcome",
    "Setting",
    "Space",
    "TuningFailedError",
    "make_space",
    "row_text",
    "search",
]

DEFAULT_BUDGET_S = 60.0
DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
OBJECTIVES = ("throughput", "latency")
SCENARIO_OF = {"throughput": "offline", "latency": "single-stream"}

_WARMUP_S = 0.5
"""A cap far below the bench's own: what matters of the warm-up, three calls of the shape, is always done."""
_ROW_FIELDS = (
    "scenario", "throughput_per_s", "throughput_ci95_per_s", "latency_ms", "duration_s", "samples", "calls",
    "peak_memory_bytes", "cold_start_ms", "valid", "invalid_reasons", "disturbed",
)  # fmt: skip


@dataclass(frozen=True)
class BenchProcess:
    """Measures settings by running ``python -m IMPORT bench`` in a fresh process each.

    ``environ`` is the child's whole environment, ``cwd`` its directory. Interrupting the call kills the
    child.
    """

    import_name: str
    version: str
    scenario: str
    environ: Mapping[str, str]
    cwd: Path | None = None
    timeout_s: float = 300.0

    def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
        """Return the bench's result without what is the same for every row. Raises MeasurementFailedError."""
        command = [sys.executable, "-m", self.import_name, "bench", "--json"]
        command += ["--scenario", self.scenario, "--threads", str(setting.threads)]
        command += ["--instances", str(setting.instances), "--batch-size", str(setting.batch_size)]
        command += ["--duration", f"{duration_s:g}", "--warmup", f"{_WARMUP_S:g}"]
        try:
            done = processes.run(
                command, timeout_s=self.timeout_s, stdin=subprocess.DEVNULL, env=dict(self.environ), cwd=self.cwd
            )
        except subprocess.TimeoutExpired:
            raise MeasurementFailedError(f"{setting}: not finished after {self.timeout_s:.0f} s") from None
        if done.returncode != 0:
            raise MeasurementFailedError(f"{setting}: {_why(done.returncode, done.stderr)}")
        try:
            result = json.loads(done.stdout)
            found = result["manifest"]["version"]
            row = {name: result[name] for name in _ROW_FIELDS}
        except (ValueError, KeyError, TypeError) as error:
            raise MeasurementFailedError(f"{setting}: the bench printed no result ({error})") from error
        if found != self.version:
            raise MeasurementFailedError(
                f"{setting}: python -m {self.import_name} is version {found}; {self.version} is being tuned"
            )
        return row


def _why(returncode: int, stderr: str) -> str:
    if returncode == -signal.SIGKILL:
        return "killed, most likely for want of memory"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the bench ended with status {returncode}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``NAME tune``."""
    parser.add_argument(
        "--budget-s", type=positive_seconds, default=DEFAULT_BUDGET_S, metavar="SECONDS",
        help="time for the whole search (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--objective", choices=OBJECTIVES, help="what to tune for (default: the build's)")
    parser.add_argument(
        "--max-latency-ms", type=positive_seconds, metavar="MS",
        help="choose no setting whose p99 is above this (default: the build's, for the build's objective)",
    )  # fmt: skip
    parser.add_argument(
        "--threads",
        type=_thread_list,
        metavar="N,N|auto",
        help="threads of one instance to try (default: auto)",
    )
    parser.add_argument(
        "--batch-sizes", type=_int_list, default=DEFAULT_BATCH_SIZES, metavar="N,N",
        help=f"batch sizes to try (default: {','.join(map(str, DEFAULT_BATCH_SIZES))})",
    )  # fmt: skip


def _int_list(text: str) -> tuple[int, ...]:
    return tuple(positive_int(part.strip()) for part in text.split(","))


def _thread_list(text: str) -> tuple[int, ...] | None:
    return None if text == "auto" else _int_list(text)


def run(
    package_dir: Path,
    args: argparse.Namespace,
    on_row: Callable[[dict[str, Any], float], None] = lambda _row, _spent_s: None,
    on_start: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Search this host as ``args`` (of ``add_arguments``) say and keep the result in the user's cache.

    Returns the table as written, with ``path``, ``settings_measured``, ``settings_total``, ``noise`` (of one
    measurement, as a share, or None) and ``before`` (the setting in use so far). ``on_start`` is told what will be
    searched, ``on_row`` sees each measurement and the seconds spent. Raises TuningFailedError; InputError, before
    searching, for an unwritable cache.
    """
    manifest = read_manifest(package_dir)
    check_cpu(manifest)
    path = plan_table.table_path(manifest)
    plan_table.check_writable(path)
    objective = args.objective or manifest.plan.objective
    bound = args.max_latency_ms
    if bound is None and objective == manifest.plan.objective:
        bound = manifest.plan.max_latency_ms
    probe = HostProbe()
    budget = probe.budget()
    threads = args.threads
    if threads is None and (wished := decide.user_threads()) is not None:
        threads = (wished,)  # the next Runner will obey the variable too
    measure = BenchProcess(
        manifest.import_name,
        manifest.version,
        SCENARIO_OF[objective],
        os.environ,
        timeout_s=max(120.0, args.budget_s),
    )
    space = make_space(budget.usable, objective, threads, args.batch_sizes, budget.most)
    in_use = decide.decide(manifest, objective=objective, probe=probe)
    incumbent = Setting(in_use.threads, in_use.instances, in_use.batch_size)
    started_s = time.monotonic()
    on_start(f"{len(space)} settings for {objective} on {budget.usable} usable cores; in use so far: {incumbent}")
    outcome = search(
        measure,
        space,
        objective,
        bound,
        args.budget_s,
        time.monotonic,
        lambda row: on_row(row, time.monotonic() - started_s),
        incumbent,
    )
    table = plan_table.TunedTable(
        fingerprint=host_probe.fingerprint(probe),
        cores_usable=budget.usable,
        model=plan_table.model_digest(manifest),
        objective=objective,
        max_latency_ms=bound,
        threads=outcome.setting.threads,
        instances=outcome.setting.instances,
        batch_size=outcome.setting.batch_size,
        reason=outcome.reason,
        searched_s=outcome.searched_s,
        rows=list(outcome.rows),
        tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    plan_table.write_table(path, table)
    return {
        **vars(table),
        "path": str(path),
        "settings_measured": outcome.measured,
        "settings_total": outcome.total,
        "noise": outcome.noise,
        "before": {**asdict(incumbent), "source": in_use.source},
    }


def row_text(row: dict[str, Any]) -> str:
    """Return one measurement as a line, for progress."""
    if "error" in row:
        return f"failed: {row['error']}"
    again = f" (finals, round {row['round']})" if row["round"] else ""
    again += ", disturbed" if row.get("disturbed") else ""
    latency = row["latency_ms"]
    return (
        f"{setting_text(row)}: {row['throughput_per_s']:,.1f} samples/s, p50 {latency['p50']:.1f} ms, "
        f"p99 {latency['p99']:.1f} ms{again}"
    )


def format_table(result: dict[str, Any]) -> str:
    """Return the result as lines for a terminal, the chosen setting's rows marked."""
    chosen = (result["threads"], result["instances"], result["batch_size"])
    lines = ["   threads  instances  batch  samples/s   p50 ms   p99 ms"]
    for row in result["rows"]:
        setting = (row["threads"], row["instances"], row["batch_size"])
        head = f"{'*' if setting == chosen else ' '}  {setting[0]:>7}  {setting[1]:>9}  {setting[2]:>5}"
        if "error" in row:
            lines.append(f"{head}  {row['error']}")
            continue
        latency = row["latency_ms"]
        lines.append(f"{head}  {row['throughput_per_s']:>9,.1f}  {latency['p50']:>7.1f}  {latency['p99']:>7.1f}")
    lines += [f"chosen for {result['objective']}: {result['reason']}", f"written to {result['path']}"]
    return "\n".join(lines)
