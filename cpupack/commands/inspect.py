"""``cpupack inspect``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpupack.commands.options import JSON, WHEEL
from cpupack.errors import UsageError, VerificationError


@click.command()
@WHEEL
@click.option("--layers", is_flag=True, help="Show what runs each layer, its scale and its SQNR, and what stayed FP32.")
@click.option(
    "--verify",
    "verifies",
    is_flag=True,
    help="Say only whether the wheel is as it was built: names, hashes, golden outputs, and whether the kernels take "
    "its program. Exit code 6 if not.",
)
@JSON
def inspect(wheel: Path, layers: bool, verifies: bool, as_json: bool) -> None:
    """Show what is inside a wheel, and check its hashes. None of the wheel's code is run."""
    from cpupack.wheel.foreign import facts_of
    from cpupack.wheel.inspect import format_inspection
    from cpupack.wheel.inspect import inspect as inspect_wheel

    if layers and verifies:
        raise UsageError("--layers and --verify ask for different things", hint="give one of them")
    if verifies:
        _verify(wheel, as_json)
        return
    if layers:
        _inspect_layers(wheel, as_json)
        return
    found = inspect_wheel(wheel)
    with facts_of(wheel):
        text = json.dumps(found.to_dict(), indent=2, allow_nan=False) if as_json else format_inspection(found)
    click.echo(text)
    if found.problems:
        raise UsageError(
            f"{wheel}: {len(found.problems)} files differ from the build", hint="build or copy the wheel again"
        )


def _verify(wheel: Path, as_json: bool) -> None:
    from cpupack.wheel.verify import format_verified, verify_wheel

    found = verify_wheel(wheel)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else format_verified(found))
    if found.problems:
        raise VerificationError(f"{wheel} is not as it was built", hint="build or copy the wheel again")


def _inspect_layers(wheel: Path, as_json: bool) -> None:
    from cpupack.wheel.build_page import read_report
    from cpupack.wheel.foreign import facts_of
    from cpupack.wheel.layers import format_layers

    found = read_report(wheel).facts.get("layers")
    if not found:
        raise UsageError(f"{wheel} has no facts about its layers", hint="build it again with this cpupack")
    with facts_of(wheel):
        text = json.dumps({"layers": found}, indent=2, allow_nan=False) if as_json else format_layers(found)
    click.echo(text)
