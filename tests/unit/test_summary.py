"""The end of a build in words and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from cpupack.artifacts import BuiltWheel, Contender, Gate, QuantizedModel, TunePlan, VerifyReport
from cpupack.build_facts import build_facts
from cpupack.pipeline import BuildResult
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.summary import summary_dict, summary_text, times_text
from helpers.tiny_wheel import TinyWheel

TIMES_S = {
    "load": 2.04,
    "fuse": 0.3,
    "read data": 3.11,
    "calibrate": 31.26,
    "run FP32": 4.5,
    "quantize and verify (x86_64)": 41.0,
    "time against FP32 (x86_64)": 12.0,
    "stage (x86_64)": 0.4,
    "tune (x86_64)": 60.2,
    "package": 1.0,
}
UNTUNED = TunePlan(tuned=False, objective="throughput", reason="built with --no-tune")


def _row(batch_size: int, throughput: float) -> dict[str, Any]:
    return {
        "threads": 1,
        "instances": 2,
        "batch_size": batch_size,
        "throughput_per_s": throughput,
        "latency_ms": {"p50": 20.0, "p99": 27.25},
    }


TUNED = TunePlan(
    tuned=True,
    objective="throughput",
    threads=1,
    instances=2,
    batch_size=8,
    rows=(
        _row(4, 900.0),
        _row(8, 1234.4),
        {"threads": 1, "instances": 2, "batch_size": 8, "error": "out of memory"},
    ),
)


class Finished:
    """A finished build; ``result`` takes what differs."""

    def __init__(self, tiny: TinyWheel, directory: Path) -> None:
        self.tiny, self.directory = tiny, directory

    def result(self, *, cpu: str = "x86_64", random_weights: bool = False, **changes: Any) -> BuildResult:
        contents = self.tiny.contents(cpu=cpu, random_weights=random_weights)
        report = dataclasses.replace(contents.report, speed_rows=({"batch_size": 8, "threads": 1},))
        report = dataclasses.replace(report, **{k: v for k, v in changes.items() if k in _REPORT_FIELDS})
        quantized = QuantizedModel(contents.model.module, contents.target, changes.get("notes", ()))
        contender = Contender(quantized, contents.scripted, report, contents.golden)
        name = f"tiny_int8-1.0.0-py3-none-{contents.target.platform_tag}.whl"
        wheel = BuiltWheel(self.directory / name, "ab" * 32, 71_234, "tiny-int8", "1.0.0", contents.target.platform_tag)
        raced = (contender, *(_other(contender, *each) for each in changes.get("others", ())))
        failed, plan = changes.get("failed", {}), changes.get("plan", UNTUNED)
        facts = build_facts(
            contents.model, contender, raced, failed, plan, times_s=TIMES_S, warnings=["early"], sections={}
        )
        return BuildResult(
            wheel, contents.model, contender, raced, failed, plan, facts=facts, warnings=("a warning",), times_s=TIMES_S
        )


_REPORT_FIELDS = {field.name for field in dataclasses.fields(VerifyReport)}


def _other(chosen: Contender, engine: str, speedup: float | None, passed: bool) -> Contender:
    target = dataclasses.replace(chosen.scripted.target, engine=engine)
    gates = () if passed else (Gate("min_sqnr_db", 15.0, 3.0, passed=False),)
    return dataclasses.replace(
        chosen,
        scripted=dataclasses.replace(chosen.scripted, target=target),
        report=dataclasses.replace(chosen.report, speedup=speedup, gates=gates),
    )


@pytest.fixture
def finished(tiny: TinyWheel, tmp_path: Path) -> Finished:
    return Finished(tiny, tmp_path)


def rows(result: BuildResult) -> dict[str, str]:
    """Return the summary's rows by label, continued lines joined."""
    found: dict[str, str] = {}
    label = ""
    for line in summary_text(result).plain.splitlines()[2:]:
        label = line[2:13].strip() or label
        found[label] = f"{found[label]} {line[13:]}" if label in found else line[13:]
    return found


def test_rows_of_a_plain_build(finished: Finished) -> None:
    result = finished.result()
    assert summary_text(result).plain.splitlines()[1] == f"{result.wheel.path.name}  71.2 kB"
    found = rows(result)
    assert found["weights"] == "weights.pt"
    assert found["operators"] == "2 INT8, 1 FP32"
    assert found["engine"] == "fbgemm"
    assert found["outputs"] == "SQNR 41.5 dB, cosine 0.9990, same top-1 as FP32 93.8% on 16 samples of synthetic"
    assert found["speed"] == "2.50x FP32 torch at batch 8, 1 thread, interleaved"
    assert found["gate"] == "min_sqnr_db = 15 holds: 41.5"
    assert found["setting"] == "not tuned: built with --no-tune"
    assert "top-1" not in found


def test_no_line_is_longer_than_a_terminal(finished: Finished) -> None:
    result = finished.result(
        notes=tuple(f"features.{n}.block.expand (Conv2d) stayed FP32: listed in skip" for n in range(30)),
        others=(("onednn", 1.5, True), ("x86", 1.25, False)),
        failed={"qnnpack": "no rule"},
        data="images:" + "/a/long/path" * 4,
        plan=TUNED,
    )
    lines = [*summary_text(result).plain.splitlines()[2:], *times_text(TIMES_S).plain.splitlines()]
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []


def test_layers_that_stayed_fp32_are_named_but_not_without_end(finished: Finished) -> None:
    notes = tuple(f"layer{n} (Linear) stayed FP32: listed in skip" for n in range(8))
    operators = rows(finished.result(notes=notes))["operators"]
    assert "layer4 " in operators
    assert "layer5 " not in operators
    assert operators.endswith("and 3 more, see `cpupack inspect --layers`")


def test_random_weights_stand_out(finished: Finished) -> None:
    text = summary_text(finished.result(random_weights=True))
    assert "RANDOM, not trained: random, seed 0" in text.plain
    start = text.plain.index("RANDOM")
    assert any(span.start <= start < span.end and "red" in str(span.style) for span in text.spans)


def test_other_engines_are_compared(finished: Finished) -> None:
    result = finished.result(others=(("onednn", 1.5, True), ("x86", 1.25, False)), failed={"qnnpack": "no rule"})
    assert rows(result)["engine"] == "fbgemm (others: onednn 1.50x, x86 1.25x but a gate failed, qnnpack cannot run it)"


def test_accuracy_with_its_intervals(finished: Finished) -> None:
    shares = {"top1_fp32": 0.98, "top1_int8": 0.975, "top5_fp32": 1.0, "top5_int8": 0.999}
    found = rows(finished.result(labelled_samples=360, **shares))
    assert found["top-1"] == "FP32 98.00%, INT8 97.50% drop 0.50 points on 360 labelled samples (95 % intervals)"
    assert found["top-5"] == "FP32 100.00%, INT8 99.90%"
    intervals = {"top1_fp32_ci95": (0.96, 0.99), "top1_int8_ci95": (0.95, 0.985), "top1_drop_ci95": (-0.005, 0.015)}
    sure = rows(finished.result(labelled_samples=360, **shares, **intervals))
    assert sure["top-1"].startswith(
        "FP32 98.00% [96.00, 99.00], INT8 97.50% [95.00, 98.50] drop 0.50 points [-0.50, 1.50]"
    )
    equal = rows(finished.result(labelled_samples=360, **{**shares, "top1_int8": 0.98}))
    assert "INT8 98.00% no drop on 360" in equal["top-1"]


def test_a_gate_that_is_not_proven_says_so(finished: Finished) -> None:
    gate = Gate("max_drop", 0.001, 0.0, passed=True, ci95=(-0.037, 0.037))
    found = rows(finished.result(gates=(gate,)))
    assert found["gate"] == "max_drop = 0.001 holds: 0 [-0.037, 0.037], NOT PROVEN by this many samples"
    proven = dataclasses.replace(gate, bound=0.05, proven=True)
    assert rows(finished.result(gates=(proven,)))["gate"] == "max_drop = 0.05 holds: 0 [-0.037, 0.037]"


def test_a_users_metric_and_outputs_without_classes(finished: Finished) -> None:
    found = rows(finished.result(agreement=None, metric="python:m.py:rmse", metric_fp32=0.5, metric_int8=0.5123456))
    assert found["metric"] == "FP32 0.5, INT8 0.512346 (python:m.py:rmse)"
    assert "same top-1" not in found["outputs"]


def test_slower_than_fp32_is_said(finished: Finished) -> None:
    assert rows(finished.result(speedup=0.58))["speed"].endswith(": SLOWER")


def test_a_target_this_host_cannot_time(finished: Finished) -> None:
    found = rows(finished.result(cpu="aarch64", speedup=None))
    assert found["speed"] == "not measured: the build host is no aarch64 CPU"
    assert found["runs on"] == "aarch64 with neon or better, 8-bit activations"


def test_a_detector_of_two_stages_is_not_timed_on_its_own_cpu_either(finished: Finished) -> None:
    result = finished.result(speedup=None)
    task = TaskSpec.of("detection", decoder="faster_rcnn")
    found = rows(dataclasses.replace(result, model=dataclasses.replace(result.model, task=task)))
    assert "the step between the two stages of the detector is Python in FP32" in found["speed"]


def test_equal_outputs(finished: Finished) -> None:
    assert rows(finished.result(sqnr_db=math.inf))["outputs"].startswith("equal to FP32, cosine")


def test_the_tuned_setting(finished: Finished) -> None:
    found = rows(finished.result(plan=TUNED))["setting"]
    assert found == "2 instances x 1 thread, batch 8: 1,234 samples/s, p99 27.2 ms"


def test_times_are_summed_and_listed() -> None:
    total, *stages = times_text(TIMES_S).plain.splitlines()
    assert total.split() == ["time", f"{round(sum(TIMES_S.values()))}", "s"]
    listed = " ".join(line.strip() for line in stages)
    assert listed == ", ".join(f"{title} {seconds:.1f}" for title, seconds in TIMES_S.items())


def test_json_has_no_infinities(finished: Finished) -> None:
    rows_with_nan = ({**TUNED.rows[0], "latency_ms": {"p99": math.nan}},)
    result = finished.result(
        sqnr_db=math.inf, plan=dataclasses.replace(TUNED, rows=rows_with_nan), failed={"x86": "no rule"}
    )
    facts = summary_dict(result)
    found = json.loads(json.dumps(facts, allow_nan=False))
    assert found["report"]["sqnr_db"] is None
    assert found["plan"]["rows"][0]["latency_ms"]["p99"] is None
    assert found["engines"]["x86"] == {"failed": "no rule"}
    assert found["engines"]["fbgemm"]["passed"]
    assert found["warnings"] == ["a warning"]
    assert found["stages_s"]["calibrate"] == 31.26
    assert found["version"] == "1.0.0"
