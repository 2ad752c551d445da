"""The page of a bench is one file, and its figures are those of the JSON and of the terminal."""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import options
from cpupack.runtime.bench import run as bench_run
from cpupack.runtime.bench.text import format_table
from cpupack.runtime.errors import InputError
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.pages import bench_page as bench_pages
from cpupack.runtime.pages.bench_charts import settings_of
from cpupack.runtime.pages.bench_page import Tuning, bench_page, find_tuning
from cpupack.runtime.plan import table as plan_table
from helpers.page_checks import Page, check_page, numbers
from helpers.tiny_package import keep_manifest

ROWS = [
    {
        "threads": 1,
        "instances": 2,
        "batch_size": 1,
        "throughput_per_s": 150.0,
        "latency_ms": {"p50": 12.0, "p99": 15.0},
    },
    {
        "threads": 1,
        "instances": 2,
        "batch_size": 8,
        "throughput_per_s": 390.0,
        "latency_ms": {"p50": 40.0, "p99": 44.0},
    },
    {
        "threads": 1,
        "instances": 2,
        "batch_size": 8,
        "throughput_per_s": 410.0,
        "latency_ms": {"p50": 38.0, "p99": 42.0},
    },
    {
        "threads": 1,
        "instances": 2,
        "batch_size": 8,
        "throughput_per_s": 402.5,
        "latency_ms": {"p50": 39.0, "p99": 43.0},
    },
    {"threads": 2, "instances": 1, "batch_size": 8, "error": "killed, most likely because memory ran out"},
]


def run(package_dir: Path, *argv: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    common = ["--threads", "1", "--instances", "1", "--duration", "0.3", "--warmup", "0.2"]
    result = bench_run.run(package_dir, options.from_arguments(parser.parse_args([*common, *argv])))
    return json.loads(json.dumps(result.to_dict()))


@pytest.fixture(scope="module")
def measured(package_dir: Path) -> dict[str, Any]:
    return run(package_dir, "--batch-size", "2")


@pytest.fixture(scope="module")
def served(package_dir: Path) -> dict[str, Any]:
    return run(package_dir, "--scenario", "server", "--rate", "200", "--max-latency-ms", "500", "--batch-size", "2")


def page_of(result: dict[str, Any], package_dir: Path, tuning: Tuning | None = None) -> Page:
    return check_page(bench_page(result, read_manifest(package_dir), tuning))


def fixed(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}"


def test_the_figures_are_those_of_the_json(measured: dict[str, Any], package_dir: Path) -> None:
    page = page_of(measured, package_dir)
    shown = numbers(page)
    wanted = {name: fixed(value) for name, value in measured["latency_ms"].items()}
    wanted |= {"throughput": fixed(measured["throughput_per_s"], 1), "samples": str(measured["samples"])}
    wanted |= {f"ci {end}": fixed(measured["throughput_ci95_per_s"][end], 1) for end in (0, 1)}
    wanted |= {f"window {n}": fixed(rate, 1) for n, rate in enumerate(measured["windows_per_s"])}
    wanted |= {key: fixed(ms / 1000) for key, ms in measured["cold_start_ms"].items()}
    wanted |= {"calls": str(measured["calls"]), "seed": str(measured["seed"])}
    for what, text in wanted.items():
        assert text in shown, (what, text)
    for reason in measured["plan"].values():
        assert " ".join(reason.split()) in page.text
    assert measured["host"]["cpu"] in page.text


def test_what_the_terminal_says_is_on_the_page(measured: dict[str, Any], package_dir: Path) -> None:
    page = page_of(measured, package_dir)
    assert " ".join(format_table(measured).split()) in page.text


def test_the_histogram_has_every_call(measured: dict[str, Any], package_dir: Path) -> None:
    page = page_of(measured, package_dir)
    assert f"{sum(measured['latency_histogram']['counts']):,} calls" in page.text
    assert {"latency", "throughput", "conditions"} <= page.with_id()
    assert sum(tag == "svg" for tag, _ in page.tags) == 3, "histogram, percentiles, windows"


def test_a_result_without_raw_distribution_still_has_its_percentiles(
    measured: dict[str, Any], package_dir: Path
) -> None:
    less = {key: value for key, value in measured.items() if key not in {"latency_histogram", "percentiles"}}
    page = page_of(less, package_dir)
    assert "Latency histogram" not in page.text
    assert "Latency by percentile" in page.text


def test_the_verdict_comes_with_every_reason(measured: dict[str, Any], package_dir: Path) -> None:
    reasons = ["busy host: 1 < 2 & others", "too short: <b>0.3 s</b>"]
    page = page_of({**measured, "valid": False, "invalid_reasons": reasons}, package_dir)
    assert "Not valid." in page.text
    for reason in reasons:
        assert reason in page.text, "as it is, not as markup"
    good = page_of({**measured, "valid": True, "invalid_reasons": []}, package_dir)
    assert "Not valid" not in good.text
    assert "Valid." in good.text


def test_names_are_text_whatever_they_hold(measured: dict[str, Any], package_dir: Path) -> None:
    hostile = copy.deepcopy(measured)
    hostile["host"]["cpu"] = '<script>alert(1)</script>" onload="x'
    assert '<script>alert(1)</script>" onload="x' in page_of(hostile, package_dir).text


def test_random_weights_are_said(measured: dict[str, Any], package_dir: Path) -> None:
    random = {**measured, "manifest": {**measured["manifest"], "random_weights": True}}
    assert "Random weights" in page_of(random, package_dir).text


def test_a_server_run_shows_load_waiting_and_bound(served: dict[str, Any], package_dir: Path) -> None:
    page = page_of(served, package_dir)
    shown, facts = numbers(page), served["server"]
    assert ("PASS:" if facts["passed"] else "FAIL:") in page.text
    assert "p99 latency of a request" in page.text
    assert f"{facts['requests']:,} requests" in page.text
    for part in ("waiting_ms", "service_ms"):
        for value in facts[part].values():
            assert fixed(value) in shown
    failed = {**served, "server": {**facts, "passed": False, "over_bound": 0.25}}
    assert "FAIL: 25.00 % of the requests took more than 500 ms" in page_of(failed, package_dir).text


def test_a_search_for_the_peak_shows_every_rate(served: dict[str, Any], package_dir: Path) -> None:
    runs = [
        {
            "rate_per_s": 100.0 * n,
            "p99_ms": 3.0 * n**3,
            "over_bound": 0.0,
            "requests": 9,
            "passed": n < 3,
            "valid": True,
        }
        for n in range(1, 5)
    ]
    peak = {"rate_per_s": 200.0, "fails_at_per_s": 300.0, "tolerance": 0.05, "max_latency_ms": 50.0, "runs": runs}
    page = page_of({**served, "peak": peak}, package_dir)
    assert "200.0 requests/s pass, 300.0/s fail." in page.text
    for each in runs:
        assert f"{each['rate_per_s']:,.1f} requests/s: p99 {each['p99_ms']:,.2f} ms" in page.text
    none = {**peak, "rate_per_s": 0.0, "fails_at_per_s": 100.0, "runs": [{**each, "passed": False} for each in runs]}
    assert "No rate that was tried passes." in page_of({**served, "peak": none}, package_dir).text


def test_a_comparison_is_explained(measured: dict[str, Any], package_dir: Path, tmp_path: Path) -> None:
    earlier = {**measured, "throughput_per_s": measured["throughput_per_s"] / 2}
    earlier["host"] = {**measured["host"], "allocator": "tcmalloc"}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    result = run(package_dir, "--batch-size", "2", "--compare", str(tmp_path / "earlier.json"))
    page = page_of(result, package_dir)
    assert "comparison" in page.with_id()
    for difference in result["comparison"]["differences"]:
        assert " ".join(difference["text"].split()) in page.text
    assert fixed(result["comparison"]["throughput_ratio"]) in numbers(page)


# --- tuning


def test_a_setting_is_the_median_of_its_runs() -> None:
    one, several, failed = settings_of(ROWS)
    assert (one.throughput_per_s, one.runs) == (150.0, 1)
    assert (several.throughput_per_s, several.p50_ms, several.p99_ms, several.runs) == (402.5, 39.0, 43.0, 3)
    assert failed.error == "killed, most likely because memory ran out"


def test_the_settings_measured_are_drawn(measured: dict[str, Any], package_dir: Path) -> None:
    page = page_of(measured, package_dir, Tuning(ROWS, "on a made-up host", (1, 2, 8)))
    assert "Measured on a made-up host" in page.text
    assert "2 x 1, batch 8: 402.5 samples/s, p50 39.00 ms, p99 43.00 ms, median of 3 runs" in page.text
    assert "failed" in page.text
    assert "chosen: 2 x 1, 8" in " ".join(str(attrs.get("aria-label")) for tag, attrs in page.tags if tag == "svg")


def test_a_search_in_which_nothing_succeeded_draws_nothing(measured: dict[str, Any], package_dir: Path) -> None:
    assert "tuning" not in page_of(measured, package_dir, Tuning(ROWS[-1:], "here", None)).with_id()


def write_host_table(package_dir: Path, **changes: Any) -> None:
    manifest = read_manifest(package_dir)
    table = {
        "fingerprint": host_probe.fingerprint(),
        "cores_usable": 2,
        "model": plan_table.model_digest(manifest),
        "objective": "throughput",
        "max_latency_ms": None,
        "threads": 1,
        "instances": 2,
        "batch_size": 8,
        "reason": "made up",
        "searched_s": 1.0,
        "rows": ROWS,
    } | changes
    plan_table.write_table(plan_table.table_path(manifest), plan_table.TunedTable(**table))


def test_this_hosts_table_comes_before_the_builds(edited: Callable[..., Path]) -> None:
    package = edited(build={"host": {"cpu": "Build CPU"}})
    manifest = read_manifest(package)
    keep_manifest(package, manifest, rows=ROWS[:1])
    found = find_tuning(package, manifest)
    assert found is not None
    assert "at the build on Build CPU" in found.source
    assert (len(found.rows), found.chosen) == (1, None)

    write_host_table(package)
    found = find_tuning(package, manifest)
    assert found is not None
    assert "on this host" in found.source
    assert (len(found.rows), found.chosen) == (5, (1, 2, 8))


@pytest.mark.parametrize("changes", [{"fingerprint": {"cpu": "another"}}, {"model": "of another build"}])
def test_a_table_of_another_host_or_build_is_not_shown(package_dir: Path, changes: dict[str, Any]) -> None:
    write_host_table(package_dir, **changes)
    assert find_tuning(package_dir, read_manifest(package_dir)) is None


# --- the command


def test_the_command_writes_the_page_and_the_same_json(
    package_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "bench.html"
    argv = ["bench", "--json", "--html", str(target), "--duration", "0.2", "--warmup", "0.1", "--batch-size", "2"]
    assert cli.main(package_dir, argv, prog="tiny-int8") == 0
    result = json.loads(capfd.readouterr().out)
    page = check_page(target.read_text(encoding="utf-8"))
    assert fixed(result["throughput_per_s"], 1) in numbers(page)
    assert fixed(result["latency_ms"]["p99_9"]) in numbers(page)
    assert all(math.isfinite(value) for value in result["latency_ms"].values())


def test_a_page_that_cannot_be_written_is_said_before_measuring(
    package_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "_measure", lambda *_: pytest.fail("measured"))
    assert cli.main(package_dir, ["bench", "--html", str(tmp_path / "none" / "x.html")], prog="tiny-int8") == 2
    assert "--html" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checking_a_target_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    bench_pages.check_target(tmp_path / "new.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.html").write_text("kept")
    bench_pages.check_target(tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text() == "kept"
    with pytest.raises(InputError, match="--html"):
        bench_pages.check_target(tmp_path)
