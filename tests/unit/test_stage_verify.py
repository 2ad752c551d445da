"""Verification: the saved model against the module and FP32 in a fresh process, the race, the gates, the choice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SHAPE, Recorder, float_model, quantized, samples, target
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Contender, QuantizedModel, ScriptedModel, VerifyReport
from cpupack.errors import CalibrationError, VerificationError
from cpupack.recipe import Evaluation
from cpupack.stages.script import script, script_float
from cpupack.stages.verify import choose, compare, judge, race, run_reference


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))


@pytest.fixture(scope="module")
def contender(tmp_path_factory: pytest.TempPathFactory) -> Contender:
    """A real contender on 20 labelled samples: more than one batch of the replay."""
    directory = tmp_path_factory.mktemp("contender")
    model, int8 = quantized(net(), "fbgemm")
    data = dataclasses.replace(samples(count=20), labels=np.arange(20, dtype=np.int64) % 6)
    reference = run_reference(model, data, Recorder())
    return compare(int8, script(int8, SHAPE, directory / "model.pt"), reference, directory)


def test_the_report_compares_a_fresh_process_with_fp32(contender: Contender) -> None:
    report = contender.report
    assert report.equal_to_quantized
    assert report.samples == report.labelled_samples == 20
    assert report.sqnr_db > 20.0
    assert report.cosine > 0.99
    model = float_model(net())
    data = samples(count=20)
    with torch.inference_mode():
        expected = model.module(data.tensor(slice(None))).numpy()
    labels = np.arange(20) % 6
    assert report.top1_fp32 == accuracy.top_k(expected, labels, 1)
    assert report.top5_fp32 == accuracy.top_k(expected, labels, 5)
    assert report.top1_int8 is not None


def test_golden_outputs_are_of_the_first_samples(contender: Contender) -> None:
    golden = contender.golden
    assert np.array_equal(golden["input"], samples(count=20).data[: len(golden["input"])])
    assert len(golden["input"]) == len(golden["output"]) == len(golden["output_fp32"]) > 0
    assert accuracy.sqnr_db(golden["output_fp32"], golden["output"]) > 15.0


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.reshape(4, -1).sum(1).repeat(len(x) // 4 or 1)[: len(x), None] * torch.ones(6),
        lambda x: x.flatten(1)[:, :6] * float(len(x)),  # the batch size becomes a constant of the trace
        lambda x: x.flatten(1)[:, :6] * float(x.sum()),  # and so does a value
    ],
)
def test_a_trace_that_depends_on_its_example_is_found(forward: Any, tmp_path: Path) -> None:
    class Dependent(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + forward(x)

    model, int8 = quantized(net(), "fbgemm")
    reference = run_reference(model, samples(), Recorder())
    dependent = QuantizedModel(Dependent(int8.module), int8.target)
    scripted = script(dependent, SHAPE, tmp_path / "model.pt")
    with pytest.raises(VerificationError, match=r"fbgemm|fresh process") as caught:
        compare(dependent, scripted, reference, tmp_path)
    assert caught.value.exit_code == 6


def test_a_saved_file_that_cannot_be_loaded_is_one_line(contender: Contender, tmp_path: Path) -> None:
    damaged = tmp_path / "model.pt"
    damaged.write_bytes(b"not a model")
    reference = run_reference(float_model(net()), samples(count=4), Recorder())
    with pytest.raises(VerificationError, match="failed in a fresh process") as caught:
        compare(contender.quantized, dataclasses.replace(contender.scripted, path=damaged), reference, tmp_path)
    assert len(caught.value.message.splitlines()) == 1


def test_a_label_without_a_class_is_an_error() -> None:
    data = dataclasses.replace(samples(count=3), labels=np.array([0, 6, 1]))
    with pytest.raises(CalibrationError, match=r"has class 6, the model's output has shape \(6,\)"):
        run_reference(float_model(net()), data, Recorder())


def test_the_race_times_everything_interleaved_and_the_ratio_follows_from_its_rows(
    contender: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpupack.stages.verify._ROUNDS", 3)
    monkeypatch.setattr("cpupack.stages.verify._ROUND_S", 0.01)
    path = script_float(float_model(net()), tmp_path / "float.pt")
    (timed,) = race([contender], path, SHAPE, None, tmp_path, batch_size=2, threads=1)
    rows = timed.report.speed_rows
    assert [row["name"] for row in rows] == ["fp32", "fbgemm", "fbgemm", "fp32", "fp32", "fbgemm"]
    assert {(row["batch_size"], row["threads"]) for row in rows} == {(2, 1)}
    ratios = []
    for number in range(3):
        times = {row["name"]: row["latency_ms"] for row in rows if row["round"] == number}
        ratios.append(times["fp32"] / times["fbgemm"])
    assert timed.report.speedup == pytest.approx(median(ratios))


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
