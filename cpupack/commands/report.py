"""``cpupack report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpupack.commands.options import WHEEL
from cpupack.errors import UsageError


@click.command(short_help="Write a page about a wheel's build.")
@WHEEL
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Where to write the page.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory for NAME-VERSION.html; by default the wheel's own.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout; a page is written only where asked for."
)
def report(wheel: Path, html: Path | None, out: Path | None, as_json: bool) -> None:
    """Write a page about WHEEL: summary, accuracy, layers, size, speed, tuning, provenance.

    Everything is read from the wheel, whose hashes are checked first; nothing in it is run. The page is one file that
    needs no network. The last line of stdout is its path.
    """
    from cpupack.wheel.build_page import read_report, render_report

    if html is not None and out is not None:
        raise UsageError("--html and --out both say where the page goes", hint="give one of them")
    found = read_report(wheel)
    target = html
    if html is None and (out is not None or not as_json):
        target = (wheel.parent if out is None else out) / found.page_name
    if target is not None:
        _write(target, render_report(found))
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        click.echo(target)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", hint="name another file with --html"
        ) from error
