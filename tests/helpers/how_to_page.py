"""The models of a how-to page: its blocks that begin with the name of a file, written and built."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import cpupack
from cpupack.runtime.host.cpu import machine
from helpers import forked
from helpers.waiting import PATIENCE_S

CHECKOUT = Path(cpupack.__file__).parents[1]
IS_X86 = machine() == "x86_64"
MOST_LINES = 30
"""A recipe of a how-to page has fewer."""


def files_of(page: str) -> dict[str, str]:
    """Return the blocks of a page of docs/how-to whose first line is the name of a file, by that name."""
    text = (CHECKOUT / "docs" / "how-to" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", text, re.S | re.M))


def write_files(page: str, root: Path) -> None:
    """Write the page's files into a directory."""
    for name, text in files_of(page).items():
        (root / name).write_text(text, encoding="utf-8")


def build_recipes(root: Path, names: Iterable[str]) -> None:
    """Build recipes of ``root`` on the native engine, without a search, into its ``dist``."""
    for name in names:
        done = cpupack_in(
            root, "build", f"{name}.toml", "--out", "dist", "--no-tune", "--set", "target.x86_64.engine=native"
        )
        assert done.returncode == 0, done.stderr


def cpupack_in(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run cpupack's command line in a directory."""
    return forked.run_command(arguments, root, {**os.environ, "PYTHONPATH": str(CHECKOUT)}, PATIENCE_S)
