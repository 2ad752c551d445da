"""Builds, verifies, times and judges every engine for a CPU, and chooses the winner. Runs a recovery if needed."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cpupack import recovery
from cpupack.artifacts import (
    Contender,
    Recovery,
    Slower,
)
from cpupack.effort import GIGA, samples_within
from cpupack.errors import QuantizationError, VerificationError
from cpupack.layers import describe_layers, float_notes, form_notes
from cpupack.model.two_stages import gives_proposals
from cpupack.pipeline.candidates import candidates
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.entries import Entry, check, enter, time_entries
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import Quantize
from cpupack.recovery.closeness import closest
from cpupack.runtime.tasks.spec import MASKS
from cpupack.sensitivity import COUNT, LayerSensitivity, rank
from cpupack.sensitivity.trials import layers_of
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.verify import (
    LISTED,
    LayerLoss,
    Loss,
    choose,
    is_lossy,
    judge,
    loss_of,
    worst_in_words,
)
from cpupack.targets import ENGINES, Target

_RANKED_SAMPLES = 8
"""Number of samples on which the worst layers are found. More samples seldom change their order."""
_RANKED_MACS = 4000 * GIGA
"""Multiply-adds of the runs that find the worst layers, some minutes of two cores. Larger models have fewer samples."""


@dataclass(frozen=True)
class Settled:
    """The judged engines of one CPU. ``winner`` is the one to package. ``slower`` are engines that were not judged.

    ``prepared`` has the recipe's settings, or the settings that ``recovery`` found.
    """

    prepared: Prepared
    winner: Contender
    raced: tuple[Contender, ...]
    failed: dict[str, str]
    slower: tuple[Slower, ...] = ()
    recovery: Recovery | None = None


@dataclass(frozen=True)
class Contest:
    """The engines of one CPU with one ``[quantize]`` table.

    ``judged`` are those that were checked, fastest first, each judged by the gates. ``slower`` were dropped before the
    check, because an engine of ``judged`` is faster and passes every gate. ``failed`` maps those that could not
    quantize the model to the reasons.
    """

    judged: tuple[Contender, ...]
    slower: tuple[Slower, ...]
    failed: dict[str, str]


def contend(prepared: Prepared, cpu: str, work: Path, corrections: Corrections, progress: Progress) -> Contest:
    """Build every engine that the recipe allows on ``cpu``, time them against FP32, and check the fastest.

    The engines are checked in the order of their speed, until one passes every gate. The check makes the 16-bit sums of
    CPUs without VNNI safe, verifies the outputs and judges the gates. Making sums safe never makes an engine faster, so
    the engines behind the first that passes cannot win, and a check of them would have no use. Raises
    QuantizationError when no engine can quantize the model.
    """
    targets = candidates(prepared.loaded.recipe, cpu, supported_engines())
    failed: dict[str, str] = {}
    if len(targets) > 1 and not targets[0].runs_here:
        progress.note(
            f"{cpu}: this host cannot time it, so engines are tried in the order of the instructions that models take "
            f"there: {', '.join(each.engine for each in targets)}"
        )

    def fail(target: Target, error: QuantizationError) -> None:
        if len(targets) == 1:
            raise error
        failed[target.engine] = error.message
        expected = not target.record.runs_any_model or gives_proposals(prepared.model.module)
        say = progress.note if expected else progress.warn
        say(f"engine {target.engine} is out: {error.message}")

    entries: list[Entry] = []
    with progress.stage(f"quantize ({cpu})"):
        for number, target in enumerate(targets):
            try:
                entries.append(enter(prepared, target, work / f"{cpu}-{target.engine}.pt", corrections, progress))
            except QuantizationError as error:
                fail(target, error)
            progress.step(number + 1, len(targets), "engines")
    if entries and targets[0].runs_here and prepared.is_timed:
        with progress.stage(f"time against FP32 ({cpu})"):
            entries = time_entries(prepared, entries, work, progress)
    with progress.stage(f"verify ({cpu})"):
        found: list[Contender] = []
        while entries and not any(each.report.passed and _is_ahead(each, entries[0]) for each in found):
            entry = entries.pop(0)
            try:
                found.append(judged(prepared, check(prepared, entry, work, corrections, progress)))
            except QuantizationError as error:
                fail(entry.target, error)
        found.sort(key=lambda each: each.report.speedup or 0.0, reverse=True)
        slower = tuple(_slower(each, choose(found)) for each in entries)
        for each in slower:
            progress.note(f"{each.engine} is not checked: {each.reason}")
    if not found:
        raise QuantizationError(
            "no engine can run this model:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items())
        )
    return Contest(tuple(found), slower, failed)


def _is_ahead(contender: Contender, entry: Entry) -> bool:
    """Whether an engine that was checked is at least as fast as one that was not. Without times it is the first."""
    if entry.speed is None or contender.report.speedup is None:
        return True
    return contender.report.speedup >= entry.speed.speedup


def _slower(entry: Entry, winner: Contender) -> Slower:
    engine, speed = winner.scripted.target.engine, entry.speed
    if speed is None:
        return Slower(entry.target.engine, None, None, entry.scripted.size_bytes, f"{engine} passes every gate")
    reason = (
        f"it is {speed.speedup:.2f} times as fast as FP32, {engine} is {winner.report.speedup or 0.0:.2f} times "
        "as fast and passes every gate"
    )
    return Slower(entry.target.engine, speed.speedup, speed.ci95, entry.scripted.size_bytes, reason)


def settle(prepared: Prepared, cpu: str, work: Path, corrections: Corrections, progress: Progress) -> Settled:
    """Build the engines of a CPU and choose one. If none passes, recover if the recipe asks for it.

    Raises VerificationError when no engine passes every gate.
    """
    started = time.monotonic()
    contest = contend(prepared, cpu, work, corrections, progress)
    raced, failed = list(contest.judged), contest.failed
    spec = prepared.loaded.recipe.quantize
    if not recovery.wanted(spec, raced):
        winner = _chosen(prepared, raced, cpu, corrections, progress)
        return Settled(prepared, winner, contest.judged, failed, contest.slower)
    with progress.stage(f"recover ({cpu})"):
        built_s = (time.monotonic() - started) / len(raced)
        targets = {each.scripted.target.engine: each.scripted.target for each in raced}
        found = recovery.recover(spec, raced, built_s, _workbench(prepared, targets, work, corrections, progress))
    return Settled(
        with_quantize(prepared, found.quantize), found.contenders[0], found.contenders, failed, (), found.recovery
    )


def loss(settled: Settled, corrections: Corrections, progress: Progress) -> Loss | None:
    """Return a report if the winner's outputs are far from FP32's, else None. With trained weights it has layers."""
    prepared, winner = settled.prepared, settled.winner
    if not is_lossy(winner.report):
        return None
    layers: list[LayerLoss] | None = None
    if not prepared.model.random_weights:
        with progress.stage(f"find the worst layers ({winner.scripted.target.cpu})"):
            layers = _layer_losses(prepared, winner, corrections, progress)
    calibration = prepared.calibration
    return loss_of(
        winner.report,
        layers,
        synthetic=calibration is not None and calibration.synthetic,
        calibration_samples=len(calibration) if calibration is not None else 0,
        dynamic=prepared.fused.style == "dynamic",
    )


def _chosen(
    prepared: Prepared, raced: list[Contender], cpu: str, corrections: Corrections, progress: Progress
) -> Contender:
    """Choose a contender. If none passes because of a gate on accuracy, the error also names the worst layers."""
    try:
        return choose(raced)
    except VerificationError as error:
        nearest = closest(raced)
        if nearest is None:
            raise
        with progress.stage(f"find the worst layers ({cpu})"):
            layers = _layer_losses(prepared, nearest, corrections, progress)
        raise VerificationError(f"{error.message}\n  {worst_in_words(layers[:LISTED])}", hint=error.hint) from error


def _layer_losses(
    prepared: Prepared, contender: Contender, corrections: Corrections, progress: Progress
) -> list[LayerLoss]:
    """Return the loss of each layer when only that layer is INT8, the worst layer first.

    Layers that the contender keeps in FP32 (what decodes boxes, say) lose nothing in it, whatever they would lose.
    """
    spec, target = prepared.loaded.recipe.quantize, contender.scripted.target
    # What comes before a layer is run once for all layers.
    each = prepared.model.macs * len(layers_of(prepared.fused, prepared.calibrated.stats)) / 2
    count = samples_within(_RANKED_MACS, each, most=_RANKED_SAMPLES, least=1)
    found = _ranked(prepared, spec, target, corrections, progress, count=count)
    floats = _kept_in_fp32(contender)
    return [LayerLoss(each.name, each.output_sqnr_db, each.skip) for each in found if each.name not in floats]


def _kept_in_fp32(contender: Contender) -> set[str]:
    """Return the names of the layers of which no part is INT8, as far as the engine has said."""
    facts = contender.layers or contender.quantized.layers
    rounded = {each.name for each in facts if each.precision != "fp32"}
    return ({each.name for each in facts} | set(contender.quantized.float_reasons)) - rounded


def _ranked(
    prepared: Prepared,
    spec: Quantize,
    target: Target,
    corrections: Corrections,
    progress: Progress,
    *,
    count: int = COUNT,
) -> tuple[LayerSensitivity, ...]:
    levels = 2**target.activation_bits
    calibrated = corrections.corrected(prepared, spec, target, progress)
    ranges = choose_ranges(calibrated.stats, spec.observer, levels, spec.percentile)
    samples, signature = prepared.reference.samples, prepared.model.signature
    return rank(calibrated.fused, ranges, samples, progress, levels=levels, count=count, signature=signature)


def judged(prepared: Prepared, contender: Contender) -> Contender:
    """Return a contender with the verdict of the recipe's gates."""
    model = prepared.model
    return judge(
        contender,
        prepared.loaded.recipe.evaluation,
        trained=not model.random_weights,
        classifies=model.labels is not None or (model.task is not None and model.task.kind in ("segmentation", MASKS)),
    )


def described(settled: Settled, corrections: Corrections, progress: Progress) -> Settled:
    """Return the same with the facts of the winner's layers, and a note for each that stayed FP32."""
    prepared, winner = settled.prepared, settled.winner
    with progress.stage(f"describe layers ({winner.scripted.target.cpu})"):
        spec = prepared.loaded.recipe.quantize
        # Layers are compared with FP32 layers that have equalized channels but no corrected biases, because corrected
        # biases compensate for INT8.
        exact = spec.model_copy(update={"bias_correction": False, "rounding": "nearest"})
        calibrated = (
            corrections.corrected(prepared, exact, winner.scripted.target, progress)
            if spec.equalize
            else prepared.calibrated
        )
        layers = describe_layers(winner.quantized, calibrated, spec.skip, prepared.reference.samples)
    quantized = dataclasses.replace(
        winner.quantized, notes=(*form_notes(layers), *(float_notes(layers) or winner.quantized.notes))
    )
    return dataclasses.replace(settled, winner=dataclasses.replace(winner, quantized=quantized, layers=layers))


def _workbench(
    prepared: Prepared, targets: Mapping[str, Target], work: Path, corrections: Corrections, progress: Progress
) -> recovery.Workbench:
    numbers = itertools.count(1)

    def build_trial(spec: Quantize, engine: str) -> Contender:
        target = targets[engine]
        path, trial = work / f"{target.cpu}-trial-{next(numbers)}.pt", with_quantize(prepared, spec)
        entry = enter(trial, target, path, corrections, progress)
        contender = judged(prepared, check(trial, entry, work, corrections, progress))
        if not contender.report.passed:
            path.unlink()
        return contender

    def ranked(spec: Quantize, engine: str) -> list[str]:
        found = _ranked(prepared, spec, targets[engine], corrections, progress)
        return list(dict.fromkeys(layer.skip for layer in found if layer.skip is not None))

    layers = layers_of(prepared.fused, prepared.calibrated.stats)
    weighted = list(dict.fromkeys(each.skip for each in layers if each.skip and each.weights))
    return recovery.Workbench(
        build_trial, ranked, lambda engine: ENGINES[engine].mixes, prepared.fused.style, weighted, progress
    )


def with_quantize(prepared: Prepared, spec: Quantize) -> Prepared:
    """Return ``prepared`` with another ``[quantize]`` table. The text of the recipe does not change."""
    loaded = prepared.loaded
    recipe = loaded.recipe.model_copy(update={"quantize": spec})
    return dataclasses.replace(prepared, loaded=loaded.model_copy(update={"recipe": recipe}))
