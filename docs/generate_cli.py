"""Writes docs/reference/cli.md from what ``--help`` prints: ``python docs/generate_cli.py``."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from cpupack.cli import cli
from cpupack.runtime import cli as wheel_cli

PAGE = Path(__file__).parent / "reference" / "cli.md"
WHEEL_COMMANDS = ("info", "verify", "predict", "bench", "tune", "plan", "batch", "stream", "export")
_INTRO = """\
# Command line reference

<!-- Generated from --help by `python docs/generate_cli.py`; a test keeps it current. -->
"""


def render() -> str:
    """Return the page: cpupack's commands, then those of a wheel (called NAME here)."""
    group = cli.make_context("cpupack", [], resilient_parsing=True, terminal_width=80)
    parts = [_INTRO, _section("cpupack", cli.get_help(group))]
    for name, command in sorted(cli.commands.items()):
        context = command.make_context(name, [], parent=group, resilient_parsing=True, terminal_width=80)
        parts.append(_section(f"cpupack {name}", command.get_help(context)))
        for inner, below in sorted(getattr(command, "commands", {}).items()):
            own = below.make_context(inner, [], parent=context, resilient_parsing=True, terminal_width=80)
            parts.append(_section(f"cpupack {name} {inner}", below.get_help(own)))
    parts.append(_section("NAME, the command of a wheel", _wheel_help()))
    parts += [_section(f"NAME {name}", _wheel_help(name)) for name in WHEEL_COMMANDS]
    return "\n".join(parts)


def _wheel_help(*command: str) -> str:
    shown = io.StringIO()
    # argparse wraps to the terminal; 82 columns are 80 of text.
    with contextlib.redirect_stdout(shown), mock.patch.dict(os.environ, COLUMNS="82"):
        wheel_cli.main(Path("NAME"), [*command, "--help"], prog="NAME")
    return shown.getvalue()


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
