"""The build's facts in the wheel, and the page that ``cpupack report`` makes of them."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cpupack.artifacts import Contender, Gate, QuantizedModel, TunePlan
from cpupack.build_facts import build_facts
from cpupack.cli import cli
from cpupack.errors import UsageError
from cpupack.runtime.plain import to_plain
from cpupack.stages.package import build_wheel, finish, stage_project
from cpupack.wheel.build_page import humanized, read_report, render_report, value_text
from helpers.build_facts import LAYERS, PLAN, RECOVERY, SECTIONS
from helpers.page_checks import Page, check_page, numbers
from helpers.tiny_wheel import TinyWheel

OPTIONAL = ("layers", "recovery", "saturation", "tuning")

Make = Callable[..., Path]


@pytest.fixture
def make(tiny: TinyWheel, tmp_path: Path) -> Make:
    """Build a wheel whose build knew ``sections``; other arguments change the report."""

    def wheel(
        sections: dict[str, Any] | None = None,
        plan: TunePlan = PLAN,
        failed: dict[str, str] | None = None,
        **report: Any,
    ) -> Path:
        contents = tiny.contents()
        contents = dataclasses.replace(contents, report=dataclasses.replace(contents.report, **report))
        quantized = QuantizedModel(tiny.module, contents.target, contents.notes)
        contender = Contender(quantized, contents.scripted, contents.report, contents.golden)
        slower = dataclasses.replace(
            contender,
            scripted=dataclasses.replace(
                contents.scripted, target=dataclasses.replace(contents.target, engine="onednn")
            ),
            report=dataclasses.replace(
                contents.report,
                speedup=contents.report.speedup and 1.25,
                gates=(Gate("min_speedup", 2.0, 1.25, False),),
            ),
        )
        facts = build_facts(
            contents.model, contender, [contender, slower], failed or {}, plan,
            times_s={"load": 1.5, "calibrate": 20.25}, warnings=["only 4 samples"], sections=sections or {},
        )  # fmt: skip
        number = len(list(tmp_path.glob("dist*")))
        staged = finish(stage_project(contents, tmp_path / f"project{number}"), plan, facts)
        return build_wheel(staged, tmp_path / f"dist{number}").path

    return wheel


def page_of(wheel: Path) -> Page:
    return check_page(render_report(read_report(wheel)))


def charts_of(page: Page) -> list[str]:
    return [str(attrs["aria-label"]) for tag, attrs in page.tags if tag == "svg"]


def report(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


# --- what the wheel carries


def test_the_wheel_carries_the_facts_and_hashes_them(make: Make) -> None:
    wheel = make(SECTIONS)
    with zipfile.ZipFile(wheel) as archive:
        facts = json.loads(archive.read("tiny_int8/build.json"), parse_constant=pytest.fail)
        manifest = json.loads(archive.read("tiny_int8/manifest.json"))
    assert "build.json" not in manifest["files"]  # two builds differ in it; RECORD has its hash
    assert facts == read_report(wheel).facts
    for key, section in SECTIONS.items():
        assert facts[key] == section
    assert facts["engines"]["onednn"]["passed"] is False
    assert facts["plan"]["rows"] == to_plain(PLAN.rows)
    assert facts["stages_s"] == {"load": 1.5, "calibrate": 20.25}


def test_the_same_facts_give_the_same_bytes(make: Make) -> None:
    one, other = make(SECTIONS), make(SECTIONS)
    assert one != other
    assert one.read_bytes() == other.read_bytes()


def test_facts_that_json_has_no_word_for_become_null_or_an_error() -> None:
    found = to_plain({"a": float("inf"), "b": [float("nan"), np.float32(0.5)], "c": np.arange(2), "d": {3: (1, None)}})
    assert found == {"a": None, "b": [None, 0.5], "c": [0, 1], "d": {"3": [1, None]}}
    assert to_plain(Gate("max_drop", 0.01, float("nan"), passed=False))["measured"] is None
    with pytest.raises(TypeError, match="Path"):
        to_plain({"path": Path("x")})


def test_a_section_without_content_is_left_out(tiny: TinyWheel) -> None:
    contents = tiny.contents()
    contender = Contender(
        QuantizedModel(tiny.module, contents.target), contents.scripted, contents.report, contents.golden
    )
    facts = build_facts(
        contents.model, contender, [contender], {}, PLAN,
        times_s={}, warnings=[], sections={"recovery": None, "layers": (), "saturation": SECTIONS["saturation"]},
    )  # fmt: skip
    assert "recovery" not in facts
    assert "layers" not in facts
    assert "saturation" in facts


# --- the page


def test_every_section_shows_the_figures_of_the_facts(make: Make) -> None:
    wheel = make(SECTIONS, failed={"x86": "no kernel"})
    found = read_report(wheel)
    page = page_of(wheel)
    shown = numbers(page)
    manifest, accuracy = found.inspection.manifest, found.facts["report"]
    wanted = {
        "sqnr": f"{accuracy['sqnr_db']:.1f}",
        "agreement": f"{accuracy['agreement'] * 100:.2f}",
        "speedup": f"{accuracy['speedup']:.2f}",
        "cosine": f"{accuracy['cosine']:.5f}",
        "gate": f"{accuracy['gates'][0]['measured']:.4g}",
        "tuned throughput": f"{manifest.bench['build']['throughput_per_s']:.0f}",
        "weight sqnr": "38.2",
        "output sqnr": "31.8",
        "zero point": "117",
        "bound": "21875",
        "refused bound": "43750",
        "moved": "3.12",
        "maximum": "3.062",
        "outliers": "1.38",
        "trial": "22.5",
        "stage": "20.2",
    }
    for what, text in wanted.items():
        assert text in shown, (what, text)
    for text in (
        "[quantize] skip names it",
        "7 bits are safe",
        "it < could not & be built",
        'observer = "mse"',
        "x86 could not be built: no kernel",
        "head stays FP32: [quantize] skip",
        "only 4 samples",
        "the ranges still moved",
        "1 of 4",
        "Safe without VNNI: no 16-bit sum overflows.",
        "quantized::conv2d_relu",
        found.sha256,
        "# the recipe as it was written",
    ):
        assert text in page.text, text
    for member in found.inspection.members:
        assert member.sha256 in page.text
    for component in found.components:
        assert component["name"] in page.text
    assert page.with_id() >= {"summary", "accuracy", "operators", "size", "calibration", "provenance", *OPTIONAL}


def test_every_chart_is_there_and_says_what_it_shows(make: Make) -> None:
    found = charts_of(page_of(make(SECTIONS, top1_fp32=0.75, top1_int8=0.5, top1_int8_ci95=(0.25, 0.75))))
    wanted = {
        "Top-1 accuracy": "INT8 50.00 % [25.00, 75.00]",
        "SQNR of each layer's output": "0 31.8",
        "SQNR of each layer's weights": "0 38.2",
        "Size": "FP32 weights",
        "Speed against FP32": "onednn 1.25, a gate failed",
        "Throughput by setting": "chosen: 2 x 1, 8",
        "Throughput against latency": "4 points",
        "Accuracy against speed of every trial": "chosen: mse at 3.25, 22.5",
    }
    for title, words in wanted.items():
        (one,) = [text for text in found if text.startswith(title)]
        assert words in one, one


def test_a_section_is_there_only_with_its_facts(make: Make) -> None:
    untuned = TunePlan(tuned=False, objective="throughput", reason="built with --no-tune")
    page = page_of(make({}, plan=untuned, speedup=None))
    assert not page.with_id() & set(OPTIONAL)
    assert "Speed against FP32" not in page.text
    assert "The speed was not measured" in page.text
    assert "chosen on the host (built with --no-tune)" in page.text


def test_a_wheel_without_facts_has_a_page_from_its_manifest(tiny: TinyWheel, tmp_path: Path) -> None:
    wheel = build_wheel(stage_project(tiny.contents(random_weights=True), tmp_path / "p"), tmp_path / "dist").path
    page = page_of(wheel)
    assert "Random weights, not trained." in page.text
    assert "41.5 dB" in page.text
    assert "build.json" not in page.text


def test_infinite_sqnr_is_said_in_words(make: Make) -> None:
    infinite = float("inf")
    page = page_of(make({}, sqnr_db=infinite, gates=(Gate("min_sqnr_db", 15.0, infinite, True),)))
    assert "infinite: equal to FP32's" in page.text
    (row,) = (each for each in page.text.splitlines() if "min_sqnr_db" in each)
    assert "infinite" in row


def test_a_metric_of_ones_own_is_shown(make: Make) -> None:
    page = page_of(
        make(
            {},
            agreement=None,
            metric="python:metrics.py:iou",
            metric_fp32=0.8125,
            metric_int8=0.78125,
            metric_drop=0.03,
            metric_goal="max",
        )
    )
    assert "INT8 0.7812, FP32 0.8125" in page.text
    assert "same class as FP32" not in page.text


def test_long_tables_are_folded_on_the_screen(make: Make) -> None:
    many = [{**LAYERS[0], "name": f"layer{number}"} for number in range(90)]
    page = page_of(make({"layers": many}))
    assert "90 rows" in page.text
    assert "layer89" in page.text
    assert "the 24 lowest of 90" in page.text


def test_keys_and_values_in_words() -> None:
    assert humanized("output_sqnr_db") == "Output SQNR, dB"
    assert humanized("moved_last_quarter") == "Moved last quarter"
    assert humanized("throughput_per_s") == "Throughput/s"
    assert humanized("p99_ms") == "P99, ms"
    cases = {None: "\N{EN DASH}", True: "yes", 12345: "12,345", 0.000123456: "0.0001235", 98765.4: "98,765"}
    for value, text in cases.items():
        assert value_text(value) == text
    assert value_text({"observer": "mse", "skip": ["a", "b"]}) == "observer mse, skip a, b"


# --- the command


def test_the_page_lies_beside_the_wheel_and_its_path_is_the_last_line(make: Make) -> None:
    wheel = make(SECTIONS)
    outcome = report(wheel)
    path = wheel.parent / "tiny-int8-1.0.0.html"
    assert (outcome.exit_code, outcome.stdout) == (0, f"{path}\n")
    assert path.read_text(encoding="utf-8") == render_report(read_report(wheel))


def test_the_page_goes_where_it_is_told_to(make: Make, tmp_path: Path) -> None:
    wheel = make()
    assert report(wheel, "--html", tmp_path / "here.html").stdout == f"{tmp_path / 'here.html'}\n"
    assert report(wheel, "--out", tmp_path / "new").stdout == f"{tmp_path / 'new' / 'tiny-int8-1.0.0.html'}\n"
    assert (tmp_path / "here.html").read_bytes() == (tmp_path / "new" / "tiny-int8-1.0.0.html").read_bytes()
    both = report(wheel, "--out", tmp_path, "--html", tmp_path / "x.html")
    assert isinstance(both.exception, UsageError)


def test_json_is_one_object_and_writes_no_page_unasked(make: Make, tmp_path: Path) -> None:
    wheel = make(SECTIONS)
    found = json.loads(report(wheel, "--json").stdout, parse_constant=pytest.fail)
    assert found["build_facts"]["recovery"] == RECOVERY
    assert found["sha256"] == read_report(wheel).sha256
    assert found["integrity"]["ok"]
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]
    report(wheel, "--json", "--html", tmp_path / "asked.html")
    assert (tmp_path / "asked.html").exists()


def test_a_wheel_that_is_not_what_was_built_has_no_page(make: Make, tmp_path: Path) -> None:
    wheel = make(SECTIONS)
    changed = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"{}" if name.endswith("build.json") else old.read(name))
    outcome = report(changed)
    assert isinstance(outcome.exception, UsageError)
    assert "build.json" in outcome.exception.message
    assert not list(tmp_path.glob("*.html"))


def test_a_place_that_cannot_be_written_is_an_error(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = report(make(), "--html", tmp_path / "file" / "x.html")
    assert isinstance(outcome.exception, UsageError)
    assert "cannot write" in outcome.exception.message
