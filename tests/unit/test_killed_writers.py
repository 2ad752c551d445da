"""kill -9 before each step of a command that writes files: what is there is whole, and the next run makes the rest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.cli import main
from cpupack.stages.package import build_wheel, stage_project
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.tiny_wheel import TinyWheel

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child writes files and ends
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.copyfile", "shutil.rmtree"}
"""Events of Python's audit hooks (sys.audit) that change files, or may."""
MOST = 200


@pytest.fixture(scope="module")
def wheel(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(directory: Path) -> None:
        build_wheel(stage_project(native_contents(tiny, directory), directory / "project"), directory / "dist")

    return next((once(tmp_path_factory, "verify-native", make) / "dist").glob("*.whl"))


def killed_at(step: int, root: Path, run: Callable[[], object]) -> bool:
    """Run in a child that is killed before its ``step``-th change of a file below ``root``; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event != "open" or (len(arguments) > 2 and isinstance(arguments[2], int) and arguments[2] & 3)
            if event in STEPS and writes and str(arguments[0]).startswith(str(root)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.addaudithook(count)
            run()
        except SystemExit as left_with:
            code = int(left_with.code or 0)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("command", ["sign", "report", "deploy"])
def test_what_is_there_is_whole(wheel: Path, tmp_path: Path, command: str) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    root = tmp_path / "out"
    root.mkdir()
    own = root / wheel.name
    own.write_bytes(wheel.read_bytes())
    arguments = {
        "sign": ["sign", str(own), "--key", str(tmp_path / "key.pem")],
        "report": ["report", str(own)],
        "deploy": ["deploy", "k8s", str(own), "--cpus", "1", "--out", str(root / "k8s"), "--overwrite"],
    }[command]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert not left.value.code
    wanted = files(root)
    for path in wanted:
        if path != own.name:
            (root / path).unlink()
    assert len(wanted) > 1
    step = 0
    while killed_at(step, root, lambda: main(arguments)):
        step += 1
        assert step < MOST
        found = {name: data for name, data in files(root).items() if ".part" not in name}
        assert found.items() <= wanted.items(), step  # all of a file, or no file
    assert step >= len(wanted) - 1
    assert files(root) == wanted  # also what the killed ones left is gone


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
