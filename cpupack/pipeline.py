"""The whole build, in order. Only this module knows which stage follows which."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpupack import recovery
from cpupack.artifacts import (
    BuiltWheel,
    CalibratedModel,
    CalibrationReport,
    Contender,
    FloatModel,
    FusedModel,
    QuantizedModel,
    Recovery,
    Reference,
    Samples,
    SaturationReport,
    StagedProject,
    TunePlan,
)
from cpupack.build_facts import build_facts, to_plain
from cpupack.diagnostics import diagnose
from cpupack.errors import QuantizationError
from cpupack.layers import describe_layers, float_notes
from cpupack.progress import Progress
from cpupack.quantized_engine import supported_engines
from cpupack.recipe import Evaluation, LoadedRecipe, Quantize
from cpupack.recipe.gates import LABEL_GATES
from cpupack.runtime import native
from cpupack.runtime.host import HostProbe
from cpupack.sensitivity import rank
from cpupack.sensitivity.report import SensitivityReport, report_on
from cpupack.sensitivity.trials import trials_of
from cpupack.sources import open_source
from cpupack.stages.calibrate import calibrate, observe
from cpupack.stages.correct import correct
from cpupack.stages.fuse import fuse, list_chains
from cpupack.stages.load import load
from cpupack.stages.package import WheelContents, build_wheel, check_out, finish, publish, stage_project
from cpupack.stages.quantize import check_skip, quantize
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.stages.saturate import make_safe
from cpupack.stages.script import script, script_float
from cpupack.stages.tune import tune
from cpupack.stages.verify import check_gates, choose, compare, doubts, judge, load_metric, race, run_reference
from cpupack.targets import Target, candidates

_RACE_BATCH = 8
_SYNTHETIC_EVALUATION = 64
_COMPARED_SAMPLES = 64


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks for beyond the recipe. ``cpus`` empty means the recipe's."""

    out: Path
    cpus: tuple[str, ...] = ()
    tune: bool = True


@dataclass(frozen=True)
class Prepared:
    """What all targets share: the FP32 model, its statistics, and the reference outputs.

    ``corrections`` holds the last corrected form of ``calibrated``, by the settings it was made with.
    """

    loaded: LoadedRecipe
    model: FloatModel
    fused: FusedModel
    calibrated: CalibratedModel
    calibration: Samples | None
    reference: Reference
    float_path: Path
    diagnosis: CalibrationReport | None = None
    corrections: dict[tuple[str, int], CalibratedModel] = field(default_factory=dict, compare=False)


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


@dataclass(frozen=True)
class Settled:
    """One CPU's engines after the gates, the winner first in line to be packaged.

    ``prepared`` has the recipe's settings, or those that ``recovery`` found.
    """

    prepared: Prepared
    winner: Contender
    raced: tuple[Contender, ...]
    failed: dict[str, str]
    recovery: Recovery | None = None


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
            settled = _described(settle(prepared, cpu, work, progress), progress)
            for doubt in doubts(settled.winner):
                progress.warn(doubt)
            staged = _stage(settled, work / cpu, progress)
            plan = _tune(staged, loaded, settled.winner, options, progress)
            facts = _facts(settled, plan, progress)
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


def prepare(loaded: LoadedRecipe, work: Path, progress: Progress) -> Prepared:
    """Load, fuse and calibrate the model and run it in FP32: everything that no target changes."""
    recipe = loaded.recipe
    with progress.stage("load"):
        model = load(loaded, progress)
        check_skip(model.module, recipe.quantize.skip)  # the quantize stage would say it after the calibration
        check_gates(recipe.evaluation, model.output_shape)
        metric = load_metric(loaded)
    with progress.stage("fuse"):
        fused = fuse(model, recipe, progress)
    with progress.stage("read data"):
        calibration = _calibration(loaded, progress)
        evaluation = _evaluation(loaded, calibration, progress)
    with progress.stage("calibrate"):
        batch_size = recipe.calibration.batch_size if recipe.calibration else 1
        calibrated = calibrate(fused, calibration, batch_size, progress)
        diagnosis = _diagnosed(calibrated, None if evaluation is calibration else evaluation, recipe.quantize, progress)
    with progress.stage("run FP32"):
        reference = run_reference(
            model, evaluation, progress, metric=metric, labels_required=_needs_labels(recipe.evaluation)
        )
        float_path = script_float(model, work / "float.pt")
    return Prepared(loaded, model, fused, calibrated, calibration, reference, float_path, diagnosis)


def _diagnosed(
    calibrated: CalibratedModel, evaluation: Samples | None, spec: Quantize, progress: Progress
) -> CalibrationReport | None:
    """Look at the calibration's statistics, beside those of other data where there is any; None without statistics."""
    if not calibrated.stats:
        return None
    some = evaluation.spread(_COMPARED_SAMPLES) if evaluation is not None else None
    seen = observe(calibrated, some, _RACE_BATCH, progress) if some is not None else {}
    ranges = choose_ranges(calibrated.stats, spec.observer, 256, spec.percentile)
    report = diagnose(calibrated, ranges, spec.observer, seen, evaluation)
    for warning in report.warnings:
        progress.warn(warning)
    return report


def contend(prepared: Prepared, cpu: str, work: Path, progress: Progress) -> tuple[list[Contender], dict[str, str]]:
    """Build every engine that the recipe allows on ``cpu``, verify each, and time them against FP32.

    Returns the contenders, fastest first, each judged by the gates, and the engines that torch could not quantize for
    with the reason. Raises QuantizationError when that leaves none.
    """
    recipe = prepared.loaded.recipe
    targets = candidates(recipe, cpu, supported_engines())
    contenders, failed = [], {}
    with progress.stage(f"quantize and verify ({cpu})"):
        for number, target in enumerate(targets):
            try:
                contenders.append(_contender(prepared, target, work, work / f"{cpu}-{target.engine}.pt", progress))
            except QuantizationError as error:
                if len(targets) == 1:
                    raise
                failed[target.engine] = error.message
                # The native engine is known to run some models and not others: that is no sign of anything wrong.
                say = progress.note if target.engine == native.ENGINE else progress.warn
                say(f"engine {target.engine} is out: {error.message}")
            progress.step(number + 1, len(targets), "engines")
    if not contenders:
        raise QuantizationError(
            "no engine can run this model:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items())
        )
    if contenders[0].scripted.target.runs_here:
        with progress.stage(f"time against FP32 ({cpu})"):
            contenders = _raced(prepared, contenders, work)
    return [judge(each, recipe.evaluation) for each in contenders], failed


def settle(prepared: Prepared, cpu: str, work: Path, progress: Progress) -> Settled:
    """Build the engines of a CPU and choose; where no gate holds and the recipe says so, recover first.

    Raises VerificationError when no engine passes every gate in the end.
    """
    started = time.monotonic()
    raced, failed = contend(prepared, cpu, work, progress)
    spec = prepared.loaded.recipe.quantize
    if not recovery.wanted(spec, raced):
        return Settled(prepared, choose(raced), tuple(raced), failed)
    with progress.stage(f"recover ({cpu})"):
        built_s = (time.monotonic() - started) / len(raced)
        found = recovery.recover(spec, raced, built_s, _workshop(prepared, work, progress))
    return Settled(_with(prepared, found.quantize), found.contenders[0], found.contenders, failed, found.recovery)


def _workshop(prepared: Prepared, work: Path, progress: Progress) -> recovery.Workshop:
    numbers = itertools.count(1)

    def build_trial(spec: Quantize, target: Target) -> Contender:
        path = work / f"{target.cpu}-trial-{next(numbers)}.pt"
        contender = _contender(_with(prepared, spec), target, work, path, progress)
        if target.runs_here:
            (contender,) = _raced(prepared, [contender], work)
        contender = judge(contender, prepared.loaded.recipe.evaluation)
        if not contender.report.passed:
            path.unlink()
        return contender

    def ranked(spec: Quantize, target: Target) -> list[str]:
        levels = 2**target.activation_bits
        calibrated = _corrected(prepared, spec, target, progress)
        ranges = choose_ranges(calibrated.stats, spec.observer, levels, spec.percentile)
        found = rank(calibrated.fused, ranges, prepared.reference.samples, progress, levels=levels)
        return list(dict.fromkeys(layer.skip for layer in found if layer.skip is not None))

    anything = dict.fromkeys(prepared.calibrated.stats, (0.0, 0.0))
    layers = trials_of(prepared.fused, anything, levels=256).layers
    weighted = list(dict.fromkeys(each.skip for each in layers if each.skip and each.weights))
    return recovery.Workshop(
        build_trial, ranked, lambda target: target.engine != native.ENGINE, prepared.fused.style, weighted, progress
    )


def _with(prepared: Prepared, spec: Quantize) -> Prepared:
    """Return the same with another ``[quantize]`` table; the recipe's text stays as it was written."""
    loaded = prepared.loaded
    recipe = loaded.recipe.model_copy(update={"quantize": spec})
    return dataclasses.replace(prepared, loaded=loaded.model_copy(update={"recipe": recipe}))


def _raced(prepared: Prepared, contenders: list[Contender], work: Path) -> list[Contender]:
    """Time contenders for this host against FP32, as the recipe's objective would run them."""
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


def _contender(prepared: Prepared, target: Target, work: Path, path: Path, progress: Progress) -> Contender:
    quantized, saturation = _quantized(prepared, target, progress)
    scripted = script(quantized, prepared.model.input_shape, path)
    contender = compare(quantized, scripted, prepared.reference, work)
    return dataclasses.replace(contender, saturation=saturation)


def _quantized(
    prepared: Prepared, target: Target, progress: Progress
) -> tuple[QuantizedModel, SaturationReport | None]:
    """Quantize for a target; where its CPU adds products in 16 bits, so that no sum overflows on the calibration."""

    calibrated = _corrected(prepared, prepared.loaded.recipe.quantize, target, progress)

    def quantize_for(target: Target, limited: frozenset[str] = frozenset()) -> QuantizedModel:
        return quantize(calibrated, prepared.model.module, prepared.loaded.recipe, target, limited)

    if not target.saturates or prepared.calibration is None or prepared.fused.style == "dynamic":
        return quantize_for(target), None
    return make_safe(quantize_for, target, prepared.calibration, progress)


def _corrected(prepared: Prepared, spec: Quantize, target: Target, progress: Progress) -> CalibratedModel:
    """Return the calibrated model with the corrections that ``spec`` asks for; engines that race share one."""
    levels = 2**target.activation_bits
    key = (spec.model_dump_json(exclude={"recover", "budget_s"}), levels)
    if key not in prepared.corrections:
        recipe = prepared.loaded.recipe
        batch_size = recipe.calibration.batch_size if recipe.calibration else 1
        prepared.corrections.clear()  # each holds a copy of the weights
        prepared.corrections[key] = correct(
            prepared.calibrated,
            prepared.calibration,
            spec,
            levels,
            choose=lambda calibrated: choose_ranges(calibrated.stats, spec.observer, levels, spec.percentile),
            recalibrate=lambda fused: calibrate(fused, prepared.calibration, batch_size, progress),
            progress=progress,
            pixels=recipe.preprocess is not None,
        )
    return prepared.corrections[key]


def _described(settled: Settled, progress: Progress) -> Settled:
    """Return the same with the facts of the winner's layers, and a note for each that stayed FP32."""
    prepared, winner = settled.prepared, settled.winner
    with progress.stage(f"describe layers ({winner.scripted.target.cpu})"):
        spec = prepared.loaded.recipe.quantize
        # Layers are compared with FP32 ones: with equalized channels, but not with biases that make up for INT8.
        exact = spec.model_copy(update={"bias_correction": False, "rounding": "nearest"})
        calibrated = (
            _corrected(prepared, exact, winner.scripted.target, progress) if spec.equalize else prepared.calibrated
        )
        layers = describe_layers(winner.quantized, calibrated, spec.skip, prepared.reference.samples)
    quantized = dataclasses.replace(winner.quantized, notes=float_notes(layers) or winner.quantized.notes)
    return dataclasses.replace(settled, winner=dataclasses.replace(winner, quantized=quantized, layers=layers))


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
            notes=(*winner.quantized.notes, *([winner.saturation.text] if winner.saturation else [])),
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


def _facts(settled: Settled, plan: TunePlan, progress: Progress) -> dict[str, Any]:
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
            "recovery": settled.recovery.to_dict() if settled.recovery else None,
            "calibration": settled.prepared.diagnosis,
            "layers": settled.winner.layers,
            "saturation": {"finding": saturation.text, **to_plain(saturation)} if saturation else None,
        },
    )


def _calibration(loaded: LoadedRecipe, progress: Progress) -> Samples | None:
    spec = loaded.recipe.calibration
    if spec is None:
        return None
    return open_source(
        spec.source,
        loaded,
        samples=spec.samples,
        seed=spec.seed,
        skip_corrupt=spec.skip_corrupt,
        labelled=False,
        progress=progress,
    )


def _evaluation(loaded: LoadedRecipe, calibration: Samples | None, progress: Progress) -> Samples:
    """Return what INT8 is compared with FP32 on: ``[evaluation] source``, else data like the calibration's."""
    spec = loaded.recipe.evaluation
    if spec.source is not None:
        return open_source(
            spec.source,
            loaded,
            samples=spec.samples,
            seed=0,
            skip_corrupt=spec.skip_corrupt,
            labelled=True,
            progress=progress,
            required=_needs_labels(spec),
            targets=spec.metric is not None,
        )
    if calibration is not None and not calibration.synthetic:
        return calibration
    # Other synthetic data than it was calibrated on, so that the comparison is not on the very same tensors.
    seed = (loaded.recipe.calibration.seed if loaded.recipe.calibration else 0) + 1
    return open_source(
        "synthetic",
        loaded,
        samples=_SYNTHETIC_EVALUATION,
        seed=seed,
        skip_corrupt=False,
        labelled=False,
        progress=progress,
    )


def _needs_labels(spec: Evaluation) -> bool:
    return any(getattr(spec, gate) is not None for gate in LABEL_GATES)


def stage_untuned(
    loaded: LoadedRecipe, cpu: str, work: Path, progress: Progress
) -> tuple[Prepared, Contender, StagedProject]:
    """Build for one CPU up to the runner's project, which runs as it is (``cpupack compare`` sets its own plans)."""
    prepared = prepare(loaded, work, progress)
    settled = settle(prepared, cpu, work, progress)
    return settled.prepared, settled.winner, _stage(settled, work / cpu, progress)


def run_float(loaded: LoadedRecipe, progress: Progress) -> tuple[FloatModel, Samples | None, Reference]:
    """Load the FP32 model and the data of a recipe and run the one on the other: no INT8 model is made."""
    with progress.stage("load"):
        model = load(loaded, progress)
    with progress.stage("read data"):
        calibration = _calibration(loaded, progress)
        evaluation = _evaluation(loaded, calibration, progress)
    with progress.stage("run FP32"):
        required = _needs_labels(loaded.recipe.evaluation)
        return model, calibration, run_reference(model, evaluation, progress, labels_required=required)


def check_model(loaded: LoadedRecipe, progress: Progress) -> tuple[FloatModel, FusedModel]:
    """Load the model and resolve every module name of the recipe (``cpupack check --deep``)."""
    model = load(loaded, progress)
    check_skip(model.module, loaded.recipe.quantize.skip)
    check_gates(loaded.recipe.evaluation, model.output_shape)
    load_metric(loaded)
    return model, fuse(model, loaded.recipe, progress)


def rank_layers(loaded: LoadedRecipe, count: int, progress: Progress) -> SensitivityReport:
    """Rank the layers of a recipe's model by what each costs in INT8, on ``count`` samples; no INT8 model is made."""
    spec = loaded.recipe.quantize
    with progress.stage("load"):
        model = load(loaded, progress)
        metric = load_metric(loaded)
    with progress.stage("fuse"):
        fused = fuse(model, loaded.recipe, progress)
    with progress.stage("read data"):
        calibration = _calibration(loaded, progress)
        evaluation = _evaluation(loaded, calibration, progress)
    with progress.stage("calibrate"):
        batch_size = loaded.recipe.calibration.batch_size if loaded.recipe.calibration else 1
        calibrated = calibrate(fused, calibration, batch_size, progress)
        ranges = choose_ranges(calibrated.stats, spec.observer, 256, spec.percentile)
    with progress.stage("rank"):
        return report_on(loaded, model, calibrated, ranges, evaluation, progress, count=count, metric=metric)


def fusible_chains(loaded: LoadedRecipe, progress: Progress) -> tuple[tuple[str, ...], ...]:
    """Return every chain that ``[fuse] modules = "auto"`` would fuse."""
    return list_chains(load(loaded, progress))
