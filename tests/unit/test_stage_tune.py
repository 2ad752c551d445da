"""The tune stage, on a staged project whose bench answers at once with made-up figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cpupack.artifacts import StagedProject, VerifyReport
from cpupack.errors import TuningError
from cpupack.progress import SilentProgress
from cpupack.recipe import Recipe
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.host.probe import HostProbe
from cpupack.stages.tune import tune
from cpupack.targets import Target

BENCH = """
import argparse, json, sys
from . import helper
parser = argparse.ArgumentParser()
parser.add_argument("command")
parser.add_argument("--json", action="store_true")
parser.add_argument("--no-start", action="store_true")
for name in ("threads", "instances", "batch-size"):
    parser.add_argument(f"--{name}", type=int)
for name in ("duration", "warmup"):
    parser.add_argument(f"--{name}", type=float)
parser.add_argument("--scenario")
args = parser.parse_args()
if args.batch_size == 32:
    sys.exit("made-up: error: out of memory")
rate = 100.0 * args.instances * min(args.batch_size, 16)
latency_ms = 1000.0 * args.batch_size * args.instances / rate
print(json.dumps({
    "scenario": args.scenario, "throughput_per_s": rate, "throughput_ci95_per_s": [rate, rate],
    "latency_ms": {"p50": latency_ms, "p99": latency_ms},
    "duration_s": args.duration, "samples": 1, "calls": 1,
    "peak_memory_bytes": 1, "cold_start_ms": {}, "valid": True, "invalid_reasons": [], "disturbed": helper.BUSY,
    "manifest": {"version": "1.0.0"},
}))
"""

REPORT = VerifyReport("made up", 8, equal_to_quantized=True, sqnr_db=40.0, cosine=1.0, agreement=1.0)


@pytest.fixture
def staged(tmp_path: Path) -> StagedProject:
    package_dir = tmp_path / "src" / "madeup"
    package_dir.mkdir(parents=True)
    for name, text in (("__init__", ""), ("helper", "BUSY = False"), ("__main__", BENCH)):
        (package_dir / f"{name}.py").write_text(text)
    return StagedProject(tmp_path, package_dir, "madeup", "made-up", "1.0.0", "any")


def recipe(**wish: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "schema": 1,
            "package": {"name": "made-up"},
            "model": {"source": "python:m.py:f", "weights": "random", "input_shape": [3, 8, 8]},
            "tune": {"batch_sizes": [4, 8, 16, 32], "budget_s": 20.0, **wish},
        }
    )


HERE = Target(machine(), "onednn", None, 8, conv_add=False, platform_tag="any")


class Recorder(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, str]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, done: int, total: int, what: str = "") -> None:
        self.steps.append((done, total, what))


def test_the_best_setting_and_every_row_come_back(staged: StagedProject) -> None:
    progress = Recorder()
    plan = tune(staged, recipe(threads=[1]), HERE, REPORT, progress)
    assert plan.tuned
    assert (plan.threads, plan.instances, plan.batch_size) == (1, HostProbe().budget().usable, 16)
    assert plan.objective == "throughput"
    assert len(progress.steps) == len(progress.notes) == len(plan.rows) > 4
    assert all(0 <= done <= total == 20 for done, total, _ in progress.steps)
    failed = [row for row in plan.rows if "error" in row]
    assert ["out of memory" in row["error"] for row in failed] == [True]
    assert any("failed" in note for note in progress.notes)


def test_latency_asks_for_one_request_at_a_time(staged: StagedProject) -> None:
    plan = tune(staged, recipe(objective="latency", threads=[1]), HERE, REPORT, SilentProgress())
    assert (plan.instances, plan.batch_size) == (1, 4)
    assert {row["scenario"] for row in plan.rows} == {"single-stream"}


def test_tuning_leaves_nothing_behind_in_the_staged_project(staged: StagedProject) -> None:
    before = sorted(staged.root.rglob("*"))
    tune(staged, recipe(threads=[1], batch_sizes=[4]), HERE, REPORT, SilentProgress())
    assert sorted(staged.root.rglob("*")) == before


def test_a_busy_host_is_a_warning(staged: StagedProject) -> None:
    quiet, busy = Recorder(), Recorder()
    tune(staged, recipe(threads=[1], batch_sizes=[4]), HERE, REPORT, quiet)
    (staged.package_dir / "helper.py").write_text("BUSY = True")
    plan = tune(staged, recipe(threads=[1], batch_sizes=[4]), HERE, REPORT, busy)
    assert quiet.warnings == []
    assert ["busy host" in text and "made-up tune" in text for text in busy.warnings] == [True]
    assert f"other work disturbed {len(plan.rows)} of {len(plan.rows)} runs" in plan.reason


def test_a_target_of_another_family_is_not_tuned_and_says_so(staged: StagedProject) -> None:
    elsewhere = dataclasses.replace(HERE, cpu="aarch64" if machine() == "x86_64" else "x86_64")
    plan = tune(staged, recipe(), elsewhere, REPORT, SilentProgress())
    assert (plan.tuned, plan.threads, plan.rows) == (False, None, ())
    assert elsewhere.cpu in plan.reason


def test_a_bound_that_nothing_meets_is_exit_code_7(staged: StagedProject) -> None:
    # Up to batch 16 the made-up machine takes 10 ms for a call of any setting.
    with pytest.raises(TuningError, match=r"max_latency_ms = 5: the lowest p99 is 10\.0 ms") as caught:
        tune(staged, recipe(max_latency_ms=5.0), HERE, REPORT, SilentProgress())
    assert caught.value.exit_code == 7
    assert "max_latency_ms" in caught.value.hint


def test_a_bench_that_cannot_run_is_exit_code_7_with_its_own_words(staged: StagedProject) -> None:
    with pytest.raises(TuningError, match="made-up: error: out of memory"):
        tune(staged, recipe(batch_sizes=[32]), HERE, REPORT, SilentProgress())
