"""``cpupack doctor``."""

from __future__ import annotations

import json

import click

from cpupack.commands.options import JSON
from cpupack.interrupts import import_torch
from cpupack.runtime.plain import to_plain


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """Show what this host can build and run, and what is missing."""
    import_torch()
    from cpupack.doctor import collect, format_doctor

    found = collect()
    click.echo(json.dumps(to_plain(found), indent=2, allow_nan=False) if as_json else format_doctor(found))
