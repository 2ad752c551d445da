"""``export``: its arguments, its run and its text."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .write import export_c


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export``."""
    parser.add_argument(
        "--c",
        required=True,
        type=Path,
        metavar="DIR",
        help="write the model, a library, its header and an example to DIR",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="HEIGHTxWIDTH",
        help="of a model that takes inputs of any size: the one to export, a number for each named dimension "
        "(default: the typical size)",
    )
    parser.add_argument("--force", action="store_true", help="replace the files of an earlier export")


def _size(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) > 4 or not all(each.isascii() and each.isdigit() and 0 < int(each) < 1 << 20 for each in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HEIGHTxWIDTH, such as 512x1024, or a number for each name, such as 16000"
        )
    return tuple(map(int, parts))


def run(package_dir: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Export, and return the directory and the sizes of the files in bytes. Raises RunnerError."""
    found = export_c(package_dir, args.c, force=args.force, size=args.size)
    return {"directory": found.directory, "files": found.files} | ({} if found.size is None else {"size": found.size})


def format_export(facts: dict[str, Any]) -> str:
    """Return the files and the next step as text."""
    width = max(map(len, facts["files"]))
    lines = [f"  {name:<{width}}  {size:>12,} bytes" for name, size in facts["files"].items()]
    if "size" in facts:
        lines.append(f"it takes inputs of one size, {facts['size']}; --size chooses another")
    return "\n".join(
        [facts["directory"], *lines, f"README.md in it has the compile line: {facts['directory']}/README.md"]
    )
