"""Finds the setting that the wheel ships with, by running the staged project's own bench in fresh processes."""

from __future__ import annotations

import os
import time
from statistics import median

from cpupack.artifacts import StagedProject, TunePlan, VerifyReport
from cpupack.errors import TuningError
from cpupack.progress import Progress
from cpupack.recipe import Recipe
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.tune.choice import TuningFailedError
from cpupack.runtime.tune.command import SCENARIO_OF, BenchProcess, row_text
from cpupack.runtime.tune.rows import Row
from cpupack.runtime.tune.search import search
from cpupack.runtime.tune.space import make_space
from cpupack.targets import Target


def tune(staged: StagedProject, recipe: Recipe, target: Target, report: VerifyReport, progress: Progress) -> TunePlan:
    """Search threads x instances x batch size within ``[tune] budget_s`` and return the best with all measurements.

    ``report`` has the race against FP32, which says about how long a sample takes. A target that this host cannot run
    is not tuned, and the plan says so. Raises TuningError when nothing could be measured, or when no setting meets
    ``[tune] max_latency_ms``.
    """
    options = recipe.tune
    if not target.runs_here:
        reason = f"not tuned: this host is not {target.cpu}; run `{staged.distribution} tune` on such a host"
        progress.note(reason)
        return TunePlan(tuned=False, objective=options.objective, max_latency_ms=options.max_latency_ms, reason=reason)
    threads = None if options.threads == "auto" else options.threads
    budget = HostProbe().budget()
    started_s = time.monotonic()

    def show(row: Row) -> None:
        spent_s = min(time.monotonic() - started_s, options.budget_s)
        progress.step(round(spent_s), max(1, round(options.budget_s)), "s")
        progress.note(row_text(row))

    try:
        outcome = search(
            _bench(staged, options.objective, options.budget_s),
            make_space(budget.usable, options.objective, threads, options.batch_sizes, budget.most),
            options.objective,
            options.max_latency_ms,
            options.budget_s,
            time.monotonic,
            show,
            sample_s=_sample_s(report, target),
        )
    except TuningFailedError as error:
        raise TuningError(str(error), hint=_hint(recipe)) from error
    if 2 * outcome.disturbed > len(outcome.rows):
        progress.warn(
            f"tuned on a busy host: other work disturbed {outcome.disturbed} of {len(outcome.rows)} runs; "
            f"run `{staged.distribution} tune` on the host that will serve"
        )
    return TunePlan(
        tuned=True,
        objective=options.objective,
        threads=outcome.setting.threads,
        instances=outcome.setting.instances,
        batch_size=outcome.setting.batch_size,
        max_latency_ms=options.max_latency_ms,
        reason=outcome.reason,
        rows=tuple(row.to_dict() for row in outcome.rows),
        searched_s=outcome.searched_s,
    )


def _sample_s(report: VerifyReport, target: Target) -> float:
    """Return the seconds that a sample took in the race, 0 where none was timed."""
    rows = [row for row in report.speed_rows if row["name"] == target.engine]
    return median(row["latency_ms"] / row["batch_size"] for row in rows) / 1000.0 if rows else 0.0


def _bench(staged: StagedProject, objective: str, budget_s: float) -> BenchProcess:
    # The child must not write bytecode into the staged project, because all files there go into the wheel.
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return BenchProcess(
        staged.import_name,
        staged.version,
        SCENARIO_OF[objective],
        environ,
        cwd=staged.root,
        timeout_s=max(120.0, budget_s),
        package_dir=staged.package_dir,
    )


def _hint(recipe: Recipe) -> str:
    if recipe.tune.max_latency_ms is not None:
        return "raise [tune] max_latency_ms, add smaller batch_sizes or more threads, or build with --no-tune"
    return "fix the failure above, or build with --no-tune"
