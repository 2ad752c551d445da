"""The start of a native wheel: what it imports, what it checks while it reads the program, what it leaves for later."""

from __future__ import annotations

import _thread
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cpupack.runtime import cli
from cpupack.runtime.bench import text
from cpupack.runtime.bench.start import measure_start
from cpupack.runtime.engine.program import read_program
from cpupack.runtime.errors import HostError, IntegrityError, RunnerError
from cpupack.runtime.files import MODEL_NAME
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.plan.decide import decide
from cpupack.runtime.runner import Runner
from cpupack.stages.package import stage_project
from helpers.lowered import needs_kernels
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.threads import started_threads
from helpers.tiny_wheel import TinyWheel
from helpers.waiting import wait_until

pytestmark = needs_kernels

SLOW_TO_IMPORT = {
    "PIL", "argparse", "asyncio", "email", "http", "importlib.metadata", "jinja2", "numpy.ma", "numpy.random", "socket",
    "ssl", "subprocess", "torch", "unittest",
}  # fmt: skip
"""What takes milliseconds and is not needed to answer a caller who has pixels."""


@pytest.fixture(scope="session")
def native_dir(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the native engine: read it, never write to it."""

    def make(root: Path) -> None:
        stage_project(native_contents(tiny, root), root / "project")

    return once(tmp_path_factory, "native-package", make) / "project/src/tiny_int8"


@pytest.fixture
def copied(native_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native_dir, tmp_path / "tiny_int8"))


def test_the_first_prediction_imports_little(native_dir: Path) -> None:
    code = (
        "import sys, numpy; before = set(sys.modules)\n"
        "from tiny_int8 import Runner\n"
        "with Runner() as runner:\n"
        "    runner(numpy.zeros((1, 8, 8, 3), numpy.uint8))\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(native_dir.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    imported = set(done.stdout.split())
    assert "tiny_int8._runtime.runner" in imported, done.stderr
    assert imported & SLOW_TO_IMPORT == set()


@pytest.mark.parametrize(
    ("argv", "needed", "unneeded"),
    [
        (["--version"], "manifest", {"runner", "bench", "tune", "capacity", "serve", "export", "info"}),
        (["verify"], "runner", {"bench", "tune", "capacity", "serve", "export", "info"}),
        (["info"], "info", {"runner", "bench", "tune", "capacity", "serve", "export"}),
        (["bench", "--help"], "bench", {"runner", "tune", "capacity", "serve", "export", "info"}),
    ],
)
def test_a_command_imports_what_it_needs(native_dir: Path, argv: list[str], needed: str, unneeded: set[str]) -> None:
    code = (
        "import sys\n"
        "from tiny_int8._entry import main\n"
        "code = main()\n"
        "rooms = {name.split('.')[2] for name in sys.modules if name.startswith('tiny_int8._runtime.')}\n"
        "sys.stderr.write(' '.join(rooms))\n"
        "sys.exit(code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(native_dir.parent)}
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rooms = set(done.stderr.split())
    assert needed in rooms
    assert rooms & unneeded == set()


def test_a_changed_program_is_refused_although_it_is_hashed_while_it_is_read(copied: Path) -> None:
    before = started_threads()
    model = copied / MODEL_NAME
    contents = bytearray(model.read_bytes())
    contents[len(contents) // 2] ^= 1
    model.write_bytes(contents)
    with pytest.raises(IntegrityError, match=r"model\.pt is not the file that was built"):
        Runner(copied)
    wait_until(lambda: started_threads() == before)
    model.write_bytes(contents[:-1])
    with pytest.raises(IntegrityError, match=r"model\.pt is not the file that was built"):
        Runner(copied)


def test_a_changed_library_is_refused_before_it_is_loaded(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library,) = (copied / "_runtime").rglob("*.so")
    library.write_bytes(library.read_bytes()[:-1] + b"x")

    def refuse(*_: object) -> None:
        raise AssertionError("the file of the model was read before the hashes of the rest were compared")

    monkeypatch.setattr("cpupack.runtime.runner.InstancePool", refuse)
    with pytest.raises(IntegrityError, match="is not the file that was built"):
        Runner(copied)


def test_what_a_damaged_file_leads_to_is_told_as_damage(copied: Path) -> None:
    model = copied / MODEL_NAME
    contents = model.read_bytes()
    at = contents.index(read_program(model).memory.tobytes()[:64])  # its header: no program of this format
    model.write_bytes(contents[:at] + bytes(8) + contents[at + 8 :])
    with pytest.raises(IntegrityError, match="holds no program"):
        Runner(copied, check=False)
    with pytest.raises(IntegrityError, match=r"model\.pt is not the file that was built"):
        Runner(copied)


def test_a_start_needs_no_thread_beside_those_of_the_plan(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing took one more. So ``info`` started as many as the plan has, and said that the host can run it."""
    started: list[object] = []
    real = _thread.start_new_thread

    def refuse_the_third(*arguments: Any) -> int:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", refuse_the_third)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    with Runner(copied, threads=1, instances=2) as runner:
        assert len(started) == 2
        several = runner.predict([*pixels, pixels[0]])  # without threads of their own to prepare the inputs
        assert several == [runner.predict(each) for each in [*pixels, pixels[0]]]


def test_lists_are_cut_by_the_time_of_one_sample_from_the_first_on(native_dir: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    with Runner(native_dir, instances=2, threads=1, batch_size=2) as runner:
        together = runner(pixels)
        np.testing.assert_array_equal(together, np.concatenate([runner(pixels[i : i + 1]) for i in range(5)]))


def test_a_package_whose_files_are_links_runs(native_dir: Path, tmp_path: Path) -> None:
    """As stores of contents lay it out: each file under the name of its hash, in one place."""
    store, package = tmp_path / "store", tmp_path / "site/tiny_int8"
    store.mkdir()
    for number, path in enumerate(sorted(native_dir.rglob("*"))):
        if path.is_file() and path.parent.name != "__pycache__":
            copied_file = Path(shutil.copy(path, store / f"{number:064x}"))
            there = package / path.relative_to(native_dir)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(copied_file)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tiny_int8").symlink_to(package)
    for place in ("site", "other"):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / place)}
        command = [sys.executable, "-m", "tiny_int8", "verify"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["verified"]), done.stderr


# --- what bench says of it

SHORT = ("bench", "--json", "--duration", "0.1", "--warmup", "0")


def test_bench_measures_fresh_processes(
    native_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fresh processes do not import what lies in the working directory."""
    for name in ("json.py", "numpy.py", "tiny_int8.py"):
        (tmp_path / name).write_text("raise SystemExit('the file in the working directory was imported')")
    monkeypatch.chdir(tmp_path)
    assert cli.main(native_dir, SHORT) == 0
    result = json.loads(capsys.readouterr().out)
    start = result["start"]
    parts = [start[f"{name}_ms"] for name in ("import", "load", "first_call")]
    assert min(*parts, start["interpreter_ms"]) > 0
    assert start["total_ms"] == pytest.approx(sum(parts))
    assert start["resident_bytes"] > result["memory_shared_bytes"] > 0
    shown = text.format_table(result)
    assert f"  {start['total_ms'] / 1000:.2f} s from import to first prediction" in shown
    assert f"  {start['resident_bytes'] / 2**20:,.0f} MiB after the first prediction" in shown


def test_bench_leaves_the_start_out_where_it_is_told_to_and_where_torch_decides(
    native_dir: Path, package_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, arguments in ((native_dir, (*SHORT, "--no-start")), (package_dir, SHORT)):
        assert cli.main(package, arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert "start" not in result
        assert "fresh start" not in text.format_table(result)


def test_a_fresh_process_that_fails_is_an_error_with_its_last_line(copied: Path) -> None:
    manifest = read_manifest(copied)
    (copied / "__init__.py").write_text("raise ImportError('this package is broken')")
    with pytest.raises(
        RunnerError, match="a fresh process failed: ImportError: this package is broken; use --no-start"
    ):
        measure_start(copied, manifest, decide(manifest))


def test_a_start_that_no_interpreter_can_measure_says_how_to_go_without(
    native_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(native_dir)
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(HostError, match=r"sys.executable is empty\); use --no-start"):
        measure_start(native_dir, manifest, decide(manifest))
