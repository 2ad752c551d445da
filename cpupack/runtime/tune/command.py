"""``NAME tune``: searches this host for the best setting and keeps it where the next Runner finds it.

The package's own bench measures each candidate in a fresh process. Otherwise the threads, the memory and the caches
of an earlier candidate would be part of the next one's result. The builder's tune stage uses the same functions.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..bench.options import positive_int, positive_seconds, require_positive
from ..engine.contract import check_cpu
from ..errors import InputError
from ..host import probe as host_probe
from ..host import processes
from ..host.probe import HostProbe
from ..manifest import read_manifest
from ..plan import decide
from ..plan import table as plan_table
from ..plan.table import TunedTable
from .choice import Outcome
from .rows import Row
from .search import MeasurementFailedError, search
from .space import Setting, make_space

DEFAULT_BUDGET_S = 60.0
DEFAULT_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
OBJECTIVES = ("throughput", "latency")
SCENARIO_OF = {"throughput": "offline", "latency": "single-stream"}

_WARMUP_S = 0.5
"""Much shorter than the bench's own warm-up: three calls of the shape, which matter most, are always made."""
_ROW_FIELDS = (
    "scenario", "throughput_per_s", "throughput_ci95_per_s", "latency_ms", "duration_s", "samples", "calls",
    "peak_memory_bytes", "cold_start_ms", "valid", "invalid_reasons", "disturbed",
)  # fmt: skip


@dataclass(frozen=True)
class TuneOptions:
    """What to tune for and what to try. None takes the build's objective, its bound, or the divisors of the cores.

    ``threads`` and ``batch_sizes`` are the values to try. Raises InputError for a value that is impossible.
    """

    budget_s: float = DEFAULT_BUDGET_S
    objective: str | None = None
    max_latency_ms: float | None = None
    threads: tuple[int, ...] | None = None
    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES

    def __post_init__(self) -> None:
        require_positive("--budget-s", self.budget_s)
        require_positive("--max-latency-ms", self.max_latency_ms)
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise InputError(f"--objective {self.objective}: not one of {', '.join(OBJECTIVES)}")
        for option, values in (("--threads", self.threads), ("--batch-sizes", self.batch_sizes)):
            if values is not None and (not values or min(values) < 1):
                raise InputError(f"{option} {','.join(map(str, values))}: not a list of whole numbers from 1")


@dataclass(frozen=True)
class TuneResult:
    """The ``table`` as written to ``path``, and how it came about.

    ``noise`` is that of one measurement, as a share, None where it is not known. ``before`` is the setting in use so
    far, which came from ``before_source``.
    """

    table: TunedTable
    path: Path
    settings_measured: int
    settings_total: int
    noise: float | None
    before: Setting
    before_source: str

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``tune --json`` prints."""
        return {
            **asdict(self.table),
            "path": str(self.path),
            "settings_measured": self.settings_measured,
            "settings_total": self.settings_total,
            "noise": self.noise,
            "before": {**asdict(self.before), "source": self.before_source},
        }


@dataclass(frozen=True)
class BenchProcess:
    """Measures each setting by running the package's ``bench`` in a fresh process.

    ``environ`` is the child's whole environment, ``cwd`` its directory. The package is the one in ``package_dir``, or
    the one that Python finds by its name. An interrupt of the call kills the child.
    """

    import_name: str
    version: str
    scenario: str
    environ: Mapping[str, str]
    cwd: Path | None = None
    timeout_s: float = 300.0
    package_dir: Path | None = None

    def __call__(self, setting: Setting, duration_s: float) -> dict[str, Any]:
        """Return the fields of the bench's result that differ between rows. Raises MeasurementFailedError."""
        command = [*processes.module_command(self.import_name, self.package_dir), "bench", "--json", "--no-start"]
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
        return "killed, most likely because memory ran out"
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
        help="choose no setting whose p99 is above this (default: the build's bound, for the build's objective)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=_thread_list, metavar="N,N|auto", help="threads of one instance to try (default: auto)"
    )
    parser.add_argument(
        "--batch-sizes", type=_int_list, default=DEFAULT_BATCH_SIZES, metavar="N,N",
        help=f"batch sizes to try (default: {','.join(map(str, DEFAULT_BATCH_SIZES))})",
    )  # fmt: skip


def _int_list(text: str) -> tuple[int, ...]:
    return tuple(positive_int(part.strip()) for part in text.split(","))


def _thread_list(text: str) -> tuple[int, ...] | None:
    return None if text == "auto" else _int_list(text)


def from_arguments(args: argparse.Namespace) -> TuneOptions:
    """Return the options that ``args`` hold (of a parser with ``add_arguments``). Raises InputError."""
    return TuneOptions(args.budget_s, args.objective, args.max_latency_ms, args.threads, args.batch_sizes)


def run(
    package_dir: Path,
    options: TuneOptions,
    on_row: Callable[[Row, float], None] = lambda _row, _spent_s: None,
    on_start: Callable[[str], None] = lambda _text: None,
) -> TuneResult:
    """Search this host and keep the result in the user's cache.

    ``on_start`` is told what will be searched. ``on_row`` sees each measurement and the seconds spent. Raises
    TuningFailedError, and InputError before the search when the cache cannot be written.
    """
    manifest = read_manifest(package_dir)
    check_cpu(manifest)
    path = plan_table.writable_path(manifest)
    objective = options.objective or manifest.plan.objective
    bound = options.max_latency_ms
    if bound is None and objective == manifest.plan.objective:
        bound = manifest.plan.max_latency_ms
    probe = HostProbe()
    budget = probe.budget()
    threads = options.threads
    if threads is None and (wished := decide.user_threads(budget)) is not None:
        threads = (wished,)  # the next Runner will obey the variable too
    measure = BenchProcess(
        manifest.import_name,
        manifest.version,
        SCENARIO_OF[objective],
        os.environ,
        timeout_s=max(120.0, options.budget_s),
        package_dir=package_dir,
    )
    space = make_space(budget.usable, objective, threads, options.batch_sizes, budget.most)
    in_use = decide.decide(manifest, objective=objective, probe=probe)
    incumbent = Setting(in_use.threads, in_use.instances, in_use.batch_size)
    started_s = time.monotonic()
    on_start(f"{len(space)} settings for {objective} on {budget.usable} usable cores; in use so far: {incumbent}")
    outcome = search(
        measure,
        space,
        objective,
        bound,
        options.budget_s,
        time.monotonic,
        lambda row: on_row(row, time.monotonic() - started_s),
        incumbent,
    )
    table = _table(outcome, objective, bound, probe, plan_table.model_digest(manifest))
    plan_table.write_table(path, table)
    return TuneResult(table, path, outcome.measured, outcome.total, outcome.noise, incumbent, in_use.source)


def _table(outcome: Outcome, objective: str, bound: float | None, probe: HostProbe, model: str) -> TunedTable:
    return TunedTable(
        fingerprint=host_probe.fingerprint(probe),
        cores_usable=probe.budget().usable,
        model=model,
        objective=objective,
        max_latency_ms=bound,
        threads=outcome.setting.threads,
        instances=outcome.setting.instances,
        batch_size=outcome.setting.batch_size,
        reason=outcome.reason,
        searched_s=outcome.searched_s,
        rows=[row.to_dict() for row in outcome.rows],
        tuned_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def row_text(row: Row) -> str:
    """Return one measurement as a line, for progress."""
    if row.error is not None:
        return f"failed: {row.error}"
    again = f" (finals, round {row.round})" if row.round else ""
    again += ", disturbed" if row.disturbed else ""
    return (
        f"{row.setting}: {row.throughput_per_s:,.1f} samples/s, p50 {row.p50_ms:.1f} ms, p99 {row.p99_ms:.1f} ms{again}"
    )


def format_table(result: dict[str, Any]) -> str:
    """Return a result (the object of ``tune --json``) as lines for a terminal; the chosen setting is marked."""
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
