"""The table and the page of a comparison, from made-up rounds."""

from __future__ import annotations

import dataclasses
import html.parser
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.artifacts import FloatModel, Reference, Samples
from cpupack.comparison.closeness import Closeness
from cpupack.comparison.options import CompareOptions
from cpupack.comparison.result import Comparison, result
from cpupack.comparison.run import Entry, Measured
from cpupack.comparison.subject import Subject
from cpupack.comparison.text import format_table, render_html
from cpupack.peers import COMPARED
from cpupack.peers.int8_peak import MACS
from cpupack.peers.job import Data, Job
from cpupack.recipe import LoadedRecipe
from cpupack.runtime.manifest import Manifest, read_manifest
from cpupack.runtime.plain import to_plain
from cpupack.runtime.signature import Signature
from cpupack.runtime.tune.space import Setting
from cpupack.stages.package import stage_project
from helpers.tiny_models import SHAPE, recipe
from helpers.tiny_wheel import TinyWheel


@pytest.fixture(scope="module")
def manifest(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    staged = stage_project(tiny.contents(random_weights=True), tmp_path_factory.mktemp("staged") / "project")
    return read_manifest(staged.package_dir)


@pytest.fixture
def subject(manifest: Manifest, tiny: TinyWheel, tmp_path: Path) -> Subject:
    data = np.zeros((4, *SHAPE), np.float32)
    samples = Samples(data, "arrays:<eval>.npz", tuple("abcd"))
    model = FloatModel(tiny.module, Signature.plain(SHAPE, (3,)), "random, seed 0", True, None, 10, 100, 40)
    job = Job(
        engine="",
        directory="",
        recipe_path="recipe.toml",
        recipe_text="",
        weights="weights.pt",
        input_shape=SHAPE,
        calibration=None,
        calibration_batch=1,
        evaluation=Data("evaluation.npy", 4, None),
        reference="reference.npy",
        package={},
        dynamic=False,
        cores=2,
        activation_bits=8,
    )
    loaded = LoadedRecipe(recipe=recipe(), path=tmp_path / "recipe.toml", text="")
    return Subject(
        loaded, manifest, model, Reference(samples, np.zeros((4, 3), np.float32), model.signature), None, job
    )


def entry(name: str, *, sqnr_db: float = 30.0) -> Entry:
    close = Closeness({"output": sqnr_db}, 0.75)
    return Entry(name, setting=Setting(1, 2, 8), closeness=close, settings=f"how {name} was made")


def rows(**rates: list[float]) -> list[dict[str, object]]:
    """Return throughput rounds and, from the same numbers, latencies of one call each."""
    return [
        {
            "round": number,
            "position": 0,
            "engine": name,
            "throughput_per_s": rate,
            "latency_ms": {"p50": 1000.0 / rate},
            "calls_ms": [1000.0 / rate],
        }
        for name, values in rates.items()
        for number, rate in enumerate(values)
    ]


@pytest.fixture
def compared(subject: Subject) -> Comparison:
    played = rows(cpupack=[200.0, 100.0, 400.0], eager=[50.0, 50.0, 100.0], fbgemm=[100.0, 80.0, 200.0])
    entries = {name: entry(name) for name in ("cpupack", "eager", "fbgemm")}
    entries["eager"] = entry("eager", sqnr_db=math.inf)
    entries["openvino"] = Entry("openvino", status="failed", reason="RuntimeError: <no> such layer")
    return result(
        subject,
        CompareOptions(rounds=3, input_kind="float32"),
        Measured(entries, {"throughput": [*played, *rows(peak=[1e6, 1e6, 1e6])], "latency": played}),
    )


@pytest.fixture
def mixed(compared: Comparison) -> Comparison:
    """The same rounds with ready floats for the other engines."""
    return dataclasses.replace(compared, options=dataclasses.replace(compared.options, input_kind="uint8-vs-float32"))


@pytest.fixture
def found(compared: Comparison) -> dict[str, Any]:
    return compared.to_dict()


def test_ratios_are_above_one_where_ours_is_faster_in_both_modes(found: dict[str, Any]) -> None:
    for mode in ("throughput", "latency"):
        engines = found[mode]["engines"]
        assert engines["eager"]["ratio"]["rounds"] == pytest.approx((4.0, 2.0, 4.0))
        assert engines["fbgemm"]["ratio"]["median"] == pytest.approx(2.0)  # of 2, 1.25, 2
        assert "ratio" not in engines["cpupack"]


def test_the_best_peer_is_the_one_with_the_smallest_ratio(found: dict[str, Any]) -> None:
    assert found["throughput"]["best_peer"] == "fbgemm"


def test_the_share_of_the_peak_is_of_multiply_adds_in_the_same_round(found: dict[str, Any]) -> None:
    """The tiny model has 100 multiply-adds; the yardstick did a million products of MACS in each round."""
    share = found["int8_peak"]["cpupack_share"]
    assert share["rounds"] == pytest.approx([rate * 100 / (1e6 * MACS) for rate in (200.0, 100.0, 400.0)])
    assert "peak" not in found["throughput"]["engines"]


def test_raw_rounds_are_kept_but_not_each_call(found: dict[str, Any]) -> None:
    assert len(found["throughput"]["rows"]) == 9
    assert all("calls_ms" not in row for row in found["latency"]["rows"])
    assert found["latency"]["engines"]["cpupack"]["calls"] == 3
    json.dumps(found)


def test_the_table_shows_speed_beside_closeness_and_what_failed(compared: Comparison) -> None:
    table = format_table(compared)
    (line,) = [line for line in table.splitlines() if line.startswith("fbgemm") and "batch 8" in line]
    assert "2.00 (1.25 to 2.00)" in line
    assert "30.0 dB" in line
    assert "75.0%" in line
    assert "openvino    failed: RuntimeError: <no> such layer" in table
    assert "random weights" in table
    assert "equal" in table
    assert max(map(len, table.splitlines())) <= 120


def test_the_page_is_whole_and_escapes_what_others_wrote(compared: Comparison) -> None:
    page = render_html(compared)
    assert "&lt;no&gt; such layer" in page
    assert "<no>" not in page
    assert "arrays:&lt;eval&gt;.npz" in page
    checker = _Balanced()
    checker.feed(page)
    assert checker.open == []


def test_the_table_the_page_and_the_rows_say_what_each_engine_got(mixed: Comparison) -> None:
    found, table, page = mixed.to_dict(), format_table(mixed), render_html(mixed)
    assert found["rules"]["input"] == "uint8-vs-float32"
    given = {"cpupack": "uint8", "eager": "float32", "fbgemm": "float32", "openvino": "float32"}
    assert {name: engine["input"] for name, engine in found["engines"].items()} == given
    for name in ("cpupack", "eager", "fbgemm"):
        (line,) = [line for line in table.splitlines() if line.startswith(name) and "batch 8" in line]
        assert line.split()[1] == given[name]
        assert f"<td>{COMPARED[name].title}</td><td>{given[name]}</td>" in page
    for text in (table, page):
        assert "their best case" in text


def test_the_benchmarks_table_has_a_row_for_each_engine(
    found: dict[str, Any], mixed: Comparison, tmp_path: Path
) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "compare.py"
    spec = importlib.util.spec_from_file_location("benchmarks_compare", path)
    assert spec is not None
    assert spec.loader is not None
    benchmarks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmarks)
    benchmarks.RESULTS = tmp_path
    (tmp_path / "amx").mkdir()
    (tmp_path / "amx" / "resnet18.json").write_text(json.dumps(to_plain(found)))
    (tmp_path / "amx" / "resnet18.uint8-vs-float32.json").write_text(json.dumps(to_plain(mixed.to_dict())))
    page, _, second = benchmarks.table().partition("## resnet18, amx, ready floats for the others\n")
    assert "cpupack gets uint8 pixels" in second
    assert "## resnet18, amx\n" in page
    assert "## resnet50" not in page
    (row,) = [line for line in page.splitlines() if line.startswith("| fbgemm |")]
    assert row.split(" | ")[1:4] == ["2 x 1, batch 8", "100.0", "2.00 (1.25 to 2.00)"]
    assert {line.count("|") for line in page.splitlines() if line.startswith("|")} == {10}


class _Balanced(html.parser.HTMLParser):
    """Keeps the elements that are still open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
