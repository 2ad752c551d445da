"""``cpupack compare`` with real engines on a tiny model: the answer, wheels, failures, interrupts."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cpupack.peers import COMPARED
from cpupack.runtime.host.cpu import machine
from helpers.once import once
from helpers.tiny_recipes import FAST, PHOTOS_EACH, Project, make_project
from helpers.waiting import PATIENCE_S, has_ended, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]

ROUNDS = 3
QUICK = ("--budget-s", "2", "--rounds", str(ROUNDS), "--round-s", "0.1", "--set", "target.x86_64.engine=fbgemm")
SMALL = ("--set", "tune.batch_sizes=[1, 4]")


def compare(project: Project, subject: str, *arguments: str) -> dict[str, Any]:
    done = project.run("compare", subject, *QUICK, *SMALL, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    assert project.left_behind() == []
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any]]:
    """The recipe against the two engines that need nothing but torch, with images from disk and a page."""
    arguments = ("--against", "eager,fbgemm", "--end-to-end", "photos", "--html", "page.html")

    def make(root: Path) -> None:
        project = make_project(root)
        project.write("compared.json", json.dumps(compare(project, "colors.toml", *arguments)))

    project = Project(once(tmp_path_factory, "compared", make))
    return project, json.loads((project.root / "compared.json").read_text())


def test_every_engine_is_measured_in_every_mode(compared: tuple[Project, dict[str, Any]]) -> None:
    _, found = compared
    assert {name: engine["status"] for name, engine in found["engines"].items()} == dict.fromkeys(
        ("cpupack", "eager", "fbgemm"), "ok"
    )
    for mode in ("throughput", "latency", "end_to_end"):
        rows = found[mode]["rows"]
        assert len(rows) == ROUNDS * 3
        assert all(row["throughput_per_s"] > 0 for row in rows)
        assert found[mode]["best_peer"] in {"eager", "fbgemm"}


def test_rounds_are_interleaved_in_alternating_order(compared: tuple[Project, dict[str, Any]]) -> None:
    _, found = compared
    played = [row["engine"] for row in found["throughput"]["rows"]]
    assert played == ["cpupack", "eager", "fbgemm", "fbgemm", "eager", "cpupack", "cpupack", "eager", "fbgemm"]


def test_closeness_is_told_beside_speed(compared: tuple[Project, dict[str, Any]]) -> None:
    _, found = compared
    eager = found["engines"]["eager"]
    assert eager["sqnr_db"] is None or eager["sqnr_db"] > 60  # the FP32 model itself
    for name in ("cpupack", "fbgemm"):
        assert 10 < found["engines"][name]["sqnr_db"] < 60
        assert found["engines"][name]["agreement"] == 1.0  # the photos' colours are far apart


def test_files_and_page_are_as_asked(compared: tuple[Project, dict[str, Any]]) -> None:
    project, found = compared
    assert found["end_to_end"]["files"] == 3 * PHOTOS_EACH
    assert "tiny-colors" in (project.root / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", pytest.param("inductor", marks=pytest.mark.night)])
def test_an_optional_engine(project: Project, name: str) -> None:
    if missing := COMPARED[name].missing():
        pytest.skip(f"not installed: {', '.join(missing)} (extra: compare)")
    found = compare(project, "colors.toml", "--against", name, "--end-to-end", "photos")
    engine = found["engines"][name]
    assert engine["status"] == "ok", engine["reason"]
    assert engine["sqnr_db"] > 10
    assert len(found["latency"]["rows"]) == len(found["end_to_end"]["rows"]) == ROUNDS * 2


def test_pixels_give_the_same_outputs_as_floats(project: Project) -> None:
    """eager normalizes as all but OpenVINO do, which has it in its graph; our package does it its own way."""
    names = [name for name in ("eager", "openvino") if not COMPARED[name].missing()]
    scaled = ("--set", "preprocess.mean=[0.4, 0.5, 0.6]", "--set", "preprocess.std=[0.2, 0.3, 0.4]")
    floats, pixels = (
        compare(project, "colors.toml", "--against", ",".join(names), *scaled, "--input", kind)["engines"]
        for kind in ("float32", "uint8")
    )
    for name in ("cpupack", *names):
        # Rounding in another order moves a value by a step here and there; a wrong mean would cost far more.
        before, after = (found[name]["sqnr_db"] or math.inf for found in (floats, pixels))
        assert min(before, after) > 60 or after == pytest.approx(before, abs=3.0), name


def test_ready_floats_go_to_the_others_alone_but_not_from_files(project: Project) -> None:
    found = compare(
        project, "colors.toml", "--against", "eager", "--input", "uint8-vs-float32", "--end-to-end", "photos"
    )
    for mode, theirs in (("throughput", "float32"), ("latency", "float32"), ("end_to_end", "uint8")):
        given = {(row["engine"], row["input"]) for row in found[mode]["rows"]}
        assert given == {("cpupack", "uint8"), ("eager", theirs)}
    assert all("input" not in row for row in found["int8_peak"]["rows"])
    assert found["engines"]["cpupack"]["sqnr_db"] > 10
    assert found["engines"]["eager"]["sqnr_db"] is None or found["engines"]["eager"]["sqnr_db"] > 60


def test_an_engine_that_fails_is_a_row_that_says_so(project: Project) -> None:
    """NNCF and PT2E quantize statically only."""
    if missing := COMPARED["inductor"].missing():
        pytest.skip(f"not installed: {', '.join(missing)} (extra: compare)")
    found = compare(project, "colors.toml", "--against", "inductor,fbgemm", "--set", "quantize.mode=dynamic")
    assert found["engines"]["inductor"]["status"] == "failed"
    assert "static" in found["engines"]["inductor"]["reason"]
    assert found["engines"]["fbgemm"]["status"] == "ok"


def test_a_wheel_is_compared_by_its_recipe(project: Project) -> None:
    built = project.run("build", "colors.toml", *FAST, "--quiet")
    assert built.returncode == 0, built.stderr
    wheel = Path(built.stdout.strip())
    moved = project.root / "moved"
    moved.mkdir()
    (project.root / wheel).rename(moved / wheel.name)

    found = compare(project, f"moved/{wheel.name}", "--against", "eager")  # the recipe's paths hold from here
    assert found["engines"]["cpupack"]["sqnr_db"] > 10
    elsewhere = subprocess.run(
        [sys.executable, "-m", "cpupack", "compare", wheel.name, "--against", "eager"],
        cwd=moved, env=project.environ(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert elsewhere.returncode == 2
    assert "--recipe" in elsewhere.stderr

    other = ("--set", "model.weights=random", "--set", "model.seed=5")
    refused = project.run("compare", f"moved/{wheel.name}", "--against", "eager", *other)
    assert refused.returncode == 2
    assert "not the one" in refused.stderr
    assert project.left_behind() == []


@contextmanager
def endless(project: Project) -> Iterator[subprocess.Popen[bytes]]:
    """Start a comparison that would play rounds for days."""
    command = [sys.executable, "-m", "cpupack", "compare", "colors.toml", "--against", "eager", *QUICK, *SMALL]
    with (project.root / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--rounds", "1000000"],
            cwd=project.root,
            env=project.environ(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def both_engines(project: Project, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Wait until both engines are there, and return their processes."""
    engines: list[psutil.Process] = []

    def there() -> bool:
        assert process.poll() is None, (project.root / "stderr").read_text()
        with suppress(psutil.NoSuchProcess):  # a search's process that ends meanwhile
            found = psutil.Process(process.pid).children()
            engines[:] = [each for each in found if "cpupack.workers.peer" in " ".join(each.cmdline())]
        return len(engines) == 2

    wait_until(there)
    return engines


def test_ctrl_c_leaves_no_process_and_no_file(project: Project) -> None:
    with endless(project) as process:
        engines = both_engines(project, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert (project.root / "stderr").read_text().splitlines()[-1] == "cpupack: interrupted"
    wait_until(lambda: all(map(has_ended, engines)))
    assert project.left_behind() == []


def test_a_killed_comparison_takes_its_stopped_engines_along(project: Project) -> None:
    """Nobody can clean up after SIGKILL, and a stopped process does not see its pipe close."""
    with endless(project) as process:
        engines = both_engines(project, process)
        process.kill()
        process.wait()
        wait_until(lambda: all(map(has_ended, engines)))
