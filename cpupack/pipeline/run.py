"""The whole build, in order."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpupack.artifacts import (
    BuiltWheel,
    CalibrationReport,
    Contender,
    FloatModel,
    Recovery,
    StagedProject,
    TunePlan,
)
from cpupack.build_facts import build_facts, recovery_facts, safety_facts, safety_in_words, to_plain
from cpupack.pipeline.candidates import candidates
from cpupack.pipeline.contest import Settled, described, loss, settle
from cpupack.pipeline.prepare import Prepared, prepare
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import LoadedRecipe
from cpupack.stages.package import WheelContents, build_wheel, check_out, finish, publish, stage_project
from cpupack.stages.tune import tune
from cpupack.stages.verify import Loss, doubts


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks for beyond the recipe. ``cpus`` empty means the recipe's."""

    out: Path
    cpus: tuple[str, ...] = ()
    tune: bool = True


@dataclass(frozen=True)
class BuildResult:
    """One finished wheel with what its summary says. ``failed`` maps an engine to why it could not be built.

    ``facts`` is the wheel's ``build.json`` (see ``build_facts.py``).
    """

    wheel: BuiltWheel
    model: FloatModel
    contender: Contender
    raced: tuple[Contender, ...]
    failed: dict[str, str]
    plan: TunePlan
    recovery: Recovery | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    calibration: CalibrationReport | None = None


def build(loaded: LoadedRecipe, options: BuildOptions, progress: Progress) -> list[BuildResult]:
    """Build one wheel for each CPU of a recipe; nothing is left in ``options.out`` unless all of them succeed.

    Raises the CpupackError of the stage that failed.
    """
    cpus = options.cpus or tuple(loaded.recipe.target.cpu)
    check_out(options.out)
    for cpu in cpus:
        candidates(loaded.recipe, cpu, supported_engines())  # an engine that is not to be had is said before the work
    with tempfile.TemporaryDirectory(prefix="cpupack-") as name:
        work = Path(name)
        prepared = prepare(loaded, work, progress)
        finished = []
        for cpu in cpus:
            settled = described(settle(prepared, cpu, work, progress), progress)
            for doubt in doubts(settled.winner):
                progress.warn(doubt)
            lost = loss(settled, progress)
            if lost is not None:
                progress.warn(lost.text)
            staged = _stage(settled, work / cpu, progress)
            plan = _tune(staged, loaded, settled.winner, options, progress)
            facts = _facts(settled, lost, plan, progress)
            finished.append((finish(staged, plan, facts), settled, plan, facts))
        with progress.stage("package"):
            wheels = publish([build_wheel(staged, work / "dist") for staged, *_ in finished], options.out)
            return [
                BuildResult(
                    wheel,
                    prepared.model,
                    settled.winner,
                    settled.raced,
                    settled.failed,
                    plan,
                    settled.recovery,
                    facts,
                    prepared.diagnosis,
                )
                for wheel, (_, settled, plan, facts) in zip(wheels, finished, strict=True)
            ]


def stage_untuned(
    loaded: LoadedRecipe, cpu: str, work: Path, progress: Progress
) -> tuple[Prepared, Contender, StagedProject]:
    """Build for one CPU up to the runner's project, which runs as it is (``cpupack compare`` sets its own plans)."""
    prepared = prepare(loaded, work, progress)
    settled = settle(prepared, cpu, work, progress)
    return settled.prepared, settled.winner, _stage(settled, work / cpu, progress)


def _stage(settled: Settled, directory: Path, progress: Progress) -> StagedProject:
    prepared, winner = settled.prepared, settled.winner
    with progress.stage(f"stage ({winner.scripted.target.cpu})"):
        contents = WheelContents(
            loaded=prepared.loaded,
            model=prepared.model,
            fused=prepared.fused,
            scripted=winner.scripted,
            report=winner.report,
            target=winner.scripted.target,
            calibration=prepared.calibration,
            golden=winner.golden,
            notes=(*winner.quantized.notes, *([safety_in_words(winner.saturation)] if winner.saturation else [])),
            recovery=settled.recovery,
        )
        return stage_project(contents, directory)


def _tune(
    staged: StagedProject, loaded: LoadedRecipe, winner: Contender, options: BuildOptions, progress: Progress
) -> TunePlan:
    target = winner.scripted.target
    if not options.tune:
        return TunePlan(tuned=False, objective=loaded.recipe.tune.objective, reason="built with --no-tune")
    with progress.stage(f"tune ({target.cpu})"):
        return tune(staged, loaded.recipe, target, progress)


def _facts(settled: Settled, lost: Loss | None, plan: TunePlan, progress: Progress) -> dict[str, Any]:
    """Return what the wheel will say about its build; times are of the stages up to here."""
    saturation = settled.winner.saturation
    return build_facts(
        settled.prepared.model,
        settled.winner,
        settled.raced,
        settled.failed,
        plan,
        times_s=progress.times_s,
        warnings=progress.warnings,
        sections={
            "recovery": recovery_facts(settled.recovery) if settled.recovery else None,
            "calibration": settled.prepared.diagnosis,
            "layers": settled.winner.layers,
            "loss": {"finding": lost.finding, **to_plain(lost)} if lost else None,
            "saturation": safety_facts(saturation) if saturation else None,
        },
    )
