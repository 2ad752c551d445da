"""The interpreters of CPython that this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

SUPPORTED = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""The versions of Python that wheels are for."""


@cache
def find_python(version: str) -> Path | None:
    """Return an interpreter of ``version`` (``3.12``) that can make virtual environments, None without one.

    It is looked for on PATH, then among those of pyenv and of uv.
    """
    return next((path for path in _places(version) if _is(path, version)), None)


def _places(version: str) -> Iterator[Path]:
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield Path(sys.executable)
    if (found := shutil.which(f"python{version}")) is not None:
        yield Path(found)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    yield from sorted((pyenv / "versions").glob(f"{version}.*/bin/python{version}"))
    yield from sorted((home / ".local/share/uv/python").glob(f"cpython-{version}.*/bin/python{version}"))


def _is(path: Path, version: str) -> bool:
    code = (
        "import ensurepip, sys, venv; print(f'{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}')"
    )
    try:
        done = subprocess.run([str(path), "-I", "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.stdout.strip() == f"cpython {version}"
