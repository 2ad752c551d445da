"""``cpupack report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpupack.commands.options import WHEEL, Place, write_html
from cpupack.errors import UsageError


@click.command(short_help="Write a page about a wheel's build.")
@WHEEL
@click.option("--html", metavar="FILE", type=Place(), help="Where to write the page.")
@click.option(
    "--out",
    metavar="DIR",
    type=Place(),
    help="Directory for NAME-VERSION.html. The default is the directory of the wheel.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on stdout. A page is then written only with --html or --out.",
)
def report(wheel: Path, html: Path | None, out: Path | None, as_json: bool) -> None:
    """Write a page about WHEEL: summary, accuracy, layers, size, speed, tuning, provenance.

    The command first checks the wheel's hashes, then reads everything from the wheel. It runs none of the wheel's code.
    The page is one file that needs no network. The last line of stdout is its path.
    """
    from cpupack.wheel.build_page import read_report, render_report
    from cpupack.wheel.foreign import facts_of

    if html is not None and out is not None:
        raise UsageError("--html and --out both say where the page goes", hint="give only one of them")
    found = read_report(wheel)
    target = html
    if html is None and (out is not None or not as_json):
        target = (wheel.parent if out is None else out) / found.page_name
    with facts_of(wheel):
        page = None if target is None else render_report(found)
        facts = json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else None
    if target is not None and page is not None:
        write_html(target, page)
    click.echo(target if facts is None else facts)
