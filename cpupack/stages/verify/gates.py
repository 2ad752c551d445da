"""The gates of ``[evaluation]``: whether each can be measured, whether it holds, and whether the samples prove it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cpupack import accuracy
from cpupack.accuracy import Interval
from cpupack.artifacts import Contender, Gate, VerifyReport
from cpupack.errors import RecipeError, VerificationError
from cpupack.recipe import Evaluation
from cpupack.recipe.gates import MEANING_GATES
from cpupack.runtime.signature import Signature
from cpupack.runtime.tasks.spec import CLASSIFICATION, MASKS, RAW

_CLASS_GATES = ("max_drop", "min_top1", "min_agreement")
_ROUNDING = 1e-9
ALIKE = ("segmentation", MASKS, "detection", "embedding")
"""Kinds for which ``min_agreement`` is measured without classes of whole inputs."""
_OF_ALIKENESS = (*MEANING_GATES, "min_agreement", "min_decisions")
"""Gates that every host can measure, with any weights: they need no labels and no clock."""
OFF = "off"
"""The value in a recipe that turns off a gate with a default."""

IntervalOf = Callable[[int], Interval]


@dataclass(frozen=True)
class _Measured:
    """The value that one gate judges. ``interval_of`` estimates its interval for another number of samples."""

    value: float
    ci95: Interval | None
    samples: int = 0
    interval_of: IntervalOf | None = None
    unit: str = ""
    factor: float = 1.0
    output: str = ""


def check_gates(evaluation: Evaluation, signature: Signature, kind: str) -> None:
    """Raise RecipeError for a gate on classes if no output, or more than one, is ``(classes,)`` without the batch.

    ``kind`` is that of the task: of some the outputs are no classes, and some have a meaning for ``min_agreement``.
    """
    may_be_classes = kind in {CLASSIFICATION, RAW}
    if may_be_classes and (scores := signature.class_scores) is not None and accuracy.has_classes(scores.shape):
        return
    shapes = " and ".join(str(each.shape) for each in signature.outputs)
    has = f"outputs have shapes {shapes}" if len(signature.outputs) > 1 else f"output has shape {shapes}"
    for name in _CLASS_GATES[:2] if kind in ALIKE else _CLASS_GATES:
        if name in evaluation.model_fields_set and getattr(evaluation, name) not in {None, OFF}:
            raise RecipeError(
                f"[evaluation] {name} compares classes, but "
                + (
                    f"the model's {has} for a sample, "
                    + ("and not one of them alone is (classes,)" if len(signature.outputs) > 1 else "not (classes,)")
                    if may_be_classes
                    else f'a model of [task] kind = "{kind}" gives none'
                ),
                hint="use the gate min_sqnr_db for such a model, or your own metric (evaluation.metric)",
            )


def judge(contender: Contender, evaluation: Evaluation, *, trained: bool = True, classifies: bool = False) -> Contender:
    """Return the contender with the result of each gate that the recipe sets and that could be measured.

    Gates with a default also apply to ``trained`` weights if the recipe does not set them. The one on agreement then
    applies only if the model ``classifies`` or the data has labels. Default gates are listed only if they fail. Raises
    VerificationError for a gate of the recipe on what is alike that these samples say nothing about.
    """
    gates = []
    report = contender.report
    classifies = classifies or report.labelled_samples > 0
    found = dict(_measured(report))
    given_alike = [each for each in _OF_ALIKENESS if getattr(evaluation, each) not in {None, OFF}]
    missing = [each for each in given_alike if each in evaluation.model_fields_set and each not in found]
    if missing:
        raise VerificationError(
            f"[evaluation] {' and '.join(missing)} cannot be judged on {report.samples} samples of {report.data}",
            hint="an order of similarities takes three of them; boxes take an image in which FP32 or INT8 finds some; "
            "decisions take a model of kind multilabel or masks, or raw outputs from 0 to 1",
        )
    for name, measured in found.items():
        bound = getattr(evaluation, name)
        given = name in evaluation.model_fields_set
        if bound is None or bound == OFF or not (given or (trained and (classifies or name not in _CLASS_GATES))):
            continue
        gate = _gate(name, bound, measured, confident=evaluation.confident and given)
        if given:
            gates.append(gate)
        elif not gate.passed:
            gates.append(dataclasses.replace(gate, default=True))
    return dataclasses.replace(contender, report=dataclasses.replace(report, gates=tuple(gates)))


def choose(contenders: Sequence[Contender]) -> Contender:
    """Return the first contender that passes every gate. ``contenders`` are sorted, fastest first.

    Raises VerificationError with the numbers of all contenders when none passes.
    """
    for each in contenders:
        if each.report.passed:
            return each
    lines = []
    for each in contenders:
        for gate in each.report.gates:
            measured = f"measured {gate.measured:.4g}" + (f" for the output {gate.output}" if gate.output else "")
            if gate.confident:
                measured += f" ({_interval_text(gate.ci95)})"
            verdict = "ok" if gate.passed else "FAILED"
            bound = f"{gate.bound:g}{' (the default)' if gate.default else ''}"
            lines.append(f"  {each.scripted.target.engine}: {gate.name} = {bound}, {measured}  {verdict}")
            if gate.note and not gate.passed:
                lines.append(f"    {gate.note}")
            if (own := _too_bad_in_fp32(each.report, gate)) is not None:
                lines.append(
                    f"    FP32 itself has {own:.4g}, so INT8 is not the reason: look at [preprocess], [task], the "
                    "targets and their order of classes, and the weights"
                )
    defaults = dict.fromkeys(gate.name for each in contenders for gate in each.report.gates if gate.default)
    lowered = f'; {" and ".join(defaults)} in [evaluation] lowers a default, "off" turns it off' if defaults else ""
    raise VerificationError(
        f"[evaluation] the gates do not hold (on {contenders[0].report.data}):\n" + "\n".join(lines),
        hint="[quantize] recover = true searches for settings that hold gates on accuracy; see docs/how-to/gates.md"
        + lowered,
    )


def _too_bad_in_fp32(report: VerifyReport, gate: Gate) -> float | None:
    """Return FP32's value where a gate fails that FP32 does not hold either, None for others."""
    of = {"min_metric": report.metric_fp32, "max_metric": report.metric_fp32, "min_top1": report.top1_fp32}
    own = of.get(gate.name)
    if gate.passed or own is None:
        return None
    return own if (own > gate.bound if gate.name.startswith("max_") else own < gate.bound) else None


def unproven(contender: Contender) -> list[str]:
    """Return a sentence for each gate that holds as measured but is not proven by so few samples."""
    return [gate.note for gate in contender.report.gates if gate.passed and gate.note]


def _measured(report: VerifyReport) -> Iterator[tuple[str, _Measured]]:
    """Yield each gate's name and its measurement, if it was measured."""
    labelled, samples = report.labelled_samples, report.samples

    def alike(name: str, value: float) -> tuple[str, _Measured]:
        ci95 = report.alike_ci95.get(name)
        return name, _Measured(value, ci95, samples, _shrinking(ci95, samples))

    if report.top1_fp32 is not None and report.top1_int8 is not None:
        drop, lost, won = report.top1_fp32 - report.top1_int8, report.top1_lost or 0, report.top1_won or 0

        def drop_of(count: int) -> Interval:
            return accuracy.paired_interval(lost * count / labelled, won * count / labelled, count)

        yield "max_drop", _Measured(drop, report.top1_drop_ci95, labelled, drop_of, " points", 100.0)
    if (top1 := report.top1_int8) is not None:
        yield "min_top1", _share(top1, report.top1_int8_ci95, labelled)
    if report.agreement is not None and report.likeness is None:
        yield "min_agreement", _share(report.agreement, report.agreement_ci95, samples)
    elif (same := report.likeness if report.agreement is None else report.agreement) is not None:
        yield alike("min_agreement", same)
    elif report.meaning is not None:
        yield alike("min_agreement", report.meaning.mean_cosine)
    if report.decisions is not None:
        yield alike("min_decisions", report.decisions)
    ci95 = report.sqnr_db_ci95
    worst = report.worst_output or ""
    sqnr = _Measured(report.sqnr_db, ci95, samples, _shrinking(ci95, samples), " dB", output=worst)
    yield "min_sqnr_db", sqnr
    if (meaning := report.meaning) is not None:
        yield alike("min_cosine", meaning.mean_cosine)
        yield "min_worst_cosine", _Measured(meaning.worst_cosine, None, samples)
        if meaning.spearman is not None and meaning.recall is not None:
            yield "min_spearman", _Measured(meaning.spearman, None, samples)
            yield alike("min_recall", meaning.recall)
    if report.speedup is not None:
        yield "min_speedup", _Measured(report.speedup, report.speedup_ci95, unit="x")
    if report.metric_int8 is not None:
        ci95 = report.metric_int8_ci95
        measured = _Measured(report.metric_int8, ci95, samples, _shrinking(ci95, samples))
        yield "min_metric", measured
        yield "max_metric", measured
    if report.metric_drop is not None:
        ci95 = report.metric_drop_ci95
        yield "max_metric_drop", _Measured(report.metric_drop, ci95, samples, _shrinking(ci95, samples))


def _share(value: float, ci95: Interval | None, samples: int) -> _Measured:
    return _Measured(value, ci95, samples, lambda n: accuracy.wilson_interval(value * n, n), " %", 100.0)


def _shrinking(ci95: Interval | None, samples: int) -> IntervalOf | None:
    """Return a function from a number of samples to the interval, whose width shrinks with the root of that number."""
    if ci95 is None:
        return None
    low, high = ci95
    middle, half = (low + high) / 2.0, (high - low) / 2.0

    def interval_of(count: int) -> Interval:
        width = half * math.sqrt(samples / count)
        return middle - width, middle + width

    return interval_of


def _gate(name: str, bound: float, measured: _Measured, *, confident: bool) -> Gate:
    most = name.startswith("max_")

    def holds(value: float) -> bool:
        # 0.80 - 0.79 is a little more than 0.01 in binary. The tolerance of 1e-9 is less than one sample can change.
        return value <= bound + _ROUNDING * max(1.0, abs(bound)) if most else value >= bound

    def shown_by(interval: Interval) -> bool:
        return holds(interval[1] if most else interval[0])

    proven = measured.ci95 is not None and holds(measured.value) and shown_by(measured.ci95)
    note = ""
    if measured.ci95 is not None and holds(measured.value) and not proven:
        note = _note(name, bound, measured, shown_by)
    passed = proven if confident else holds(measured.value)
    return Gate(name, bound, measured.value, passed, proven, measured.ci95, confident, note, output=measured.output)


def _note(name: str, bound: float, measured: _Measured, shown_by: Callable[[Interval], bool]) -> str:
    """Return a sentence: the samples do not prove a gate that holds as measured, and how many samples would."""
    assert measured.ci95 is not None
    factor, unit = measured.factor, measured.unit
    value, low, high = (_number(each * factor) for each in (measured.value, *measured.ci95))
    of = f" for the output {measured.output}" if measured.output else ""
    on = f" on {measured.samples:,} samples" if measured.samples else ""
    text = f"{name} = {bound:g} is not proven: measured {value}{unit}{of}{on}, 95 % interval {low} to {high}"
    if (interval_of := measured.interval_of) is None:
        return text
    needed = accuracy.samples_needed(lambda count: shown_by(interval_of(count)), measured.samples)
    if needed is None:
        return f"{text}: no number of samples can prove a bound that equals the measured value"
    return f"{text}: so few samples cannot prove {bound * factor:g}{unit}; about {_rounded_up(needed):,} would"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0.0 else f"{value:.2g}"


def _rounded_up(count: int) -> int:
    """Round up to two significant digits, because the estimate is not more accurate than that."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


def _interval_text(ci95: Interval | None) -> str:
    return "no interval" if ci95 is None else f"95 % interval {ci95[0]:.4g} to {ci95[1]:.4g}"
