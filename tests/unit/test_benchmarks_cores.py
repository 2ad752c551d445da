"""The table of benchmarks/cores.py, and which CPUs and settings it measures. Nothing is measured here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cores() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "cores.py"
    spec = importlib.util.spec_from_file_location("benchmarks_cores", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_physical_core_comes_before_any_sibling(cores: ModuleType, tmp_path: Path) -> None:
    for cpu, siblings in {0: "0-1", 1: "0-1", 2: "2,4", 4: "2,4"}.items():  # the kernel says nothing about 5
        place = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{siblings}\n")
    assert cores.cores_first({5, 4, 2, 1, 0}, tmp_path) == [0, 2, 5, 1, 4]


def test_batches_are_measured_with_both_ways_to_share_the_cores(cores: ModuleType) -> None:
    def shares(count: int) -> list[tuple[int, int, int]]:
        return [(each.instances, each.threads, each.batch_size) for _, each in cores.settings(count, (32, 1))]

    assert shares(4) == [(4, 1, 32), (1, 4, 32), (1, 4, 1)]
    assert shares(1) == [(1, 1, 32), (1, 1, 1)]


def row(engine: str, rate: float, instances: int, threads: int) -> dict[str, Any]:
    share = {"instances": instances, "threads": threads, "batch_size": 32, "cores": instances * threads}
    return {"engine": engine, "throughput_per_s": rate, **share}


def test_the_table_takes_the_better_way_of_each_engine(cores: ModuleType) -> None:
    told = {
        "date": "2026-11-27T21:00:00+00:00", "cpu": "some CPU", "isa": "amx", "cpus": 4, "physical_cores": 2,
        "model": "torchvision:resnet50", "weights": "random", "input_of_the_others": "uint8",
        "versions": {"openvino": "1.0"},
    }  # fmt: skip
    rows = [
        *(row("cpupack", rate, 2, 1) for rate in (90.0, 300.0, 100.0)),  # the median counts, not the best round
        row("cpupack", 80.0, 1, 2),
        row("openvino", 40.0, 2, 1),
        row("openvino", 50.0, 1, 2),
    ]
    *_, last = cores.table([{"facts": told}, *rows]).splitlines()
    assert last == "| 32 | 2 | 100 (2 x 1) | 50 (1 x 2) | 2.00 (openvino) |"


def test_the_page_is_that_of_the_kept_rows(cores: ModuleType) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    folder = benchmarks / "results" / "amx" / "cores"
    made = cores.page([folder / "resnet50.jsonl", folder / "resnet50-again.jsonl"])
    assert (benchmarks / "cores.md").read_text(encoding="utf-8") == made
