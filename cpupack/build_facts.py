"""All facts of a finished build as JSON: ``build --json`` prints them, and the wheel has them in build.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpupack.artifacts import Contender, FloatModel, Recovery, SaturationReport, Slower, TunePlan
from cpupack.runtime.plain import to_plain


def build_facts(
    model: FloatModel,
    contender: Contender,
    raced: Sequence[Contender],
    failed: Mapping[str, str],
    plan: TunePlan,
    *,
    slower: Sequence[Slower] = (),
    times_s: Mapping[str, float],
    warnings: Sequence[str],
    sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the facts of one wheel's build. Sizes in bytes, times in seconds; no infinities.

    ``contender`` was packaged. ``raced`` holds all engines that were checked, ``slower`` those that were dropped before
    that, ``failed`` the reasons of those that could not be built.
    ``sections`` adds what only some builds have (calibration, recovery, saturation, layers): dataclasses or
    plain values; an empty section is left out. ``times_s`` has the stages so far.
    """
    scripted = contender.scripted
    facts = {
        "weights": model.weights_origin,
        "random_weights": model.random_weights,
        "fp32_bytes": model.fp32_bytes,
        "int8_bytes": scripted.size_bytes,
        "int8_operators": scripted.int8_operators,
        "fp32_operators": scripted.fp32_operators,
        "target": scripted.target,
        "engines": {each.scripted.target.engine: _engine(each) for each in raced}
        | {each.engine: _slower(each) for each in slower}
        | {name: {"failed": why} for name, why in failed.items()},
        "report": contender.report,
        "notes": contender.quantized.notes,
        "plan": plan,
        **{name: section for name, section in sections.items() if section},
        "stages_s": {title: round(seconds, 3) for title, seconds in times_s.items()},
        "warnings": list(warnings),
    }
    plain: dict[str, Any] = to_plain(facts)
    return plain


def recovery_facts(recovery: Recovery) -> dict[str, Any]:
    """Return a recovery as JSON. Each trial also says ``pareto``. An infinite SQNR (outputs equal FP32's) is None."""
    trials = [{**to_plain(trial), "pareto": number in recovery.pareto} for number, trial in enumerate(recovery.trials)]
    return {**to_plain(recovery), "trials": trials}


def safety_facts(report: SaturationReport) -> dict[str, Any]:
    """Return the facts that make a model safe without VNNI, and ``finding``: the same in one sentence."""
    return {"finding": safety_in_words(report), **to_plain(report)}


def safety_in_words(report: SaturationReport) -> str:
    """Return in one sentence why a model is safe without VNNI."""
    if not report.samples:
        return (
            "safe without VNNI: the weights were chosen so that every 16-bit sum fits for any input; "
            f"{report.activation_bits}-bit activations"
        )
    text = f"safe without VNNI: no 16-bit sum overflows on {report.samples} samples ({report.origin})"
    if always := sum(each.bound <= 2**15 - 1 for each in report.layers):
        text += f", in {always} of {len(report.layers)} layers for any input"
    text += f"; {report.activation_bits}-bit activations"
    if report.refused and report.activation_bits == 7:
        count = len({each.name for each in report.refused if each.activation_bits == 8})
        text += f", 8 bits are not safe in {count} layer{'s' if count != 1 else ''}"
    if report.limited:
        text += f", 7-bit weights in {', '.join(report.limited)}"
    return text


def _engine(each: Contender) -> dict[str, Any]:
    return {
        "speedup": each.report.speedup,
        "sqnr_db": each.report.sqnr_db,
        "agreement": each.report.agreement,
        "meaning": each.report.meaning,
        "passed": each.report.passed,
        "int8_bytes": each.scripted.size_bytes,
        "gates": each.report.gates,
    }


def _slower(each: Slower) -> dict[str, Any]:
    return {"speedup": each.speedup, "int8_bytes": each.int8_bytes, "not_checked": each.reason}
