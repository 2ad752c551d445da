"""The real bench on a tiny package: every scenario, from files, with LoadGen, judged strictly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime import cli
from cpupack.runtime.bench import feeds
from cpupack.runtime.bench import run as bench_run
from cpupack.runtime.bench.options import BenchOptions
from cpupack.runtime.bench.text import format_table
from cpupack.runtime.errors import InputError
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.plan.decide import decide

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photos")
    (directory / "more").mkdir()
    generator = np.random.default_rng(0)
    for number in range(5):
        pixels = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / ("more" if number % 2 else "") / f"{number}.jpg")
    (directory / "notes.txt").write_text("no image")
    return directory


@pytest.fixture
def call(package_dir: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*argv: str) -> dict[str, Any]:
        code = cli.main(package_dir, ["bench", "--json", "--warmup", "0.1", "--duration", "0.3", *argv])
        out, err = capsys.readouterr()
        assert code == 0, err
        return dict(json.loads(out))

    return run


CONTRACT = {
    "scenario", "batch_size", "threads", "instances", "duration_s", "samples", "throughput_per_s", "latency_ms",
    "valid", "invalid_reasons", "host", "manifest",
}  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ["--scenario", "single-stream"],
        ["--scenario", "multi-stream", "--instances", "2"],
        ["--scenario", "server", "--rate", "200", "--max-latency-ms", "500", "--batch-size", "2"],
    ],
    ids=lambda argv: argv[1],
)
@pytest.mark.parametrize("files", [False, True], ids=["made up", "files"])
def test_every_scenario_has_the_contracts_fields(call: Call, photos: Path, argv: list[str], files: bool) -> None:
    result = call(*argv, *(["--from", f"images:{photos}"] if files else []))
    assert set(result) >= CONTRACT
    assert result["input"] == ("files" if files else "float32")
    assert sum(result["latency_histogram"]["counts"]) == result.get("server", {}).get("requests", result["calls"])
    assert result["percentiles"][-1] == [100.0, result["latency_ms"]["max"]]
    assert set(result["page_faults"]) == {"minor", "major", "minor_per_call", "major_per_call"}
    assert result["headline_value"] == result["latency_ms"][result["headline"]]
    low, high = result["headline_repeat95"]
    assert low <= result["headline_value"]
    # On a busy host there may be one call alone, which says nothing of a second run.
    assert result["headline_value"] <= high if high is not None else result["calls"] == 1
    assert result["cold_start_ms"]["first_call"] > 0
    text = format_table(result)
    assert f"p99 {result['latency_ms']['p99']:.2f}" in text
    assert all(reason in text for reason in result["invalid_reasons"])
    if "server" in result:
        assert ("PASS" in text) == result["server"]["passed"]


def test_from_files_goes_through_the_runner_in_every_instance(call: Call, photos: Path) -> None:
    result = call("--from", f"images:{photos}", "--batch-size", "3", "--instances", "2", "--threads", "1")
    assert result["input_data"].startswith(f"5 image files of {photos}, 0.0 MB, decoded")
    assert (result["scenario"], result["instances"], result["batch_size"]) == ("offline", 2, 3)
    assert result["throughput_per_s"] > 0


def test_every_file_takes_its_turn_in_batches_of_any_size(package_dir: Path, photos: Path) -> None:
    manifest = read_manifest(package_dir)
    files = feeds.list_images(photos, manifest)
    assert [path.name for path in files] == ["0.jpg", "2.jpg", "4.jpg", "1.jpg", "3.jpg"]
    plan = decide(manifest, threads=1, instances=1, batch_size=2)
    with feeds.open_files(package_dir, plan, photos, files, seed=1) as feed:
        for size in (1, 2, 4):
            batches = feed.batches_of(size)
            assert {len(batch) for batch in batches} == {size}
            assert {name for batch in batches for name in batch} == {str(path) for path in files}
        assert feed.sample_batch([2, 0]) == [feed.batches_of(1)[2][0], feed.batches_of(1)[0][0]]
        assert len(feed.pool.submit(feed.batches_of(4)[0], 0).result()) == 4


def test_smaller_batches_are_parts_of_the_distinct_ones(package_dir: Path) -> None:
    manifest = read_manifest(package_dir)
    plan = decide(manifest, threads=1, instances=1, batch_size=4)
    with feeds.open_made_up(package_dir, manifest, plan, seed=1) as feed:
        whole = feed.batches_of(4)
        ones = feed.batches_of(1)
        assert feed.samples == len(ones) == 4 * len(whole)
        assert len({one.tobytes() for one in ones}) == len(ones)
        picked = feed.sample_batch([5, 0])
        assert np.array_equal(picked, np.concatenate([ones[5], ones[0]]))
        assert picked.transpose(0, 2, 3, 1).flags.c_contiguous


def test_a_damaged_file_ends_the_bench_with_its_name(package_dir: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.main(package_dir, ["bench", "--from", f"images:{tmp_path}"]) == 2
    assert "broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["empty", "other", "missing", "kind"])
def test_a_directory_without_images_is_an_input_error(
    package_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    if what == "other":
        (tmp_path / "notes.txt").touch()
    source = {"missing": f"images:{tmp_path}/none", "kind": f"arrays:{tmp_path}"}.get(what, f"images:{tmp_path}")
    assert cli.main(package_dir, ["bench", "--from", source]) == 2
    out, err = capsys.readouterr()
    said = {"empty": "it is empty", "other": "it holds notes.txt", "missing": "no such directory", "kind": "images:DIR"}
    assert (out, err.count("\n")) == ("", 1)
    assert said[what] in err


def test_a_model_of_arrays_takes_no_images(array_package_dir: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="takes arrays"):
        feeds.list_images(photos, read_manifest(array_package_dir))


def test_strict_is_exit_code_3_for_a_result_that_is_not_valid(
    package_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["bench", "--duration", "0.1", "--warmup", "0.1"]
    assert cli.main(package_dir, argv) == 0
    assert "NOT valid" in capsys.readouterr().out
    assert cli.main(package_dir, [*argv, "--strict"]) == 3
    assert "too short" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("valid", "passed", "code"),
    [(True, True, 0), (True, None, 0), (True, False, 1), (False, False, 3), (False, True, 3)],
)
def test_strict_tells_a_bad_figure_from_one_that_cannot_be_believed(
    package_dir: Path, valid: bool, passed: bool | None, code: int
) -> None:
    found = bench_run.run(
        package_dir, BenchOptions(scenario="server", rate_per_s=100.0, duration_s=0.05, warmup_s=0.0, threads=1)
    )
    assert found.measurement.server is not None
    measurement = dataclasses.replace(
        found.measurement,
        judgement=dataclasses.replace(found.measurement.judgement, invalid_reasons=() if valid else ("too short",)),
        server=dataclasses.replace(found.measurement.server, passed=passed),
    )
    assert cli.strict_exit_code(dataclasses.replace(found, measurement=measurement)) == code


def test_the_peak_of_the_real_thing(call: Call) -> None:
    result = call(
        "--scenario", "server", "--find-peak", "--max-latency-ms", "200", "--batch-size", "1", "--duration", "0.1",
        "--threads", "1", "--instances", "1",
    )  # fmt: skip
    found = result["peak"]
    assert all(run["rate_per_s"] > 0 for run in found["runs"])
    assert found["max_latency_ms"] == 200.0
    assert bool(found["rate_per_s"]) == result["server"]["passed"]
    assert "peak" in format_table(result)


def test_comparing_with_an_earlier_result_shows_it(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(call("--batch-size", "2")))
    result = call("--batch-size", "2", "--compare", str(path))
    assert result["comparison"]["against"] == str(path)
    assert [each["what"] for each in result["comparison"]["differences"] if each["what"] != "clock"] == []
    assert f"compared with {path}" in format_table(result)


def test_a_page_is_written_and_a_bad_target_found_before_measuring(
    call: Call, package_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call("--html", str(tmp_path / "page.html"))
    assert f"{result['latency_ms']['p99']:.2f}" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli.main(package_dir, ["bench", "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "--html" in capsys.readouterr().err
