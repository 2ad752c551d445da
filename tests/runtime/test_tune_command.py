"""The processes that the search measures with, and one real run of ``NAME tune``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import cpupack
from cpupack.runtime import cli
from cpupack.runtime.errors import InputError
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.plan import decide as planning
from cpupack.runtime.plan import table
from cpupack.runtime.tune import command as tune_command
from cpupack.runtime.tune.command import BenchProcess, TuneOptions
from cpupack.runtime.tune.search import MeasurementFailedError
from cpupack.runtime.tune.space import Setting
from helpers.waiting import PATIENCE_S, has_ended, wait_until

# The processes ----------------------------------------------------------------------------------------------

ROW = dict.fromkeys(tune_command._ROW_FIELDS, 1)
GOOD = f"import json; print(json.dumps({{**{ROW!r}, 'manifest': {{'version': '1.0'}}}}))"


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., BenchProcess]:
    """Write an importable module with this text and return the bench that runs it."""

    def write(text: str, **options: Any) -> BenchProcess:
        (tmp_path / "madeup.py").write_text(text)
        environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return BenchProcess("madeup", "1.0", "offline", environ, **options)

    return write


def test_a_setting_is_passed_on_as_options(module: Callable[..., BenchProcess]) -> None:
    text = GOOD.replace("1, 'throughput_per_s'", "sys.argv[1:], 'throughput_per_s'")
    row = module(f"import sys; {text}")(Setting(2, 3, 4), 0.5)
    argv = row["scenario"]
    assert argv[:3] == ["bench", "--json", "--no-start"]
    given = dict(zip(argv[3::2], argv[4::2], strict=True))
    assert (given["--threads"], given["--instances"], given["--batch-size"]) == ("2", "3", "4")
    assert (given["--duration"], given["--scenario"]) == ("0.5", "offline")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit('x: error: no engine')", "x: error: no engine"),
        ("import os; os.kill(os.getpid(), 9)", "because memory ran out"),
        ("print('hello')", "printed no result"),
        (GOOD.replace("'1.0'", "'2.0'"), "is version 2.0; 1.0 is being tuned"),
    ],
)
def test_a_failing_process_is_told_in_one_line(module: Callable[..., BenchProcess], text: str, message: str) -> None:
    with pytest.raises(MeasurementFailedError, match=message) as caught:
        module(text)(Setting(1, 1, 8), 1.0)
    assert str(caught.value).startswith("1 instance x 1 thread, batch 8: ")
    assert "\n" not in str(caught.value)


def test_a_process_that_hangs_is_ended(module: Callable[..., BenchProcess]) -> None:
    with pytest.raises(MeasurementFailedError, match="not finished"):
        module("import time; time.sleep(60)", timeout_s=0.2)(Setting(1, 1, 1), 1.0)


def test_an_interrupt_of_the_tuner_alone_ends_its_child(tmp_path: Path) -> None:
    """The signal goes to the parent only, other than the terminal's Ctrl-C, which reaches both."""
    pid_file = tmp_path / "pid"
    (tmp_path / "madeup.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(
        "import os\n"
        "from cpupack.runtime.tune.command import BenchProcess\n"
        "from cpupack.runtime.tune.space import Setting\n"
        "BenchProcess('madeup', '1.0', 'offline', os.environ)(Setting(1, 1, 1), 1.0)\n"
    )
    root = Path(cpupack.__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env=environ, stderr=subprocess.DEVNULL
    ) as parent:
        wait_until(lambda: pid_file.exists() and pid_file.read_text() != "")
        child = psutil.Process(int(pid_file.read_text()))
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=PATIENCE_S) != 0
    wait_until(lambda: has_ended(child))


# NAME tune --------------------------------------------------------------------------------------------------


def test_tune_keeps_its_result_and_the_next_plan_uses_it(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package_dir.parent))
    argv = ["tune", "--json", "--budget-s", "0.1", "--threads", "1", "--batch-sizes", "3"]
    assert cli.main(package_dir, argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["threads"], result["batch_size"]) == (1, 3)
    assert result["rows"][0]["throughput_per_s"] > 0
    manifest = read_manifest(package_dir)
    assert Path(result["path"]) == table.table_path(manifest)
    decided = planning.decide(manifest)
    assert decided.source == "host-tuned"
    assert (decided.threads, decided.instances, decided.batch_size) == (1, result["instances"], 3)
    assert result["reason"] in tune_command.format_table(result)


def test_a_cache_that_cannot_be_written_is_told_before_the_search(
    package_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.main(package_dir, ["tune"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert str(tmp_path / "file") in err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--budget-s", "0"],
        ["--threads", "1,0"],
        ["--threads", "some"],
        ["--batch-sizes", ""],
        ["--batch-sizes", "1,,2"],
        ["--objective", "speed"],
        ["--max-latency-ms", "-5"],
    ],
)
def test_a_wrong_option_of_tune_is_one_line_and_exit_code_2(
    package_dir: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    assert cli.main(package_dir, ["tune", *wrong]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert wrong[0] in err


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"budget_s": 0.0}, "--budget-s"),
        ({"objective": "speed"}, "--objective"),
        ({"max_latency_ms": float("nan")}, "--max-latency-ms"),
        ({"threads": ()}, "--threads"),
        ({"batch_sizes": (4, 0)}, "--batch-sizes"),
    ],
)
def test_impossible_options_cannot_be_made(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        TuneOptions(**wrong)
