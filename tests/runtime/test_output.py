"""Output that cannot be written is one line and an exit code, for the wheel's command and for cpupack's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.tiny_package import RUNTIME
from helpers.waiting import PATIENCE_S

REPOSITORY = RUNTIME.parent.parent
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def shell(line: str, *command: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``line`` with the command as "$@"."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", sys.executable, "-m", *command],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{cwd}", **environ},
        cwd=cwd, capture_output=True, text=True, errors="surrogateescape", timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.fixture(params=["wheel", "cpupack"])
def command(request: pytest.FixtureRequest, package_dir: Path) -> tuple[str, ...]:
    return ("tiny_int8", "info") if request.param == "wheel" else ("cpupack", "doctor")


@needs_full
@pytest.mark.parametrize("extra", [(), ("--json",), ("--help",)])
def test_a_full_disk(command: tuple[str, ...], package_dir: Path, extra: tuple[str, ...]) -> None:
    # Where Python does not buffer, each write fails in its place: argparse's own would drop the error of its help.
    done = shell('"$@" > /dev/full', *command, *extra, cwd=package_dir.parent, PYTHONUNBUFFERED="1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "error: cannot write the output: No space left on device" in done.stderr


def test_a_closed_stdout(command: tuple[str, ...], package_dir: Path) -> None:
    done = shell('"$@" >&-', *command, cwd=package_dir.parent)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write the output" in done.stderr


@needs_full
def test_nobody_to_tell(command: tuple[str, ...], package_dir: Path) -> None:
    assert shell('"$@" > /dev/full 2> /dev/full', *command, cwd=package_dir.parent).returncode == 2
    assert shell('"$@" >&- 2>&-', *command, cwd=package_dir.parent).returncode == 2
    done = shell('"$@" 2>&-', *command, cwd=package_dir.parent)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves(command: tuple[str, ...], package_dir: Path) -> None:
    done = shell('"$@" --json | head -c 1 > /dev/null', *command, cwd=package_dir.parent)
    assert done.returncode in {0, 141}  # 0 where all was in the pipe before the reader left
    assert done.stderr == ""


@pytest.mark.parametrize(
    "environ", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_a_terminal_without_the_characters(package_dir: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    shutil.copytree(package_dir, tmp_path / "tiny_int8")
    name = "K\N{LATIN SMALL LETTER A WITH DIAERESIS}tzchen.png"
    done = shell('"$@"', "tiny_int8", "predict", name, cwd=tmp_path, **environ)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "tzchen.png: no such file" in done.stderr
    done = shell('"$@"', "cpupack", "check", name, cwd=tmp_path, **environ)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_file_name_that_is_no_text(package_dir: Path) -> None:
    done = shell("\"$@\" predict $'caf\\xe9.png'", "tiny_int8", cwd=package_dir.parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no such file" in done.stderr


@pytest.mark.parametrize("wait_s", [0.0, 0.1, 0.3, 0.6])
def test_an_interrupt_while_it_starts_leaves_no_traceback(wait_s: float, package_dir: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; print(flush=True); from cpupack.entry import main; main()", "doctor"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=package_dir.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()  # before that the interpreter itself starts
    time.sleep(0.05 + wait_s)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in err
    assert child.returncode in {130, 0}  # 0 where it had ended before
