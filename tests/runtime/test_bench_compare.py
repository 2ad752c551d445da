"""The comparison with another result, and the verdict on the host that a result comes from."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cpupack.runtime.bench import compare as bench_compare
from cpupack.runtime.bench.compare import format_comparison, read_reference
from cpupack.runtime.bench.options import BUILD
from cpupack.runtime.bench.verdict import late_client, late_generator, other_place, overload, unsettled
from cpupack.runtime.errors import InputError
from cpupack.runtime.host import frequency
from cpupack.runtime.manifest import read_manifest

RESULT: dict[str, Any] = {
    "scenario": "offline",
    "threads": 1,
    "instances": 4,
    "batch_size": 8,
    "headline": "throughput_per_s",
    "headline_value": 400.0,
    "headline_repeat95": [390.0, 410.0],
    "throughput_per_s": 400.0,
    "latency_ms": {"p50": 80.0, "p90": 85.0, "p99": 90.0},
    "input": "uint8",
    "host": {
        "cpu": "CPU A", "isa": "amx", "torch": "2.13.0", "allocator": "libc", "cores_usable": 4, "cpu_mhz": 3000.0,
    },
    "manifest": {"name": "tiny-int8", "version": "1.0.0", "engine": "onednn"},
}  # fmt: skip


def compare(result: dict[str, Any], reference: bench_compare.Reference) -> dict[str, Any]:
    return bench_compare.compare(result, reference).to_dict()


def earlier(tmp_path: Path, **changes: Any) -> bench_compare.Reference:
    """A reference read from a file: ``RESULT`` with changes, those of ``host`` merged."""
    found = copy.deepcopy(RESULT)
    for key, value in changes.items():
        found[key] = {**found[key], **value} if isinstance(value, dict) else value
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(found))
    return bench_compare._of_file(path)


def test_equal_results_agree_and_nothing_differs(tmp_path: Path) -> None:
    found = compare(RESULT, earlier(tmp_path, throughput_per_s=395.0))
    assert (found["agrees"], found["differences"]) == (True, [])
    assert found["throughput_ratio"] == pytest.approx(400 / 395)
    assert found["conclusion"].startswith("equal")


def test_a_difference_without_a_known_cause_is_said_to_have_none(tmp_path: Path) -> None:
    found = compare(RESULT, earlier(tmp_path, throughput_per_s=300.0))
    assert (found["agrees"], found["differences"]) == (False, [])
    assert "nothing that is known differs" in found["conclusion"]


def test_clock_and_cores_explain_what_they_can(tmp_path: Path) -> None:
    """Half the cores at two thirds of the clock: a third of the throughput is expected."""
    there = earlier(
        tmp_path, instances=2, throughput_per_s=135.0, host={"cores_usable": 2, "cpu_mhz": 2000.0, "cpu": "CPU A"}
    )
    found = compare(RESULT, there)
    factors = {each["what"]: each["factor"] for each in found["differences"]}
    assert factors == {"cores": pytest.approx(2.0), "setting": None, "clock": pytest.approx(1.5)}
    assert found["expected_ratio"] == pytest.approx(3.0)
    assert "cores at work and clock explain it (expected 3.00)" in found["conclusion"]
    assert found["agrees"] is None  # another setting


def test_every_difference_is_named_with_both_sides(tmp_path: Path) -> None:
    there = earlier(
        tmp_path,
        scenario="single-stream",
        batch_size=1,
        input="files",
        throughput_per_s=100.0,
        host={"cpu": "CPU B", "isa": "avx2", "torch": "2.12.0", "allocator": "jemalloc"},
        manifest={"version": "0.9.0", "engine": "fbgemm"},
    )
    found = compare(RESULT, there)
    assert [each["what"] for each in found["differences"]] == [
        "package", "scenario", "input", "setting", "cpu", "isa", "torch", "engine", "allocator",
    ]  # fmt: skip
    assert "ISA: amx here, avx2 there" in format_comparison(found)
    assert (found["latency_ratio"], found["agrees"], found["expected_ratio"]) == (None, None, 1.0)


def test_the_terminal_shows_the_figures_of_the_json(tmp_path: Path) -> None:
    found = compare(RESULT, earlier(tmp_path, throughput_per_s=200.0, latency_ms={"p50": 40.0}))
    text = format_comparison(found)
    assert "200.0 samples/s there; here 2.00 times that" in text
    assert "p50 40.00 ms (2.00 times)" in text
    assert found["conclusion"] in text


def test_the_build_is_compared_at_the_same_setting_where_it_was_measured(package_dir: Path, tmp_path: Path) -> None:
    rows = [
        {
            **{key: RESULT[key] for key in ("scenario", "threads", "latency_ms")},
            "batch_size": 8,
            "cpu_mhz": {"begin": 1.0, "end": 1500.0},
            **row,
        }
        for row in (
            {"instances": 2, "throughput_per_s": 220.0},
            {"instances": 4, "throughput_per_s": 380.0},
            {"instances": 4, "throughput_per_s": 390.0},
            {"instances": 4, "throughput_per_s": 395.0},
            {"instances": 1, "error": "killed"},
        )
    ]
    (tmp_path / "build.json").write_text(json.dumps({"plan": {"rows": rows}}))
    manifest = dataclasses.replace(read_manifest(package_dir), bench={"build": rows[0]})
    reference = read_reference(BUILD, tmp_path, manifest)
    found = compare(RESULT, reference)
    assert found["against"] == "the build"
    assert found["reference"]["throughput_per_s"] == 390.0  # the median of the runs of this setting
    assert {each["what"]: each["factor"] for each in found["differences"]}["clock"] == pytest.approx(2.0)
    elsewhere = compare({**RESULT, "instances": 3}, reference)
    assert elsewhere["reference"]["throughput_per_s"] == 220.0  # the build's choice


def test_a_package_without_numbers_says_why(package_dir: Path) -> None:
    with pytest.raises(InputError, match=r"without tuning \(not tuned\)"):
        read_reference(BUILD, package_dir, read_manifest(package_dir))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[]", "not a result of bench"),
        ('{"scenario": "x"}', "throughput_per_s"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, package_dir: Path, text: str | None, said: str) -> None:
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_reference(str(path), package_dir, read_manifest(package_dir))


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ({}, None),
        ({"isa": "avx2"}, "other ISA than the build: avx2 here, amx there"),
        ({"torch": "2.12.1+cpu"}, "other torch than the build: 2.12.1+cpu here, 2.13.0+cu126 there"),
        ({"governor": "powersave"}, "governor: the CPU frequency governor is 'powersave'"),
        ({"governor": None, "isa": None}, None),
    ],
)
def test_another_place_than_the_builds_is_a_reason(here: dict[str, Any], said: str | None) -> None:
    host = {"isa": "amx", "torch": "2.13.0", "governor": "performance", **here}
    found = other_place(host, {"isa": "amx"}, "2.13.0+cu126")
    assert [reason[: len(said or "")] for reason in found] == ([said] if said else [])


def test_servers_reasons() -> None:
    assert overload(100.0, 96.0, 0) == late_generator(0.1, 1.0) == unsettled(True, 5.0) == []
    assert "7 requests were never served" in overload(100.0, 99.0, 7)[0]
    assert overload(100.0, 90.0, 0)[0].startswith("overloaded: 90.0 of 100.0")
    assert late_generator(0.3, 1.0)[0].startswith("late load generator")
    assert late_client(1.0, 10.0) == []
    assert late_client(1.1, 10.0)[0].startswith(
        "late client: requests were sent up to 1.10 ms after their time (p99), and the latency at p99 is 10.00 ms"
    )
    assert unsettled(False, 5.0)[0].startswith("not warm")


def test_the_clock_is_read_where_the_kernel_tells_it(tmp_path: Path) -> None:
    assert frequency.cpu_mhz(tmp_path, {0, 1}) is None
    (tmp_path / "proc").mkdir()
    blocks = [f"processor\t: {cpu}\ncpu MHz\t\t: {mhz}\n" for cpu, mhz in ((0, 2000.0), (1, 3000.0), (2, 9000.0))]
    (tmp_path / "proc/cpuinfo").write_text("\n".join(blocks))
    assert frequency.cpu_mhz(tmp_path, {0, 1}) == 2500.0
    for cpu, khz in ((0, 1_000_000), (1, 1_500_000)):
        directory = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        directory.mkdir(parents=True)
        (directory / "scaling_cur_freq").write_text(f"{khz}\n")
    assert frequency.cpu_mhz(tmp_path, {0, 1}) == 1250.0  # cpufreq knows better than cpuinfo
