"""Steps of a build whose cost grows with the model: each is bounded, and says how far it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from torch import nn

from cpupack.model.weights import Settling
from cpupack.pipeline.data import _synthetic_count
from cpupack.pipeline.prepare import race_batch_size
from cpupack.runtime.signature import Signature
from cpupack.workers.steps import heard, tell
from helpers.tiny_models import loaded

GIGA = 10**9


def test_a_call_that_is_timed_takes_no_minutes(tmp_path: Path) -> None:
    throughput, latency = (loaded(tmp_path, tune={"objective": name}).recipe for name in ("throughput", "latency"))
    assert [race_batch_size(throughput, macs * GIGA) for macs in (0, 4, 15, 152)] == [8, 8, 4, 1]
    assert race_batch_size(latency, 0) == 1


def test_a_large_model_has_fewer_synthetic_samples_than_nobody_asked_for() -> None:
    assert [_synthetic_count(macs * GIGA) for macs in (0, 4, 20, 152, 2000)] == [64, 64, 50, 16, 16]


def test_random_weights_of_a_large_model_are_settled_on_fewer_samples() -> None:
    signature = Signature.plain((3, 8, 8), ())
    found = [Settling(nn.Identity(), signature, macs * GIGA).samples for macs in (0, 4, 40, 152)]
    assert found == [8, 8, 5, 2]


def test_a_worker_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.workers.steps._LOOKED_S", 0.01)
    spec = tmp_path / "spec.json"
    steps: list[tuple[int, int, str]] = []

    class Heard:
        def step(self, done: int, total: int, what: str = "") -> None:
            steps.append((done, total, what))

    tell(spec, 9, 9, "of a worker before")
    with heard(spec, Heard()):  # type: ignore[arg-type]  # it is told steps alone
        tell(spec, 3, 7, "models warmed up and rounds")
        until = time.monotonic() + 5
        while not steps and time.monotonic() < until:
            time.sleep(0.01)
    assert set(steps) == {(3, 7, "models warmed up and rounds")}
