"""The command line's edges: what it imports, what it exits with, what it prints where."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

import cpupack
from cpupack import cli, errors, interrupts
from cpupack.cli import main
from cpupack.commands import messages

RECIPE = """\
schema = 1
[package]
name = "tiny"
[model]
source = "torchvision:resnet18"
weights = "random"
input_shape = [3, 32, 32]
[calibration]
source = "synthetic"
"""


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert isinstance(left.value.code, int)
        return left.value.code, *capfd.readouterr()

    yield call
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def test_quick_answers_import_no_torch(tmp_path: Path) -> None:
    """``--help``, ``check``, ``init``, and every mistake that the arguments or a recipe show."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "bad.toml").write_text("schema = 2\n")
    code = (
        "import sys\nfrom cpupack.cli import main\ncodes = []\n"
        "for call in (['--help'], ['--version'], ['check', 'tiny.toml'], ['check', 'bad.toml'], ['build', '--help'],\n"
        "             ['build'], ['build', 'bad.toml'], ['build', 'tiny.toml', '--target', 'riscv'],\n"
        "             ['init', 'new', '--model', 'torchvision:resnet18'], ['inspect', 'gone.whl'], ['nonsense']):\n"
        "    try:\n        main(call)\n    except SystemExit as left:\n        codes.append(left.code)\n"
        "print(codes, 'torch' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cpupack.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2, 0, 2, 2, 2, 0, 2, 2] False False"


def test_every_command_is_in_the_help(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for name in cli.cli.commands:
        assert f"\n  {name} " in out
    assert "..." not in out.split("Commands:")[1]  # no description is cut off at 80 columns
    for name, command in cli.cli.commands.items():
        code, out, err = run(name, "-h")
        assert (code, err) == (0, "")
        assert command.help is not None
        assert command.help.splitlines()[0] in " ".join(out.split())


def test_every_command_is_in_the_module_of_its_name() -> None:
    for name, command in cli.cli.commands.items():
        assert command.callback is not None
        assert command.callback.__module__ == f"cpupack.commands.{name}"


def test_version(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"cpupack, version {cpupack.__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("bulid",), ("build",), ("build", "--outt", "x"), ("fusions", "a", "b")])
def test_usage(run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: cpupack" in err


@pytest.mark.parametrize(
    "error",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CpupackError)],
)
def test_errors_exit_with_their_code(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, error: type[errors.CpupackError]
) -> None:
    def fail(_: Path) -> None:
        raise error("it broke:\n  here", hint="mend it")

    monkeypatch.setattr("cpupack.wheel.inspect.inspect", fail)
    code, out, err = run("inspect", "some.whl")
    assert (code, out) == (error.exit_code, "")
    lines = ["error: it broke:", "  here"] if error is not errors.RecipeError else ["error: 2 problems", "  it broke:"]
    assert err.splitlines()[:2] == lines
    assert err.splitlines()[-1] == "  hint: mend it"


def test_exit_codes_are_the_published_ones() -> None:
    published = {
        errors.UsageError: 2,
        errors.RecipeError: 2,
        errors.ModelError: 3,
        errors.CalibrationError: 4,
        errors.QuantizationError: 5,
        errors.VerificationError: 6,
        errors.TuningError: 7,
        errors.PackagingError: 8,
    }
    assert {kind: kind.exit_code for kind in published} == published


def test_a_bug_shows_its_traceback_and_exits_1(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("cpupack.wheel.inspect.inspect", fail)
    code, out, err = run("inspect", "some.whl")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.endswith("cpupack: this is a bug in cpupack; please report it with the traceback above\n")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "error: x: File name too long\n"),
        (PermissionError(errno.EACCES, "Permission denied", b"x"), 2, "error: x: Permission denied\n"),
        (OSError(errno.EMFILE, "Too many open files", "x"), 1, "error: too many files are open ("),
        (ImportError("x.so: cannot open shared object file: Too many open files"), 1, "error: too many files are open"),
        (MemoryError(), 1, "error: there is not enough memory ("),
        (
            RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            1,
            "error: there is not enough memory (",
        ),
    ],
)
def test_what_the_system_refuses_is_no_bug(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, raised: Exception, code: int, words: str
) -> None:
    def fail(_: Path) -> None:
        raise raised

    monkeypatch.setattr("cpupack.wheel.inspect.inspect", fail)
    found, out, err = run("inspect", "some.whl")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(words)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (KeyboardInterrupt(signal.SIGTERM), 143), (KeyboardInterrupt(signal.SIGHUP), 129)],
)
def test_interrupts_are_one_line(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, raised: KeyboardInterrupt, code: int
) -> None:
    def fail(_: Path) -> None:
        raise raised

    monkeypatch.setattr("cpupack.wheel.inspect.inspect", fail)
    assert run("inspect", "some.whl") == (code, "", "cpupack: interrupted\n")


def test_a_stop_becomes_an_interrupt(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cpupack.wheel.inspect.inspect", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = run("inspect", "some.whl")
    assert (code, err) == (143, "cpupack: interrupted\n")


def test_nohup_stays_in_force(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run("--version")
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_an_interrupt_waits_for_the_import_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def slow_import(name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(name)

    monkeypatch.setattr(interrupts.importlib, "import_module", slow_import)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupts.import_torch()
    assert seen == ["torch"]
    assert caught.value.args == ()  # Python's own Ctrl-C: the signal is delivered again
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "r.toml", "--cache-gib", "nan"), "nan is not a finite number"),
        (("compare", "r.toml", "--budget-s", "nan"), "nan is not a finite number"),
        (("deploy", "k8s", "x.whl", "--max-latency-ms", "nan"), "nan is not a finite number"),
        (("build", "r.toml", "--out", ""), "the path is empty"),
        (("report", "x.whl", "--html", ""), "the path is empty"),
        (("bundle", "x.whl", "--out", ""), "the path is empty"),
        (("deploy", "k8s", "x.whl", "--out", ""), "the path is empty"),
        (("check", "x.whl"), "it is a wheel: `cpupack inspect` shows what is in it"),
    ],
)
def test_values_that_no_option_means(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK\3\4\xff")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize("command", [("inspect",), ("report",), ("bundle",), ("deploy", "k8s")])
def test_a_pipe_is_no_wheel_and_is_not_waited_for(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, command: tuple[str, ...]
) -> None:
    os.mkfifo(tmp_path / "pipe.whl")
    code, _, err = run(*command, "pipe.whl")
    assert code == 2
    assert "pipe.whl is a pipe or a device, not a wheel" in err


def test_init_then_check(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("init", "photos", "--model", "torchvision:resnet18")
    assert (code, out) == (0, "photos.toml\n")
    assert "next: " in err
    (Path("data") / "calib").mkdir(parents=True)
    code, out, err = run("check", "photos.toml", "--set", "calibration.source=synthetic")
    assert (code, out, err) == (0, "photos.toml: ok\n", "")
    assert run("init", "photos", "--model", "torchvision:resnet18")[0] == 2


def test_check_reports_each_recipe(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE)
    (tmp_path / "bad.toml").write_text(RECIPE.replace("weights", "wieghts"))
    code, out, err = run("check", "bad.toml", "tiny.toml", "gone.toml")
    assert (code, out) == (2, "tiny.toml: ok\n")
    assert err.count("error: ") == 2
    code, out, err = run("check", "bad.toml", "tiny.toml", "--json")
    assert (code, err) == (2, "")
    assert [recipe["ok"] for recipe in json.loads(out)["recipes"]] == [False, True]


def test_colour_only_where_it_can_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert messages.styled("error:", fg="red") == click.style("error:", fg="red")
    monkeypatch.setenv("NO_COLOR", "1")
    assert messages.styled("error:", fg="red") == "error:"
