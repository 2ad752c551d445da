"""The packaged command line, as a user types it."""

from __future__ import annotations

import _thread
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime import cli
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.manifest import FileEntry, hash_file, read_manifest
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.verify import verify
from helpers.tiny_package import keep_manifest
from helpers.waiting import PATIENCE_S


@pytest.fixture
def call(package_dir: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*argv: object, package: Path = package_dir) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(package, [str(one) for one in argv], prog="tiny-int8")
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return path


def module(package_dir: Path, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiny_int8", *argv], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package_dir.parent)}, **options,
    )  # fmt: skip


def one_error_line(err: str) -> str:
    """Return the message of stderr that must be one line, ``tiny-int8[ COMMAND]: error: MESSAGE``."""
    assert err.count("\n") == 1
    head, _, message = err.partition(": error: ")
    assert head.split()[0] == "tiny-int8"
    return message.rstrip("\n")


def test_commands_answer_without_torch(package_dir: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tiny_int8._runtime import cli\n"
        "here = Path(sys.argv[1])\n"
        "calls = [['--help'], ['info'], ['info', '--json'], ['--version'], ['predict', '--help'],\n"
        "         ['predict'], ['predict', 'gone.png'],\n"
        "         ['bench', '--threads', '0'], ['tune', '--help'], ['nonsense']]\n"
        "codes = [cli.main(here, argv) for argv in calls]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(package_dir)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(package_dir.parent)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 2, 2, 2, 0, 2] False"


def test_python_m_is_the_command(package_dir: Path, image: Path) -> None:
    done = module(package_dir, "predict", str(image))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{image}\n   1  ")


def test_importing_the_package_imports_no_torch(package_dir: Path) -> None:
    code = (
        "import sys, tiny_int8; before = 'torch' in sys.modules\n"
        "import numpy as np\n"
        "runner = tiny_int8.Runner(instances=1)\n"
        "print(before, len(runner.predict(np.zeros((20, 20, 3), np.uint8))))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package_dir.parent)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False 4\n", "")


def test_version(call: Callable[..., tuple[int, str, str]]) -> None:
    assert call("--version") == (0, "tiny-int8 1.0.0\n", "")


def test_help_lists_the_commands(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(f"    {name} " in out for name in ("info", "verify", "predict", "bench", "tune"))


def test_info_names_facts_and_reasons(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call("info")
    assert (code, err) == (0, "")
    for text in (
        "tiny-int8 1.0.0",
        "preprocessed to 3 x 16 x 16",
        "4 classes",
        "one thread an instance",
        ">=2.10,<2.14",
    ):
        assert text in out
    assert out.endswith("This host can run it. torch was found, and not loaded to see.\n")


@pytest.mark.parametrize("count", [1, 3])
def test_info_starts_the_threads_of_the_plan_to_see_whether_they_may(
    call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """It said "This host can run it" where ulimit -u allowed no thread beside the first."""
    started: list[object] = []

    def refuse_the_last(*arguments: Any) -> int:
        started.append(arguments)
        if len(started) == count:
            raise RuntimeError("can't start new thread")
        return real(*arguments)

    real = _thread.start_new_thread
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one instance
    monkeypatch.setenv("OMP_NUM_THREADS", str(count))
    monkeypatch.setattr(_thread, "start_new_thread", refuse_the_last)
    code, out, _ = call("info")
    assert (code, len(started)) == (3, count)
    assert "This host CANNOT run it:\n  - the system refuses to start another thread" in out


def test_info_is_one_json_object(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    code, out, err = call("info", "--json")
    facts = json.loads(out)
    assert (code, err, facts["problems"]) == (0, "", [])
    assert facts["manifest"] == json.loads(json.dumps(dataclasses.asdict(read_manifest(package_dir))))
    assert set(facts["plan"]["reasons"]) == {"threads", "instances", "batch_size", "cpus"}


def test_info_works_where_the_package_does_not(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path]
) -> None:
    package = edited(target={"cpu": "sparc"}, torch={"requires": ">=1.0,<1.1"})
    code, out, _ = call("info", package=package)
    assert code == 3
    assert "This host CANNOT run it:\n  - tiny-int8 1.0.0 is built for sparc" in out
    assert "was verified with torch >=1.0,<1.1" in out
    assert len(json.loads(call("info", "--json", package=package)[1])["problems"]) == 2


@pytest.mark.parametrize(
    "argv",
    [["info"], ["info", "--json"], ["verify"], ["predict", "x.jpg"], ["bench"], ["tune"],
     ["plan", "--rate", "9", "--max-latency-ms", "50"], ["export", "--c", "x"], ["serve", "--max-latency-ms", "50"]],
    ids=lambda argv: " ".join(argv[:2]),
)  # fmt: skip
def test_every_command_refuses_the_wheel_of_another_family(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], argv: list[str]
) -> None:
    other = "aarch64" if machine() == "x86_64" else "x86_64"
    code, out, err = call(*argv, package=edited(target={"cpu": other, "isa": None}))
    assert code == 3
    (line,) = err.splitlines()
    assert f"error: tiny-int8 1.0.0 is built for {other} and this host is {machine()}; only a wheel" in line
    assert bool(out) == (argv[0] == "info")


def test_predict_prints_a_table_a_file(call: Callable[..., tuple[int, str, str]], image: Path) -> None:
    code, out, err = call("predict", image, image, "--top-k", 2)
    assert (code, err) == (0, "")
    first, second = out.strip().split("\n\n")
    assert first == second
    title, *rows = first.splitlines()
    assert title == str(image)
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert rows[0].split()[2] in {"cat", "dog", "bird", "fish"}


def test_predict_json(call: Callable[..., tuple[int, str, str]], image: Path) -> None:
    code, out, err = call("predict", image, "--json", "--instances", 1)
    facts = json.loads(out)
    assert (code, err, facts["random_weights"]) == (0, "", False)
    (found,) = facts["predictions"]
    assert found["input"] == str(image)
    assert sum(one["probability"] for one in found["top"]) == pytest.approx(1.0)


def test_predict_arrays(
    call: Callable[..., tuple[int, str, str]], array_package_dir: Path, tmp_path: Path, image: Path
) -> None:
    path = tmp_path / "one.npy"
    np.save(path, np.zeros((3, 16, 16), np.float32))
    code, out, err = call("predict", path, package=array_package_dir)
    assert (code, err) == (0, "")
    assert out.startswith(f"{path}\n")
    code, out, err = call("predict", image, package=array_package_dir)
    assert (code, out) == (2, "")
    assert one_error_line(err).startswith(f"{image} is not an .npy file")


def test_predict_without_labels_shows_classes(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], image: Path
) -> None:
    _, out, _ = call("predict", image, "--top-k", 1, package=edited(labels=None))
    assert out.splitlines()[1].split()[2] == "class"


def test_a_drawing_never_replaces_an_input(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], image: Path
) -> None:
    before, package = image.read_bytes(), edited(task=TaskSpec.of("segmentation").to_dict())
    for target in (image, image.parent):  # in a directory the drawing has the input's name
        code, out, err = call("predict", image, "--save", target, package=package)
        assert (code, out) == (2, "")
        assert f"--save: the drawing would replace the input {image}" in one_error_line(err)
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "which command?"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["predict"], "required: FILE"),
        (["predict", "gone.png"], "gone.png: no such file"),
        (["predict", "https://example.org/a.jpg"], "https://example.org/a.jpg: no such file; it looks like a URL"),
        (["predict", "a" * 5000], "a... (5000 characters) cannot be read: File name too long"),
        (["predict", "a\0b"], "'a\\x00b' is not a path: "),
        (["predict", "--top-k", "0", "x"], "'0' is not a whole number from 1"),
        (["predict", "--top-k", "many", "x"], "'many' is not a whole number from 1"),
        (["predict", "--surprise", "x"], "unrecognized arguments: --surprise"),
        (["bench", "--scenario", "nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_usage_errors_are_one_line_and_two(
    call: Callable[..., tuple[int, str, str]], argv: list[str], message: str
) -> None:
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert message in one_error_line(err)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.jpg", b"hello", "is not an image that Pillow can read"),
        ("empty.png", b"", "is empty"),
        ("head.png", b"\x89PNG\r\n\x1a\n", "is a damaged image"),
    ],
)
def test_unusable_images_are_one_line_and_two(
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    image: Path,
    name: str,
    content: bytes,
    message: str,
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    code, out, err = call("predict", image, path)
    assert (code, out) == (2, "")
    assert one_error_line(err).startswith(f"{path} {message}")


@pytest.mark.parametrize("command", ["verify", "predict", "bench"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"cpu": "sparc"}}, "built for sparc"),
        ({"target": {"engine": "nonesuch"}}, "engine 'nonesuch'"),
        ({"torch": {"requires": ">=1.0,<1.1"}}, "was verified with torch >=1.0,<1.1"),
        ({"labels": 5}, "manifest.json is damaged"),
    ],
)
def test_host_and_integrity_errors_are_one_line_and_three(
    call: Callable[..., tuple[int, str, str]],
    edited: Callable[..., Path],
    image: Path,
    command: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    code, out, err = call(command, *([image] if command == "predict" else []), package=edited(**changes))
    assert (code, out) == (3, "")
    assert message in one_error_line(err)


@pytest.mark.parametrize("command", ["info", "verify", "predict", "bench", "tune", "--version"])
def test_damaged_manifest_is_one_line_and_three(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], image: Path, command: str
) -> None:
    package = edited()
    (package / "manifest.json").write_text('{"schema": 1}')
    code, out, err = call(command, *([image] if command == "predict" else []), package=package)
    assert (code, out) == (3, "")
    assert "manifest.json is damaged" in one_error_line(err)


def test_changed_model_is_one_line_and_three(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path]
) -> None:
    package = edited()
    (package / "model.pt").write_bytes(b"changed")
    code, _, err = call("verify", package=package)
    assert code == 3
    assert "model.pt is not the file that was built; reinstall tiny-int8" in one_error_line(err)


def test_verify(call: Callable[..., tuple[int, str, str]], package_dir: Path) -> None:
    code, out, err = call("verify")
    assert (code, err) == (0, "")
    assert "bit for bit" in out
    assert out.endswith("verified\n")
    facts = json.loads(call("verify", "--json")[1])
    assert facts["passed"]
    assert facts["sqnr_fp32_db"] == verify(package_dir).sqnr_fp32_db


@pytest.mark.parametrize("factor", [-1.0, np.nan])
def test_verify_that_fails_is_one(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], factor: float
) -> None:
    package = edited()
    arrays = dict(np.load(package / "golden.npz"))
    arrays["output"] *= np.float32(factor)
    np.savez(package / "golden.npz", **arrays)
    manifest = read_manifest(package)
    golden = package / "golden.npz"
    manifest.files["golden.npz"] = FileEntry(hash_file(golden), golden.stat().st_size)
    keep_manifest(package, manifest)
    code, out, err = call("verify", package=package)
    assert (code, err) == (1, "")
    assert "FAILED" in out
    code, out, err = call("verify", "--json", package=package)
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_random_weights_are_said_everywhere(
    call: Callable[..., tuple[int, str, str]], edited: Callable[..., Path], image: Path
) -> None:
    package = edited(random_weights=True, version="1.0.0+random")
    assert "RANDOM WEIGHTS" in call("info", package=package)[1]
    code, out, err = call("predict", image, "--json", package=package)
    assert (code, json.loads(out)["random_weights"]) == (0, True)
    assert err == "tiny-int8: warning: tiny-int8 1.0.0+random has random weights: its predictions mean nothing\n"


def test_bench_json_has_the_contracts_fields(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call("bench", "--duration", "0.05", "--warmup", "0.05", "--batch-size", 2, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["batch_size"] == 2
    contract = "scenario threads instances duration_s samples throughput_per_s latency_ms valid invalid_reasons"
    assert {*contract.split(), "host", "manifest"} <= set(facts)


def test_bench_entry_is_bench_alone(package_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.bench_main(package_dir, ["--duration", "0.05", "--warmup", "0.05"]) == 0
    assert "throughput" in capfd.readouterr().out
    assert cli.bench_main(package_dir, ["info"]) == 2
    assert capfd.readouterr().err.startswith("tiny-int8-bench: error: unrecognized arguments: info")


def test_reader_that_leaves_is_no_error(package_dir: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tiny_int8", "info"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package_dir.parent)},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_interrupt_is_one_line(package_dir: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import os, signal, sys\nfrom pathlib import Path\n"
         "from tiny_int8._runtime import cli\nfrom tiny_int8._runtime.bench import run as bench\n"
         "def run(*_): os.kill(os.getpid(), signal.SIGINT)\n"
         "bench.run = run\nsys.exit(cli.main(Path(sys.argv[1]), ['bench'], prog='tiny-int8'))",
         str(package_dir)],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(package_dir.parent)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    _, err = child.communicate(timeout=PATIENCE_S)
    assert (child.returncode, err) == (130, "tiny-int8: interrupted\n")


def test_lack_of_memory_is_one_line(call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setitem(cli._COMMANDS, "info", ("text", lambda parser: None, run))
    code, _, err = call("info")
    assert (code, err.count("\n")) == (3, 1)
    assert err.startswith("tiny-int8: error: there is not enough memory (")
