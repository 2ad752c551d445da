"""Tune: the staged project's own bench, in fresh processes, finds the setting that the wheel ships with."""

from __future__ import annotations

import os
import time

from cpupack.artifacts import StagedProject, TunePlan
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


def tune(staged: StagedProject, recipe: Recipe, target: Target, progress: Progress) -> TunePlan:
    """Search threads x instances x batch size within ``[tune] budget_s`` and return the best with every row.

    A target that this host cannot run is not tuned; the plan then says why. Raises TuningError when nothing
    could be measured, or when nothing meets ``[tune] max_latency_ms``.
    """
    wish = recipe.tune
    if not target.runs_here:
        reason = f"not tuned: this host is not {target.cpu}; run `{staged.distribution} tune` on one that is"
        progress.note(reason)
        return TunePlan(tuned=False, objective=wish.objective, max_latency_ms=wish.max_latency_ms, reason=reason)
    threads = None if wish.threads == "auto" else wish.threads
    budget = HostProbe().budget()
    started_s = time.monotonic()

    def show(row: Row) -> None:
        spent_s = min(time.monotonic() - started_s, wish.budget_s)
        progress.step(round(spent_s), max(1, round(wish.budget_s)), "s")
        progress.note(row_text(row))

    try:
        outcome = search(
            _bench(staged, wish.objective, wish.budget_s),
            make_space(budget.usable, wish.objective, threads, wish.batch_sizes, budget.most),
            wish.objective,
            wish.max_latency_ms,
            wish.budget_s,
            time.monotonic,
            show,
        )
    except TuningFailedError as error:
        raise TuningError(str(error), hint=_hint(recipe)) from error
    if 2 * outcome.disturbed > len(outcome.rows):
        progress.warn(
            f"tuned on a busy host: other work disturbed {outcome.disturbed} of {len(outcome.rows)} runs; "
            f"run `{staged.distribution} tune` where it will serve"
        )
    return TunePlan(
        tuned=True,
        objective=wish.objective,
        threads=outcome.setting.threads,
        instances=outcome.setting.instances,
        batch_size=outcome.setting.batch_size,
        max_latency_ms=wish.max_latency_ms,
        reason=outcome.reason,
        rows=tuple(row.to_dict() for row in outcome.rows),
        searched_s=outcome.searched_s,
    )


def _bench(staged: StagedProject, objective: str, budget_s: float) -> BenchProcess:
    source = str(staged.package_dir.parent)
    inherited = os.environ.get("PYTHONPATH")
    environ = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{inherited}" if inherited else source}
    # The child must not fill the staged project with bytecode: everything in it goes into the wheel.
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return BenchProcess(
        staged.import_name,
        staged.version,
        SCENARIO_OF[objective],
        environ,
        cwd=staged.root,  # not the user's directory, which may hold a package of the same name
        timeout_s=max(120.0, budget_s),
    )


def _hint(recipe: Recipe) -> str:
    if recipe.tune.max_latency_ms is not None:
        return "raise [tune] max_latency_ms, add smaller batch_sizes or more threads, or build with --no-tune"
    return "run the printed failure by hand, or build with --no-tune"
