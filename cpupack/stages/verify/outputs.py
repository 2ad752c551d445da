"""Runs the FP32 model, then the saved model in a fresh process, and measures how much their outputs differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from cpupack import accuracy
from cpupack.accuracy import FloatArray
from cpupack.artifacts import (
    Contender,
    FloatModel,
    OutputFact,
    QuantizedModel,
    Reference,
    Samples,
    ScriptedModel,
    VerifyReport,
)
from cpupack.effort import GIGA, power_of_two, samples_within
from cpupack.errors import CalibrationError, ModelError, RecipeError, VerificationError
from cpupack.graph.native_model import NativeModel
from cpupack.graph.parts import SAMPLES_AT_ONCE, Part, in_threads, parts_of
from cpupack.graph.proposals import steady_proposals
from cpupack.layout import batch_channels_last
from cpupack.meaning import meaning_of
from cpupack.metric import Metric
from cpupack.model.sources import load_factory
from cpupack.model.user_code import running_on
from cpupack.progress import Progress
from cpupack.quantized_engine import engine
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.metrics import known_metric
from cpupack.runtime.engine.program import read_program
from cpupack.runtime.engine.session import Session
from cpupack.runtime.golden import thinned
from cpupack.runtime.images.inputs import model_input
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.signature import worst_sqnr_db
from cpupack.runtime.tasks.spec import CLASSIFICATION, EMBEDDING, RAW
from cpupack.runtime.tensor_spec import LARGEST_EXACT
from cpupack.runtime.verify import COMPARES_CLASSES
from cpupack.stages.verify.intervals import alike_intervals, meaning_intervals, pixel_interval
from cpupack.tasks import pictures
from cpupack.tasks.doubts import doubt_of_places
from cpupack.tasks.likeness import likeness, same_decisions
from cpupack.tasks.metrics import presenter_of, task_metric
from cpupack.tasks.scores import LOOKED_AT, doubt_of
from cpupack.workers.client import run_worker

BATCH_SIZE, _LEAST_BATCH = 16, 4
_BATCH_MACS = 512 * GIGA
"""Multiply-adds of a batch that is replayed, some seconds in INT8. So many samples are compared byte for byte, too."""
_COMPARED_SAMPLES = 4
_EQUAL_DB = 80.0
"""Rounding in another order leaves more than this SQNR, and an INT8 model seldom has half of it."""
_GOLDEN_SAMPLES = 4

Cached = Callable[[FloatModel, fx.GraphModule | None, Samples, Progress, Callable[[Progress], FloatArray]], FloatArray]
"""Returns the outputs of a model, perhaps in the form of a graph, on samples; what makes them is the last argument."""


def load_metric(loaded: LoadedRecipe, model: FloatModel) -> Metric | None:
    """Return the metric of ``[evaluation] metric``: one of cpupack's, or the user's function. None without one.

    Raises RecipeError when there is no such function, its file cannot be imported, or the metric is for another kind
    of task.
    """
    evaluation = loaded.recipe.evaluation
    if evaluation.metric is None:
        return None
    if known_metric(evaluation.metric) is not None:
        return task_metric(evaluation.metric, model, resampled=evaluation.confident)
    try:
        function = load_factory(evaluation.metric.partition(":")[2], loaded, key="[evaluation] metric")
    except ModelError as error:
        raise RecipeError(error.message, hint=error.hint) from error
    return Metric(evaluation.metric, evaluation.metric_goal, function, resampled=evaluation.confident)


def run_reference(
    model: FloatModel,
    samples: Samples,
    progress: Progress,
    *,
    metric: Metric | None = None,
    labels_required: bool = True,
    graph: fx.GraphModule | None = None,
    known: Mapping[int, FloatArray] = MappingProxyType({}),
    cached: Cached | None = None,
    confident: bool = False,
) -> Reference:
    """Run the loaded FP32 model.

    ``graph`` is the same model as a fused graph. It runs in its place where both have equal outputs on some samples, up
    to rounding: it has fewer operators, and no state, so several batches run at once. ``known`` has its outputs on some
    samples, by their indices. ``cached`` returns outputs of an earlier run, or has them made.

    Raises CalibrationError for labels that the model has no class for. If no gate needs labels, that is only a warning,
    and accuracy is not measured. Also raises it for samples on which the model does not run.
    """
    kind = model.kind
    if samples.labels is not None and model.task is not None and kind not in {CLASSIFICATION, EMBEDDING, RAW}:
        progress.note(f'accuracy is not measured: class folders say nothing about [task] kind = "{kind}"')
        samples = dataclasses.replace(samples, labels=None)
    if samples.labels is not None and kind != EMBEDDING:
        scores = model.signature.class_scores
        largest = int(samples.labels.max())
        if scores is None or largest >= scores.size:
            shapes = " and ".join(str(each.shape) for each in model.signature.outputs)
            has = "outputs have shapes" if len(model.signature.outputs) > 1 else "output has shape"
            problem = f"{samples.origin} has class {largest}, but the model's {has} {shapes}"
            if labels_required:
                raise CalibrationError(
                    f"[evaluation] {problem}",
                    hint="class folders are numbered in alphabetical order, or by their names in [model] labels",
                )
            progress.warn(f"accuracy is not measured: {problem}")
            samples = dataclasses.replace(samples, labels=None)
    with torch.compiler.set_stance("force_eager"), running_on(samples.origin):
        final = samples

        def make(heard: Progress) -> FloatArray:
            return _outputs(model, graph, known, final, heard)

        outputs = make(progress) if cached is None else cached(model, graph, final, progress, make)
        _refuse_inexact(model, outputs)
        presenter = None if kind == CLASSIFICATION else presenter_of(model)
        if model.task is not None and not model.random_weights:
            some = model.signature.unpack(outputs[:LOOKED_AT])
            for doubt in (doubt_of(model.task, some), doubt_of_places(presenter, some)):
                if doubt is not None:
                    progress.warn(doubt)
        return Reference(samples, outputs, model.signature, metric, kind, presenter, confident, model.macs)


def _refuse_inexact(model: FloatModel, outputs: FloatArray) -> None:
    """Raise ModelError for an output of whole numbers that float32, in which a wheel has them, rounds."""
    split = model.signature.split(outputs)
    for each in model.signature.outputs:
        largest = np.abs(split[each.name]).max(initial=0.0) if each.whole == "int64" else 0.0
        if largest >= LARGEST_EXACT:  # 2^24 + 1 is 2^24 in float32
            raise ModelError(
                f'the output "{each.name}" has whole numbers up to {largest:.0f}, and a wheel has them exactly below '
                f"{LARGEST_EXACT}",
                hint="leave it out with drop = true in its [[output]] and compute it from the others after the wheel, "
                "or return it as floats where rounding does no harm",
            )


def _outputs(
    model: FloatModel,
    graph: fx.GraphModule | None,
    known: Mapping[int, FloatArray],
    samples: Samples,
    progress: Progress,
) -> FloatArray:
    module = model.fast_module()
    if graph is not None and len(samples) > _COMPARED_SAMPLES:
        some = model.fast_batch(samples.spread(_COMPARED_SAMPLES).tensor(slice(None)))
        with torch.inference_mode(), steady_proposals():
            expected, found = module(some.clone()).numpy(), graph(batch_channels_last(some)).numpy()
        if (
            found.shape == expected.shape
            and len(found) == len(some)
            and worst_sqnr_db(model.signature, expected, found) >= _EQUAL_DB
        ):
            return _outputs_of_graph(graph, known, samples, expected.shape[1:], progress)
        progress.note("the graph's outputs differ from those of the model as loaded, which runs instead")
    rows: list[FloatArray] = []
    with torch.inference_mode():
        for batch in samples.batches(BATCH_SIZE):
            rows.append(module(model.fast_batch(batch)).numpy())
            progress.step(sum(map(len, rows)), len(samples), "samples")
    return np.concatenate(rows)


def _outputs_of_graph(
    graph: fx.GraphModule,
    known: Mapping[int, FloatArray],
    samples: Samples,
    shape: tuple[int, ...],
    progress: Progress,
) -> FloatArray:
    # One array from the start: small arrays that stay keep the memory around them from being used again.
    outputs = np.empty((len(samples), *shape), np.float32)
    for row, output in known.items():
        outputs[row] = output
    others = np.array([row for row in range(len(samples)) if row not in known], np.int64)
    rest = samples.take(others)

    def run(part: Part) -> None:
        outputs[others[part.rows]] = graph(batch_channels_last(rest.tensor(part.rows))).numpy()

    in_threads(run, parts_of(len(rest), SAMPLES_AT_ONCE), progress)
    return outputs


def compare(
    quantized: QuantizedModel,
    scripted: ScriptedModel,
    reference: Reference,
    directory: Path,
    progress: Progress | None = None,
) -> Contender:
    """Reload the saved model in a fresh process and compare it with the INT8 module and with FP32.

    The files for the other process are written into ``directory``. Raises VerificationError when the outputs of the
    saved model do not exactly equal those of the module that it was made from.
    """
    samples = reference.samples
    batch_size = power_of_two(samples_within(_BATCH_MACS, reference.macs, most=BATCH_SIZE, least=_LEAST_BATCH))
    replayed = _replay(scripted, samples, directory, batch_size, progress)
    actual = replayed["all"]
    for name in {"all", "floats"} & replayed.keys():
        pixels, data = scripted.pixel_input and name == "all", samples.data[:batch_size]
        expected = _run_here(quantized, scripted, data, samples.preprocess, pixel_input=pixels)
        got = replayed[name][: len(expected)]
        if not np.array_equal(got, expected):
            raise VerificationError(
                f"the saved {scripted.target.engine} model differs from the quantized module by up to "
                f"{float(np.abs(got - expected).max()):.3g}",
                hint="the trace depends on its example input; make forward independent of batch size and values",
            )
    report = dataclasses.replace(
        _distance(reference, actual), **_top_k(reference, actual), **_metric(reference, actual)
    )
    kept = slice(0, _GOLDEN_SAMPLES)
    golden = {
        "input": samples.data[kept],
        "output": thinned(replayed["golden"], actual.shape[1:]),
        "output_fp32": thinned(reference.outputs[kept], actual.shape[1:]),
    }
    first = slice(0, pictures.MOST)
    unpack = reference.signature.unpack
    drawn = pictures.pictures(
        reference.presenter, reference.kind, samples, reference.signature,
        unpack(reference.outputs[first]), unpack(actual[first]),
    )  # fmt: skip
    return Contender(quantized, scripted, report, golden, pictures=drawn)


def _distance(reference: Reference, actual: FloatArray) -> VerifyReport:
    """Return a report with all measures that need no labels."""
    samples, signature = reference.samples, reference.signature
    expected, found = signature.compared(reference.outputs, actual)
    facts = tuple(_output_fact(name, expected[name], found[name]) for name in expected)
    worst = min(facts, key=lambda each: each.sqnr_db)
    report = VerifyReport(
        data=samples.origin,
        samples=len(samples),
        equal_to_quantized=True,
        sqnr_db=worst.sqnr_db,
        cosine=min(each.cosine for each in facts),
        agreement=None,
        sqnr_db_ci95=worst.sqnr_db_ci95,
        outputs=facts,
        worst_output=worst.name if len(facts) > 1 else None,
    )
    if reference.kind == EMBEDDING:
        name = worst.name
        between = expected[name], found[name]
        ci95 = meaning_intervals(*between) if reference.confident else {}
        return dataclasses.replace(report, meaning=meaning_of(*between, samples.labels), alike_ci95=ci95)
    given = signature.unpack(reference.outputs), signature.unpack(actual)
    if (alike := likeness(reference.presenter, *given)) is not None:
        report = dataclasses.replace(report, likeness_name=alike[0], likeness=alike[1])
    report = dataclasses.replace(report, decisions=same_decisions(reference.presenter, *given))
    if reference.confident:
        report = dataclasses.replace(report, alike_ci95=alike_intervals(reference.presenter, *given))
    if reference.kind not in {*COMPARES_CLASSES, RAW}:  # one of several raw outputs may have class scores
        return report
    if reference.kind == "segmentation":
        (scores_of,) = expected
        maps = expected[scores_of], found[scores_of]
        chosen = signature.outputs[0].whole is not None  # classes already: how alike they are was measured
        several = maps[0].ndim >= 4 and maps[0].shape[1] > 1 and not chosen
        if not several:
            return report
        ci95 = pixel_interval(*maps) if reference.confident else {}
        return dataclasses.replace(report, agreement=accuracy.agreement(*maps), alike_ci95=ci95)  # of pixels
    scores = signature.class_scores
    if scores is None or not accuracy.has_classes(scores.shape):
        return report
    same = int((expected[scores.name].argmax(axis=1) == found[scores.name].argmax(axis=1)).sum())
    return dataclasses.replace(
        report, agreement=same / len(samples), agreement_ci95=accuracy.wilson_interval(same, len(samples))
    )


def _output_fact(name: str, expected: FloatArray, actual: FloatArray) -> OutputFact:
    return OutputFact(
        name,
        accuracy.sqnr_db(expected, actual),
        accuracy.sqnr_interval_db(expected, actual),
        accuracy.cosine(expected, actual),
    )


def _top_k(reference: Reference, actual: FloatArray) -> dict[str, Any]:
    """Return the report's fields about top-1 and top-5, empty without labels."""
    labels, scores = reference.samples.labels, reference.signature.class_scores
    if labels is None or scores is None or reference.kind == EMBEDDING:
        return {}
    fields: dict[str, Any] = {"labelled_samples": len(labels)}
    right = {}
    for k in (1, 5):
        for name, outputs in (("fp32", reference.outputs), ("int8", actual)):
            found = right[k, name] = accuracy.hits(reference.signature.split(outputs)[scores.name], labels, k)
            fields[f"top{k}_{name}"] = float(found.mean())
            fields[f"top{k}_{name}_ci95"] = accuracy.wilson_interval(int(found.sum()), len(labels))
    lost = int((right[1, "fp32"] & ~right[1, "int8"]).sum())
    won = int((right[1, "int8"] & ~right[1, "fp32"]).sum())
    return fields | {
        "top1_lost": lost,
        "top1_won": won,
        "top1_drop_ci95": accuracy.paired_interval(lost, won, len(labels)),
    }


def _metric(reference: Reference, actual: FloatArray) -> dict[str, Any]:
    """Return the report's fields about the user's metric, empty without one."""
    metric, targets = reference.metric, reference.samples.targets
    if metric is None or targets is None:
        return {}
    result = reference.signature.result
    fp32, int8 = metric(result(reference.outputs), targets), metric(result(actual), targets)
    fields = {
        "metric": metric.name,
        "metric_goal": metric.goal,
        "metric_fp32": fp32,
        "metric_int8": int8,
        "metric_drop": metric.drop(fp32, int8),
    }
    if not metric.resampled:
        return fields

    def measured(outputs: FloatArray) -> Callable[[npt.NDArray[np.int64]], float]:
        return metric.measure(lambda rows: result(outputs[rows]), targets)

    fp32_on, int8_on = measured(reference.outputs), measured(actual)

    def drop_on(rows: npt.NDArray[np.int64]) -> float:
        return metric.drop(fp32_on(rows), int8_on(rows))

    try:
        return fields | {
            "metric_int8_ci95": accuracy.bootstrap_interval(int8_on, len(targets)),
            "metric_drop_ci95": accuracy.bootstrap_interval(drop_on, len(targets)),
        }
    except ValueError as error:
        raise VerificationError(
            f"[evaluation] metric {metric.name} has no interval, which confident = true needs: {error}",
            hint="give more samples that have what is measured",
        ) from error


def _run_here(
    quantized: QuantizedModel,
    scripted: ScriptedModel,
    data: npt.NDArray[Any],
    preprocess: PreprocessSpec | None,
    *,
    pixel_input: bool,
) -> FloatArray:
    """Run the first samples through the INT8 module in this process, in the same batch as the replay.

    Programs of several lengths are run from their file: the module runs the one of the greatest length for all.
    """
    batch = torch.from_numpy(model_input(data, preprocess, pixel_input=pixel_input))
    if isinstance(quantized.module, NativeModel) and quantized.module.lengths is not None:
        with closing(Session(read_program(scripted.path), 1)) as session:
            return np.array(session(batch.numpy()))
    with torch.inference_mode(), engine(quantized.target.engine):
        output: FloatArray = quantized.module(batch_channels_last(batch)).numpy()
    return output


def _replay(
    scripted: ScriptedModel, samples: Samples, directory: Path, batch_size: int, progress: Progress | None
) -> dict[str, FloatArray]:
    """Return the saved model's outputs on ``all`` samples, on the ``golden`` ones, and on the first ones as ``floats``.

    The golden samples are a separate batch, because dynamic quantization measures ranges over each batch. ``floats``
    checks the second input form of a model that takes pixels.
    """
    inputs = directory / "replay-inputs.npy"
    np.save(inputs, samples.data)
    rows = {"all": len(samples), "golden": min(_GOLDEN_SAMPLES, len(samples))}
    if scripted.pixel_input:
        rows["floats"] = min(batch_size, len(samples))
    jobs = {
        name: {
            "outputs": str(directory / f"replay-{name}.npy"),
            "rows": count,
            "batch_size": min(count, batch_size),
            "floats": name == "floats",
        }
        for name, count in rows.items()
    }
    spec = {
        "model": str(scripted.path),
        "engine": scripted.target.engine,
        "inputs": str(inputs),
        "jobs": list(jobs.values()),
        "preprocess": samples.preprocess.to_dict() if samples.preprocess else None,
        "pixel_input": scripted.pixel_input,
        "threads": torch.get_num_threads(),
    }
    run_worker("replay", spec, directory / "replay.json", progress)
    return {name: np.load(str(job["outputs"])) for name, job in jobs.items()}
