"""MLPerf's own LoadGen, where it is installed, on a tiny package; and the way to it where it is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import loadgen
from cpupack.runtime.errors import RunnerError

installed = pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason=f"{loadgen.DISTRIBUTION} is not installed"
)


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
    package_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scenario: str, argv: list[str]
) -> None:
    out = tmp_path / "logs"
    command = ["bench", "--json", "--loadgen", "--loadgen-out", str(out), "--scenario", scenario, "--duration", "0.5"]
    assert cli.main(package_dir, [*command, "--warmup", "0.2", "--threads", "1", *argv]) == 0
    result = json.loads(capsys.readouterr().out)
    found = result["loadgen"]["results"]
    assert (result["scenario"], result["loadgen"]["out"]) == (scenario, str(out))
    assert (out / "mlperf_log_summary.txt").read_text(encoding="utf-8").count("Result is") == 1
    assert found["num_errors"] == 0
    assert result["loadgen"]["validity"] == found["result_validity"]
    assert (found["result_validity"] == "VALID") != any("LoadGen says" in why for why in result["invalid_reasons"])
    if scenario == "offline":
        assert result["throughput_per_s"] == pytest.approx(found["result_samples_per_second"])
    else:
        assert result["latency_ms"]["p90"] == pytest.approx(found["result_90.00_percentile_latency_ns"] / 1e6)
        assert result["headline_value"] == result["latency_ms"][result["headline"]]
        # LoadGen's clock and ours agree on the same queries.
        curve = dict(map(tuple, result["percentiles"]))
        assert curve[50.0] == pytest.approx(result["latency_ms"]["p50"], rel=0.5)


@installed
def test_what_fails_in_the_model_fails_the_bench(
    array_package_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LoadGen waits for every answer: a failing model must not make it wait for ever."""
    from cpupack.runtime.engine.pool import InstancePool

    submit, seen = InstancePool.submit, []

    def failing(self: InstancePool, batch: object, instance: int | None = None) -> object:
        seen.append(batch)
        if len(seen) > 60:
            raise RunnerError("the model failed")
        return submit(self, batch, instance)  # type: ignore[arg-type]

    monkeypatch.setattr(InstancePool, "submit", failing)
    argv = [
        "bench",
        "--loadgen",
        "--loadgen-out",
        str(tmp_path),
        "--duration",
        "0.3",
        "--warmup",
        "0",
        "--batch-size",
        "1",
    ]
    assert cli.main(array_package_dir, argv) == 1
    assert "the model failed" in capsys.readouterr().err


def test_without_loadgen_the_message_says_how_to_get_it(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert cli.main(package_dir, ["bench", "--loadgen"]) == 3
    assert "pip install mlcommons-loadgen" in capsys.readouterr().err


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
