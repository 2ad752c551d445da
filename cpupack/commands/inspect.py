"""``cpupack inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpupack.commands.options import JSON, WHEEL
from cpupack.errors import UsageError


@click.command()
@WHEEL
@click.option("--layers", is_flag=True, help="Show what runs each layer, its scale and its SQNR, and what stayed FP32.")
@JSON
def inspect(wheel: Path, layers: bool, as_json: bool) -> None:
    """Show what is inside a wheel, and check its hashes."""
    from cpupack.wheel.inspect import format_inspection
    from cpupack.wheel.inspect import inspect as inspect_wheel

    if layers:
        _inspect_layers(wheel, as_json)
        return
    found = inspect_wheel(wheel)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else format_inspection(found))
    if found.problems:
        raise UsageError(
            f"{wheel}: {len(found.problems)} files differ from the build", hint="build or copy the wheel again"
        )


def _inspect_layers(wheel: Path, as_json: bool) -> None:
    from cpupack.wheel.build_page import read_report
    from cpupack.wheel.layers import format_layers

    found = read_report(wheel).facts.get("layers")
    if not found:
        raise UsageError(f"{wheel} has no facts about its layers", hint="build it again with this cpupack")
    click.echo(json.dumps({"layers": found}, indent=2) if as_json else format_layers(found))
