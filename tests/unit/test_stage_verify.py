"""Verification: the saved model against the module and FP32 in a fresh process, the race, and metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import Contender, QuantizedModel, Samples, VerifyReport
from cpupack.errors import CalibrationError, RecipeError, VerificationError
from cpupack.recipe import Evaluation
from cpupack.runtime.signature import Signature
from cpupack.stages.script import script, script_float
from cpupack.stages.verify import (
    check_gates,
    compare,
    judge,
    load_metric,
    race,
    run_reference,
    speeds_of,
)
from cpupack.workers.race import still_in_the_race
from helpers.tiny_models import SHAPE, Recorder, float_model, loaded, quantized, samples


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
    assert report.top1_lost is not None
    assert report.top1_won is not None
    assert report.top1_fp32 - report.top1_int8 == pytest.approx((report.top1_lost - report.top1_won) / 20)
    assert report.top1_drop_ci95 == accuracy.paired_interval(report.top1_lost, report.top1_won, 20)
    assert report.top5_fp32_ci95 == accuracy.wilson_interval(round(20 * report.top5_fp32), 20)


def test_outputs_without_classes_have_no_agreement(contender: Contender, tmp_path: Path) -> None:
    assert contender.report.agreement is not None
    model, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "fbgemm")
    reference = run_reference(model, samples(count=4), Recorder())
    report = compare(int8, script(int8, SHAPE, tmp_path / "model.pt"), reference, tmp_path).report
    assert (report.agreement, report.agreement_ci95) == (None, None)
    assert report.sqnr_db > 20.0


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
    with pytest.raises(CalibrationError, match=r"has class 6, but the model's output has shape \(6,\)"):
        run_reference(float_model(net()), data, Recorder())


def test_the_race_times_everything_interleaved_and_the_ratio_follows_from_its_rows(
    contender: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cpupack.stages.verify.timing._ROUNDS", 3)
    monkeypatch.setattr("cpupack.stages.verify.timing._ROUND_S", 0.01)
    path = script_float(float_model(net()), tmp_path / "float.pt")
    rows = race([contender.scripted], path, Signature.plain(SHAPE, ()).inputs, tmp_path, batch_size=2, threads=1)
    speed = speeds_of(rows, ["fbgemm"])["fbgemm"]
    assert speed.rows == tuple(rows)
    assert [row["name"] for row in rows] == ["fp32", "fbgemm", "fbgemm", "fp32", "fp32", "fbgemm"]
    assert {(row["batch_size"], row["threads"]) for row in rows} == {(2, 1)}
    ratios = []
    for number in range(3):
        times = {row["name"]: row["latency_ms"] for row in rows if row["round"] == number}
        ratios.append(times["fp32"] / times["fbgemm"])
    assert speed.speedup == pytest.approx(median(ratios))
    assert speed.ci95 is None  # three rounds are too few for 95 %


def test_a_slow_model_is_timed_in_three_rounds(
    contender: Contender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rounds of a call of twenty seconds took minutes."""
    monkeypatch.setattr("cpupack.stages.verify.timing._ROUND_S", 0.001)
    monkeypatch.setattr("cpupack.stages.verify.timing._MOST_S", 0.0)
    path = script_float(float_model(net()), tmp_path / "float.pt")
    inputs = Signature.plain(SHAPE, ()).inputs
    progress = Recorder()
    rows = race([contender.scripted], path, inputs, tmp_path, progress, batch_size=1, threads=1)
    assert {row["round"] for row in rows} == {0, 1, 2}
    rows = race([contender.scripted], path, inputs, tmp_path, batch_size=1, threads=1, every_round=True)
    assert {row["round"] for row in rows} == set(range(7))  # what a gate needs that is judged by its interval


def test_a_model_leaves_the_race_when_another_was_clearly_faster_in_every_round() -> None:
    def rows(name: str, *times_ms: float) -> list[dict[str, Any]]:
        return [{"round": number, "name": name, "latency_ms": ms} for number, ms in enumerate(times_ms)]

    raced = [
        *rows("fp32", 1.0, 1.0),  # never leaves: it is what the others are compared with
        *rows("best", 10.0, 20.0),
        *rows("close", 12.0, 26.0),  # a quarter slower in the second round only
        *rows("behind", 12.6, 25.2),  # more than a quarter slower in both, as the host was slow in the second
    ]
    names = ["best", "close", "behind"]
    assert still_in_the_race(raced, names, 1.25) == ["best", "close"]
    assert still_in_the_race(raced, names, 2.0) == names
    assert still_in_the_race(raced, ["behind"], 1.25) == ["behind"]


METRICS = """
def error(outputs, targets):
    return abs(outputs.sum(axis=(1, 2, 3)) - targets).mean()

def score(outputs, targets):
    outputs[:] = 0.0  # a function may write into what it gets
    return -1.0

def fails(outputs, targets):
    return outputs @ targets

def empty(outputs, targets):
    return None

def infinite(outputs, targets):
    return float("inf")
"""


def measured_with(directory: Path, data: Samples, **evaluation: Any) -> VerifyReport:
    (directory / "metrics.py").write_text(METRICS)
    spec = loaded(directory, evaluation={"source": "arrays:x.npz", **evaluation})
    model, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), "fbgemm", spec=spec.recipe)
    reference = run_reference(model, data, Recorder(), metric=load_metric(spec, model))
    contender = compare(int8, script(int8, SHAPE, directory / "model.pt"), reference, directory)
    return judge(contender, spec.recipe.evaluation).report


def with_targets(count: int = 12) -> Samples:
    """Return samples whose targets are what the FP32 model's outputs sum up to, so that its error is zero."""
    data = samples(count=count)
    model, _ = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), "fbgemm")
    with torch.inference_mode():
        sums = model.module(data.tensor(slice(None))).sum(dim=(1, 2, 3)).numpy()
    return dataclasses.replace(data, targets=sums)


def test_a_users_metric_judges_both_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = with_targets()
    torch.manual_seed(0)
    report = measured_with(
        tmp_path,
        data,
        metric="python:metrics.py:error",
        metric_goal="min",
        max_metric=100.0,
        max_metric_drop=1e-6,
        confident=True,
    )
    assert report.metric == "python:metrics.py:error"
    assert report.metric_fp32 == pytest.approx(0.0, abs=1e-4)
    assert report.metric_int8 is not None
    assert report.metric_int8 > 1e-3
    assert report.metric_drop == pytest.approx(report.metric_int8 - report.metric_fp32)
    assert [(gate.name, gate.passed, gate.proven) for gate in report.gates] == [
        ("max_metric", True, True),
        ("max_metric_drop", False, False),
    ]
    assert report.metric_int8_ci95 is not None
    low, high = report.metric_int8_ci95
    assert low < report.metric_int8 < high


def test_where_larger_is_better_the_drop_is_the_other_way(tmp_path: Path) -> None:
    data = dataclasses.replace(samples(count=4), targets=np.zeros((4, 2, 3)))
    report = measured_with(tmp_path, data, metric="python:metrics.py:score", min_metric=-0.5, max_metric_drop=0.0)
    assert (report.metric_fp32, report.metric_int8, report.metric_drop) == (-1.0, -1.0, 0.0)
    assert [(gate.name, gate.passed) for gate in report.gates] == [("min_metric", False), ("max_metric_drop", True)]
    assert report.metric_int8_ci95 is None  # some thousand calls, for confident gates alone
    assert report.sqnr_db < 100.0  # the outputs are those of the models, not what the function wrote


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            "fails",
            r"metric python:metrics.py:fails failed: ValueError: matmul.*metrics.py:10: return outputs @ targets",
        ),
        ("empty", r"metric python:metrics.py:empty returned None; it must be one finite number"),
        ("infinite", r"metric python:metrics.py:infinite returned inf"),
    ],
)
def test_a_metric_that_fails_is_named(function: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(METRICS)
    metric = load_metric(
        loaded(tmp_path, evaluation={"source": "arrays:x.npz", "metric": f"python:metrics.py:{function}"}),
        float_model(nn.Flatten()),
    )
    assert metric is not None
    with pytest.raises(VerificationError, match=words):
        metric(np.zeros((4, 5), np.float32), np.zeros(4))


def test_a_metric_that_is_not_there_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "metrics.py").write_text(METRICS)
    spec = loaded(tmp_path, evaluation={"source": "arrays:x.npz", "metric": "python:metrics.py:eror"})
    with pytest.raises(
        RecipeError, match=r"\[evaluation\] metric: metrics.py has no function or class 'eror'"
    ) as caught:
        load_metric(spec, float_model(nn.Flatten()))
    assert caught.value.hint == "did you mean error?"
    assert load_metric(loaded(tmp_path), float_model(nn.Flatten())) is None


def test_labels_that_no_gate_needs_are_dropped_where_they_do_not_fit() -> None:
    recorder = Recorder()
    data = dataclasses.replace(samples(count=3), labels=np.array([0, 6, 1]))
    reference = run_reference(float_model(net()), data, recorder, labels_required=False)
    assert reference.samples.labels is None
    assert recorder.warnings == ["accuracy is not measured: noise has class 6, but the model's output has shape (6,)"]


@pytest.mark.parametrize("shape", [(1,), (3, 8, 8), ()])
def test_gates_on_classes_need_classes(shape: tuple[int, ...]) -> None:
    for name in ("max_drop", "min_top1", "min_agreement"):
        with pytest.raises(RecipeError, match=rf"{name} compares classes, but the model's output has shape") as caught:
            check_gates(Evaluation(**{name: 0.5}), Signature.plain(SHAPE, shape), "raw")
        assert caught.value.exit_code == 2
    check_gates(Evaluation(min_sqnr_db=10.0), Signature.plain(SHAPE, shape), "raw")
    check_gates(Evaluation(min_agreement=0.5), Signature.plain(SHAPE, (2,)), "classification")


@pytest.mark.parametrize("kind", ["multilabel", "regression", "embedding", "keypoints"])
def test_gates_on_classes_need_a_task_of_classes(kind: str) -> None:
    signature = Signature.plain(SHAPE, (6,))
    for name in ("max_drop", "min_top1"):
        with pytest.raises(RecipeError, match=f'{name} compares classes, but a model of .task. kind = "{kind}"'):
            check_gates(Evaluation(**{name: 0.5}), signature, kind)
    if kind == "embedding":
        check_gates(Evaluation(min_agreement=0.5), signature, kind)
    else:
        with pytest.raises(RecipeError, match="min_agreement compares classes"):
            check_gates(Evaluation(min_agreement=0.5), signature, kind)
