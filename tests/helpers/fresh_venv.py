"""A virtual environment as a user of a wheel has it: what the wheel requires, and no cpupack."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout."""

    root: Path

    def variables(self) -> dict[str, str]:
        """Return the environment's variables, without what the test run itself sets."""
        # PYTHONPATH would make the checkout importable.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
        return kept | {"XDG_CACHE_HOME": str(self.root / "cache"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.root / "bin" / program), *arguments]
        return subprocess.run(command, cwd=self.root, env=self.variables(), capture_output=True, text=True, check=False)

    def json(self, program: str, *arguments: str) -> dict[str, Any]:
        done = self.run(program, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def make_environment(root: Path, wheel: Path, only: Sequence[str] = ()) -> Environment:
    """Make a virtual environment that sees this one's packages except cpupack; install the wheel with pip.

    With its dependencies and without an index: pip itself checks that the ranges take the installed torch. No
    pip and setuptools of its own, which would hide those that the shared torch asks for. With ``only``, it sees nothing
    but the distributions of these names, and pip.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    shared = root / "shared"
    shared.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if only and re.split(r"[-.]", entry.name.lower())[0] not in {*only, "pip"}:
            continue
        if not entry.name.startswith(("cpupack", "_cpupack", "__editable__")) and entry.suffix != ".pth":
            (shared / entry.name).symlink_to(entry)
    (site_packages,) = root.glob("lib/python*/site-packages")
    (site_packages / "shared.pth").write_text(f"{shared}\n")
    environment = Environment(root)
    done = environment.run("python", "-m", "pip", "install", "--no-index", str(wheel))
    assert done.returncode == 0, done.stderr
    return environment


def make_environment_of(python: Path, root: Path, wheel: Path, *requirements: str) -> Environment | None:
    """Make a virtual environment of another interpreter; install the wheel and ``requirements`` from pip's index.

    By the pip of this one, and without bytecode: Python writes that of the few modules that are imported. Returns None
    where pip finds no index to take the wheel's dependencies from.
    """
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(root)], check=True)
    # As the user has pip set up: where the index is, is no business of the tests.
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python")]
    done = subprocess.run(
        [*pip, "install", "--no-compile", "--only-binary=:all:", str(wheel), *requirements],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0 and "NewConnectionError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return Environment(root)
