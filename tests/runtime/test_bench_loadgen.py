"""MLPerf's own LoadGen on a tiny package, and the message where LoadGen is not installed."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import loadgen
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.errors import RunnerError

installed = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason=f"{loadgen.DISTRIBUTION} is not installed"
)


@pytest.fixture
def call_times_ms(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each call of a model takes, as seen at its pool, in order of completion."""
    submit, found = InstancePool.submit, []

    def timed(self: InstancePool, batch: Any, instance: int | None = None) -> Future[Any]:
        begin_s = time.perf_counter()
        future = submit(self, batch, instance)
        future.add_done_callback(lambda _: found.append(1000 * (time.perf_counter() - begin_s)))
        return future

    monkeypatch.setattr(InstancePool, "submit", timed)
    return found


@installed
@pytest.mark.parametrize(
    ("scenario", "argv"),
    [
        ("offline", ["--batch-size", "3"]),
        ("single-stream", []),
        ("multi-stream", ["--batch-size", "3"]),
        ("server", ["--rate", "400", "--max-latency-ms", "500", "--batch-size", "2"]),
    ],
)
def test_loadgen_drives_the_package_and_its_figures_count(
    package_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    call_times_ms: list[float],
    scenario: str,
    argv: list[str],
) -> None:
    out = tmp_path / "logs"
    command = ["bench", "--json", "--loadgen", "--loadgen-out", str(out), "--scenario", scenario, "--duration", "0.5"]
    assert cli.main(package_dir, [*command, "--warmup", "0.2", "--threads", "1", *argv]) == 0
    result = json.loads(capsys.readouterr().out)
    found = result["loadgen"]["results"]
    assert (result["scenario"], result["loadgen"]["out"]) == (scenario, str(out))
    summary = (out / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    assert summary.count("Result is") == 1
    assert found["num_errors"] == 0
    assert result["loadgen"]["validity"] == found["result_validity"]
    assert (found["result_validity"] == "VALID") != any("LoadGen says" in why for why in result["invalid_reasons"])
    if scenario == "offline":
        assert result["throughput_per_s"] == pytest.approx(found["result_samples_per_second"])
    else:
        kind = "per_query_latency" if scenario == "multi-stream" else "latency"
        assert result["latency_ms"]["p90"] == pytest.approx(found[f"result_90.00_percentile_{kind}_ns"] / 1e6)
        assert result["headline_value"] == result["latency_ms"][result["headline"]]
        if scenario != "server":  # whose summary leads with its rate
            (official_ns,) = re.findall(r"th percentile latency \(ns\) *: (\d+)", summary)
            assert result["headline_value"] == pytest.approx(int(official_ns) / 1e6)
        # A call of the model is part of its query as we time it, and that is part of the query as LoadGen times it.
        # So their minima, and their maxima, are in this order, however busy the host is.
        curve, calls = dict(map(tuple, result["percentiles"])), call_times_ms[-result["calls"] :]
        assert min(calls) <= curve[0.0] <= result["latency_ms"]["min"]
        assert max(calls) <= curve[100.0] <= result["latency_ms"]["max"]


@installed
def test_what_fails_in_the_model_fails_the_bench(
    array_package_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoadGen waits for every answer: a failing model must not make it wait for ever."""
    submit, seen = InstancePool.submit, []

    def failing(self: InstancePool, batch: Any, instance: int | None = None) -> Future[Any]:
        seen.append(batch)
        if len(seen) > 60:
            raise RunnerError("the model failed")
        return submit(self, batch, instance)

    monkeypatch.setattr(InstancePool, "submit", failing)
    argv = ["bench", "--loadgen", "--loadgen-out", str(tmp_path), "--duration", "0.3", "--warmup", "0"]
    assert cli.main(array_package_dir, [*argv, "--batch-size", "1"]) == 1
    assert "the model failed" in capsys.readouterr().err


def test_without_loadgen_the_message_says_how_to_get_it(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert cli.main(package_dir, ["bench", "--loadgen"]) == 3
    assert 'pip install "mlcommons-loadgen' in capsys.readouterr().err


@installed
def test_logs_that_cannot_be_written_are_an_input_error(
    package_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    argv = ["bench", "--loadgen", "--loadgen-out", str(tmp_path / "file"), "--duration", "0.1"]
    assert cli.main(package_dir, argv) == 2
    assert "--loadgen-out" in capsys.readouterr().err


def test_a_log_without_a_result_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mlperf_log_detail.txt"
    with pytest.raises(RunnerError, match="no readable log"):
        loadgen.read_detail(path)
    path.write_text(':::MLLOG {"key": "num_errors", "value": 0}\n')
    with pytest.raises(RunnerError, match="no result"):
        loadgen.read_detail(path)
