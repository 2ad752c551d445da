"""The whole build, in order."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpupack.artifacts import (
    BuiltWheel,
    CalibrationReport,
    Contender,
    FloatModel,
    Recovery,
    Slower,
    StagedProject,
    TunePlan,
)
from cpupack.build_facts import build_facts, recovery_facts, safety_facts, safety_in_words
from cpupack.cache import DEFAULT_LIMIT_BYTES, StageCache
from cpupack.lock import Lock, WheelLock, check_build, check_early, check_wheel, lock_path, read_lock, replayed
from cpupack.pipeline.candidates import candidates
from cpupack.pipeline.contest import Settled, described, loss, settle
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.lengths import with_lengths
from cpupack.pipeline.locked import check_parts, fp32_threads, inputs_read, keep_lock, plan_again, settle_again
from cpupack.pipeline.prepare import Prepared, prepare
from cpupack.pipeline.sizes import with_sizes
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import LoadedRecipe
from cpupack.scratch import scratch_directory
from cpupack.stages.package import WheelContents, build_wheel, check_out, finish, publish, stage_project
from cpupack.stages.tune import tune
from cpupack.stages.verify import Loss, unproven
from cpupack.torch_noise import quiet_internals
from cpupack.wheel.epoch import dated, source_date_epoch


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build that are not in the recipe.

    ``cpus`` are the CPU families to build for; empty means those of the recipe. ``tune`` false skips the search for
    threads and batch size. ``locked`` takes every decision and measurement from the recipe's lock, and fails where the
    lock does not hold; ``renew_lock`` writes the lock anew. ``cache`` keeps what stages made in the user's cache
    directory, up to ``cache_bytes`` of all builds, and takes it from there where nothing that it depends on changed.
    """

    cpus: tuple[str, ...] = ()
    tune: bool = True
    locked: bool = False
    renew_lock: bool = False
    cache: bool = True
    cache_bytes: int = DEFAULT_LIMIT_BYTES


@dataclass(frozen=True)
class BuildResult:
    """One finished wheel and the findings of its build.

    ``wheel.path`` is the file. ``facts`` is the content of the wheel's ``build.json``. ``contender`` is the engine that
    was packaged, ``raced`` are all engines that were checked, ``slower`` those that were dropped before that, and
    ``failed`` maps each engine that could not be built to the reason.
    ``warnings`` is what the user must not miss. ``times_s`` has the wall time of each stage by its title. ``cached``
    names the stages whose results came from the cache.
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
    warnings: tuple[str, ...] = ()
    times_s: dict[str, float] = field(default_factory=dict)
    slower: tuple[Slower, ...] = ()
    cached: tuple[str, ...] = ()


@quiet_internals()
def build(loaded: LoadedRecipe, out: Path, options: BuildOptions, progress: Progress) -> list[BuildResult]:
    """Build one wheel for each CPU of a recipe. If one build fails, no wheel is left in ``out``.

    The first build of a recipe also writes its lock. Raises the CpupackError of the stage that failed.
    """
    cpus = options.cpus or tuple(loaded.recipe.target.cpu)
    check_out(out)
    epoch = source_date_epoch()
    path = lock_path(loaded.path)
    lock = _opened(path, loaded, cpus, epoch) if options.locked else None
    if lock is not None:
        epoch = lock.source_date_epoch
    for cpu in cpus:
        candidates(loaded.recipe, cpu, supported_engines())  # so that a missing engine fails early
    with scratch_directory() as work, dated(epoch), fp32_threads(lock):
        cache = StageCache.of_user(loaded, progress, use=options.cache, limit_bytes=options.cache_bytes)
        prepared = prepare(loaded, work, progress, cache)
        inputs = inputs_read(prepared)
        if lock is not None:
            check_build(lock, path, inputs)
        corrections, finished = Corrections(), []
        for cpu in cpus:
            known = lock.wheels[cpu] if lock is not None else None
            finished.append(_finished(prepared, cpu, work, corrections, known, options, progress))
        with progress.stage("package"):
            built = [build_wheel(each.staged, work / "dist") for each in finished]
            if lock is not None:
                for wheel, each in zip(built, finished, strict=True):
                    check_wheel(wheel, each.staged.import_name, lock.wheels[each.cpu], path)
            wheels = publish(built, out)
    if lock is None:
        pairs = [(wheel, each.settled) for wheel, each in zip(wheels, finished, strict=True)]
        keep_lock(loaded, inputs, pairs, epoch, progress, renew=options.renew_lock)
    return [
        BuildResult(
            wheel,
            prepared.model,
            each.settled.winner,
            each.settled.raced,
            each.settled.failed,
            each.plan,
            each.settled.recovery,
            each.facts,
            prepared.diagnosis,
            tuple(progress.warnings),
            dict(progress.times_s),
            each.settled.slower,
            tuple(dict.fromkeys(cache.taken)),
        )
        for wheel, each in zip(wheels, finished, strict=True)
    ]


@dataclass(frozen=True)
class _Finished:
    """A project that is ready to become a wheel."""

    cpu: str
    staged: StagedProject
    settled: Settled
    plan: TunePlan
    facts: dict[str, Any]


def _finished(
    prepared: Prepared,
    cpu: str,
    work: Path,
    corrections: Corrections,
    known: WheelLock | None,
    options: BuildOptions,
    progress: Progress,
) -> _Finished:
    """Build the project of one CPU family; with a lock (``known``) as it was built before."""
    if known is None:
        settled = settle(prepared, cpu, work, corrections, progress)
    else:
        settled = settle_again(prepared, cpu, work, corrections, known, progress)
    settled = with_lengths(described(settled, corrections, progress), corrections, work, progress)
    settled = with_sizes(settled, corrections, work, progress)
    for sentence in unproven(settled.winner):
        progress.warn(sentence)
    loss_report = loss(settled, corrections, progress)
    if loss_report is not None:
        progress.warn(loss_report.text)
    staged = _stage(settled, work / cpu, progress)
    if known is None:
        plan = _tune(staged, prepared.loaded, settled.winner, options, progress)
        facts = _facts(settled, loss_report, plan, progress)
        return _Finished(cpu, finish(staged, plan, facts), settled, plan, facts)
    plan = plan_again(known)
    facts = replayed(_facts(settled, loss_report, plan, progress), known.measured)
    return _Finished(cpu, finish(staged, plan, facts, known.measured["measured"]), settled, plan, facts)


def _opened(path: Path, loaded: LoadedRecipe, cpus: tuple[str, ...], epoch: int | None) -> Lock:
    """Return the recipe's lock, compared with what can be compared before the work. Raises LockError."""
    lock = read_lock(path)
    for cpu in cpus:
        lock.wheel(cpu, path)
    check_parts(lock, path)
    check_early(lock, path, loaded, epoch)
    return lock


def stage_untuned(
    loaded: LoadedRecipe, cpu: str, work: Path, progress: Progress, cache: StageCache | None = None
) -> tuple[Prepared, Contender, StagedProject]:
    """Build for one CPU up to the runner's project, without tuning (``cpupack compare`` chooses its own settings).

    Results that ``cache`` has are taken from it.
    """
    prepared = prepare(loaded, work, progress, cache)
    corrections = Corrections()
    settled = with_lengths(settle(prepared, cpu, work, corrections, progress), corrections, work, progress)
    settled = with_sizes(settled, corrections, work, progress)
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
        return tune(staged, loaded.recipe, target, winner.report, progress)


def _facts(settled: Settled, loss_report: Loss | None, plan: TunePlan, progress: Progress) -> dict[str, Any]:
    """Return the facts for the wheel's ``build.json``. Times are those of the stages up to here."""
    saturation = settled.winner.saturation
    return build_facts(
        settled.prepared.model,
        settled.winner,
        settled.raced,
        settled.failed,
        plan,
        slower=settled.slower,
        times_s=progress.times_s,
        warnings=progress.warnings,
        sections={
            "recovery": recovery_facts(settled.recovery) if settled.recovery else None,
            "calibration": settled.prepared.diagnosis,
            "layers": settled.winner.layers,
            "pictures": settled.winner.pictures,
            "loss": {"finding": loss_report.finding, **dataclasses.asdict(loss_report)} if loss_report else None,
            "saturation": safety_facts(saturation) if saturation else None,
        },
    )
