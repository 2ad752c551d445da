"""Gates: what is judged, by which bound, and what the number of samples can prove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Contender, QuantizedModel, ScriptedModel, VerifyReport
from cpupack.errors import VerificationError
from cpupack.meaning import Meaning
from cpupack.recipe import Evaluation
from cpupack.stages.verify import (
    choose,
    judge,
    unproven,
)
from helpers.tiny_models import target


def made_up(engine: str = "fbgemm", **facts: Any) -> Contender:
    measured = {
        "data": "noise",
        "samples": 10,
        "equal_to_quantized": True,
        "sqnr_db": 30.0,
        "cosine": 0.99,
        "agreement": 0.95,
        "top1_fp32": 0.80,
        "top1_int8": 0.78,
        "speedup": 2.0,
    }
    scripted = ScriptedModel(Path("model.pt"), target(engine), 1, 1, 0)
    return Contender(QuantizedModel(nn.Identity(), target(engine)), scripted, VerifyReport(**{**measured, **facts}), {})


GATES = [
    ("max_drop", 0.03, 0.01, 0.02),
    ("min_top1", 0.7, 0.79, 0.78),
    ("min_agreement", 0.9, 0.96, 0.95),
    ("min_sqnr_db", 29.0, 31.0, 30.0),
    ("min_speedup", 1.5, 2.5, 2.0),
]


@pytest.mark.parametrize(("name", "holds", "fails", "measured"), GATES)
def test_every_gate_passes_and_fails(name: str, holds: float, fails: float, measured: float) -> None:
    for bound, passed in ((holds, True), (fails, False)):
        report = judge(made_up(), Evaluation(**{name: bound})).report
        (gate,) = report.gates
        assert (gate.name, gate.bound, gate.passed, report.passed) == (name, bound, passed, passed)
        assert gate.measured == pytest.approx(measured)


def test_a_measurement_on_the_bound_passes_and_nan_does_not() -> None:
    assert judge(made_up(), Evaluation(min_sqnr_db=30.0, min_speedup=2.0)).report.passed
    assert not judge(made_up(sqnr_db=float("nan")), Evaluation(min_sqnr_db=1.0)).report.passed


def test_a_drop_that_is_exactly_the_bound_passes_whatever_the_rounding() -> None:
    # 0.80 - 0.79 is 0.010000000000000009 in binary.
    assert judge(made_up(top1_int8=0.79), Evaluation(max_drop=0.01)).report.passed


def test_gates_that_cannot_be_measured_are_left_out() -> None:
    blind = made_up(top1_fp32=None, top1_int8=None, speedup=None)
    report = judge(blind, Evaluation(max_drop=0.1, min_top1=0.1, min_speedup=1.0, min_sqnr_db=1.0)).report
    assert [gate.name for gate in report.gates] == ["min_sqnr_db"]


def test_a_gate_on_embeddings_is_judged_by_their_meaning() -> None:
    meaning = Meaning(0.97, 0.9, None, None, 0)
    report = judge(made_up(agreement=None, meaning=meaning), Evaluation(min_agreement=0.98, min_cosine=0.96)).report
    found = [(gate.name, gate.measured, gate.passed) for gate in report.gates]
    assert found == [("min_agreement", 0.97, False), ("min_cosine", 0.97, True)]


@pytest.mark.parametrize("name", ["min_recall", "min_agreement", "min_decisions"])
def test_a_gate_on_likeness_that_no_sample_tells_of_is_an_error(name: str) -> None:
    """Two texts have no order; images without a box in either have none in common."""
    meaning = Meaning(0.97, 0.9, None, None, 0) if name == "min_recall" else None
    with pytest.raises(VerificationError, match=f"{name} cannot be judged on 10 samples of noise"):
        judge(made_up(agreement=None, meaning=meaning), Evaluation(**{name: 0.5}))
    assert judge(made_up(agreement=None, meaning=meaning), Evaluation()).report.gates == ()


def test_the_first_that_passes_is_chosen() -> None:
    bounds = Evaluation(min_sqnr_db=30.0)
    fast, right = made_up("x86", sqnr_db=10.0), made_up("fbgemm")
    assert choose([judge(fast, bounds), judge(right, bounds)]).scripted.target.engine == "fbgemm"
    assert choose([fast, right]) is fast  # no gates


def test_when_none_passes_the_error_has_every_number() -> None:
    bounds = Evaluation(min_sqnr_db=33.5, min_speedup=1.5)
    with pytest.raises(VerificationError) as caught:
        choose([judge(made_up("x86", sqnr_db=12.25), bounds), judge(made_up("fbgemm"), bounds)])
    lines = caught.value.message.splitlines()
    assert "noise" in lines[0]
    assert lines[1:] == [
        "  x86: min_sqnr_db = 33.5, measured 12.25  FAILED",
        "  x86: min_speedup = 1.5, measured 2  ok",
        "  fbgemm: min_sqnr_db = 33.5, measured 30  FAILED",
        "  fbgemm: min_speedup = 1.5, measured 2  ok",
    ]
    assert caught.value.exit_code == 6


def test_a_gate_that_fp32_does_not_hold_either_says_so() -> None:
    """Else the reader looks for the loss in INT8, which has none."""
    bad = {"metric": "map", "metric_fp32": 0.004, "metric_int8": 0.003, "metric_drop": 0.001}
    with pytest.raises(VerificationError, match=r"FP32 itself has 0.004, so INT8 is not the reason"):
        choose([judge(made_up(**bad), Evaluation(min_metric=0.2))])
    with pytest.raises(VerificationError, match=r"FP32 itself has 9, so"):
        choose([judge(made_up(metric="mae", metric_fp32=9.0, metric_int8=9.5), Evaluation(max_metric=5))])
    with pytest.raises(VerificationError, match=r"FP32 itself has 0.8, so"):
        choose([judge(made_up(), Evaluation(min_top1=0.9))])
    for facts, bounds in ((bad, {"max_metric_drop": 0.0}), ({}, {"min_top1": 0.79})):
        with pytest.raises(VerificationError) as caught:
            choose([judge(made_up(**facts), Evaluation(**bounds))])
        assert "FP32 itself" not in caught.value.message


def equal_on(count: int, **evaluation: Any) -> Contender:
    """Return a contender that answered every one of ``count`` samples as FP32 did, 90 % of them right."""
    right = round(0.9 * count)
    facts = {
        "samples": count,
        "labelled_samples": count,
        "top1_fp32": right / count,
        "top1_int8": right / count,
        "top1_int8_ci95": accuracy.wilson_interval(right, count),
        "top1_lost": 0,
        "top1_won": 0,
        "top1_drop_ci95": accuracy.paired_interval(0, 0, count),
    }
    return judge(made_up(**facts), Evaluation(**evaluation))


def test_a_hundred_samples_cannot_prove_a_tenth_of_a_point() -> None:
    few = equal_on(100, max_drop=0.001)
    (gate,) = few.report.gates
    assert (gate.passed, gate.proven) == (True, False)
    # Without any difference the interval ends at z^2 / (n + z^2), so 0.1 points take n = 999 z^2 = 3838 samples.
    assert unproven(few) == [
        "max_drop = 0.001 is not proven: measured 0.00 points on 100 samples, 95 % interval -3.70 to 3.70: "
        "so few samples cannot prove 0.1 points; about 3,900 would"
    ]
    enough = equal_on(3838, max_drop=0.001)
    assert enough.report.gates[0].proven
    assert unproven(enough) == []
    assert not equal_on(3837, max_drop=0.001).report.gates[0].proven


def test_confident_gates_are_judged_by_the_worse_end() -> None:
    refused = equal_on(100, max_drop=0.001, confident=True)
    assert not refused.report.passed
    with pytest.raises(VerificationError) as caught:
        choose([refused])
    assert caught.value.message.splitlines()[1:] == [
        "  fbgemm: max_drop = 0.001, measured 0 (95 % interval -0.03699 to 0.03699)  FAILED",
        "    max_drop = 0.001 is not proven: measured 0.00 points on 100 samples, 95 % interval -3.70 to 3.70: "
        "so few samples cannot prove 0.1 points; about 3,900 would",
    ]
    assert equal_on(3838, max_drop=0.001, confident=True).report.passed
    assert not equal_on(100, min_top1=0.89, confident=True).report.passed
    assert equal_on(100, min_top1=0.80, confident=True).report.passed


def test_confident_gates_on_what_is_alike_can_hold() -> None:
    """They failed whatever was measured, because they had no interval."""
    report = made_up(agreement=None, likeness=0.9, decisions=0.97, alike_ci95={"min_agreement": (0.85, 0.95)})
    (held,) = judge(report, Evaluation(min_agreement=0.84, confident=True)).report.gates
    (failed,) = judge(report, Evaluation(min_agreement=0.86, confident=True)).report.gates
    assert (held.passed, held.ci95, failed.passed) == (True, (0.85, 0.95), False)
    assert "so few samples cannot prove 0.86" in failed.note
    (without,) = judge(report, Evaluation(min_decisions=0.5, confident=True)).report.gates
    assert not without.passed


def test_a_bound_that_is_the_measured_value_is_never_shown() -> None:
    (note,) = unproven(equal_on(100, max_drop=0.0))
    assert note.endswith("no number of samples can prove a bound that equals the measured value")


def test_samples_for_decibels_follow_from_the_width() -> None:
    close = made_up(sqnr_db=30.0, sqnr_db_ci95=(28.0, 32.0), samples=100)
    (note,) = unproven(judge(close, Evaluation(min_sqnr_db=29.0)))
    # Half the width is four times the samples.
    assert note.endswith("cannot prove 29 dB; about 400 would")


def test_speed_is_as_sure_as_its_slowest_round() -> None:
    timed = made_up(speedup=2.0, speedup_ci95=(1.4, 2.2))
    assert judge(timed, Evaluation(min_speedup=1.5)).report.passed
    assert not judge(timed, Evaluation(min_speedup=1.5, confident=True)).report.passed
    assert judge(timed, Evaluation(min_speedup=1.3, confident=True)).report.passed
