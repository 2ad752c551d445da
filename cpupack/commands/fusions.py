"""``cpupack fusions``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.options import JSON, RECIPE, SET
from cpupack.interrupts import import_torch


@click.command()
@RECIPE
@SET
@JSON
def fusions(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the fusible chains as TOML to paste into a recipe."""
    from cpupack.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides)

    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress
    from cpupack.pipeline import fusible_chains
    from cpupack.templates import render

    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        chains = fusible_chains(loaded, ConsoleProgress(Console(stderr=True), quiet=True))
    if as_json:
        click.echo(json.dumps({"modules": [list(chain) for chain in chains]}, indent=2))
    else:
        click.echo(render("recipe/fuse.toml.j2", chains=[list(chain) for chain in chains]), nl=False)
