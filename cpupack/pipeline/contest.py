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
    QuantizedModel,
    Recovery,
    SaturationReport,
)
from cpupack.errors import QuantizationError, VerificationError
from cpupack.layers import describe_layers, float_notes
from cpupack.pipeline.candidates import candidates
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import Quantize
from cpupack.recovery.closeness import closest
from cpupack.runtime.host.probe import HostProbe
from cpupack.sensitivity import COUNT, LayerSensitivity, rank
from cpupack.sensitivity.trials import layers_of
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.saturate import make_safe
from cpupack.stages.script import script
from cpupack.stages.verify import (
    LISTED,
    LayerLoss,
    Loss,
    choose,
    compare,
    is_lossy,
    judge,
    loss_of,
    race,
    worst_in_words,
)
from cpupack.targets import ENGINES, Target

_RACE_BATCH = 8
_RANKED_SAMPLES = 8
"""Number of samples on which the worst layers are found. More samples seldom change their order."""


@dataclass(frozen=True)
class Settled:
    """The judged engines of one CPU. ``winner`` is the one to package.

    ``prepared`` has the recipe's settings, or the settings that ``recovery`` found.
    """

    prepared: Prepared
    winner: Contender
    raced: tuple[Contender, ...]
    failed: dict[str, str]
    recovery: Recovery | None = None


def contend(
    prepared: Prepared, cpu: str, work: Path, corrections: Corrections, progress: Progress
) -> tuple[list[Contender], dict[str, str]]:
    """Build every engine that the recipe allows on ``cpu``, verify each, and time them against FP32.

    Returns the contenders, fastest first, each judged by the gates. Also returns the engines that could not quantize
    the model, with the reasons. Raises QuantizationError when no engine is left.
    """
    recipe = prepared.loaded.recipe
    targets = candidates(recipe, cpu, supported_engines())
    contenders, failed = [], {}
    with progress.stage(f"quantize and verify ({cpu})"):
        for number, target in enumerate(targets):
            try:
                contenders.append(
                    _contender(prepared, target, work, work / f"{cpu}-{target.engine}.pt", corrections, progress)
                )
            except QuantizationError as error:
                if len(targets) == 1:
                    raise
                failed[target.engine] = error.message
                say = progress.warn if target.record.runs_any_model else progress.note
                say(f"engine {target.engine} is out: {error.message}")
            progress.step(number + 1, len(targets), "engines")
    if not contenders:
        raise QuantizationError(
            "no engine can run this model:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items())
        )
    if contenders[0].scripted.target.runs_here:
        with progress.stage(f"time against FP32 ({cpu})"):
            contenders = _raced(prepared, contenders, work)
    return [_judged(prepared, each) for each in contenders], failed


def settle(prepared: Prepared, cpu: str, work: Path, corrections: Corrections, progress: Progress) -> Settled:
    """Build the engines of a CPU and choose one. If none passes, recover if the recipe asks for it.

    Raises VerificationError when no engine passes every gate.
    """
    started = time.monotonic()
    raced, failed = contend(prepared, cpu, work, corrections, progress)
    spec = prepared.loaded.recipe.quantize
    if not recovery.wanted(spec, raced):
        return Settled(prepared, _chosen(prepared, raced, cpu, corrections, progress), tuple(raced), failed)
    with progress.stage(f"recover ({cpu})"):
        built_s = (time.monotonic() - started) / len(raced)
        targets = {each.scripted.target.engine: each.scripted.target for each in raced}
        found = recovery.recover(spec, raced, built_s, _workbench(prepared, targets, work, corrections, progress))
    return Settled(_with(prepared, found.quantize), found.contenders[0], found.contenders, failed, found.recovery)


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
    """Return the loss of each layer when only that layer is INT8, the worst layer first."""
    spec, target = prepared.loaded.recipe.quantize, contender.scripted.target
    found = _ranked(prepared, spec, target, corrections, progress, count=_RANKED_SAMPLES)
    return [LayerLoss(each.name, each.output_sqnr_db, each.skip) for each in found]


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
    return rank(calibrated.fused, ranges, prepared.reference.samples, progress, levels=levels, count=count)


def _judged(prepared: Prepared, contender: Contender) -> Contender:
    model = prepared.model
    return judge(
        contender,
        prepared.loaded.recipe.evaluation,
        trained=not model.random_weights,
        classifies=model.labels is not None,
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
    quantized = dataclasses.replace(winner.quantized, notes=float_notes(layers) or winner.quantized.notes)
    return dataclasses.replace(settled, winner=dataclasses.replace(winner, quantized=quantized, layers=layers))


def _workbench(
    prepared: Prepared, targets: Mapping[str, Target], work: Path, corrections: Corrections, progress: Progress
) -> recovery.Workbench:
    numbers = itertools.count(1)

    def build_trial(spec: Quantize, engine: str) -> Contender:
        target = targets[engine]
        path = work / f"{target.cpu}-trial-{next(numbers)}.pt"
        contender = _contender(_with(prepared, spec), target, work, path, corrections, progress)
        if target.runs_here:
            (contender,) = _raced(prepared, [contender], work)
        contender = _judged(prepared, contender)
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


def _with(prepared: Prepared, spec: Quantize) -> Prepared:
    """Return ``prepared`` with another ``[quantize]`` table. The text of the recipe does not change."""
    loaded = prepared.loaded
    recipe = loaded.recipe.model_copy(update={"quantize": spec})
    return dataclasses.replace(prepared, loaded=loaded.model_copy(update={"recipe": recipe}))


def _raced(prepared: Prepared, contenders: list[Contender], work: Path) -> list[Contender]:
    """Time the contenders against FP32, with the batch size and threads that suit the recipe's objective."""
    latency = prepared.loaded.recipe.tune.objective == "latency"
    return race(
        contenders,
        prepared.float_path,
        prepared.model.input_shape,
        prepared.reference.samples.preprocess,
        work,
        batch_size=1 if latency else _RACE_BATCH,
        threads=HostProbe().budget().usable if latency else 1,
    )


def _contender(
    prepared: Prepared, target: Target, work: Path, path: Path, corrections: Corrections, progress: Progress
) -> Contender:
    quantized, saturation = _quantized(prepared, target, corrections, progress)
    sample = prepared.reference.samples.spread(1).tensor(slice(None))
    scripted = script(quantized, prepared.model.input_shape, path, sample)
    contender = compare(quantized, scripted, prepared.reference, work)
    return dataclasses.replace(contender, saturation=saturation)


def _quantized(
    prepared: Prepared, target: Target, corrections: Corrections, progress: Progress
) -> tuple[QuantizedModel, SaturationReport | None]:
    """Quantize for a target. If its CPU adds products in 16 bits, ensure that no sum overflows on the calibration."""

    def quantize_for(target: Target, limited: frozenset[str] = frozenset()) -> QuantizedModel:
        # Corrected for the bits of this try: biases that compensate for 7 bits make 8 bits worse, and vice versa.
        calibrated = corrections.corrected(prepared, prepared.loaded.recipe.quantize, target, progress)
        return quantize(calibrated, prepared.model.module, prepared.loaded.recipe, target, limited)

    if target.adds_in_16_bits and not target.saturates:
        assert target.isa is not None
        quantized = quantize_for(target)
        return quantized, SaturationReport(target.isa, target.activation_bits, 0, "", quantized.sums)
    if not target.saturates or prepared.calibration is None or prepared.fused.style == "dynamic":
        return quantize_for(target), None
    return make_safe(quantize_for, target, prepared.calibration, progress)
