"""``cpupack init``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("name")
@click.option(
    "--model",
    "source",
    required=True,
    metavar="SOURCE",
    help="torchvision:NAME, timm:NAME or python:FILE.py:factory.",
)
@click.option(
    "--dir",
    "directory",
    default=".",
    type=click.Path(path_type=Path),
    help="Where to write NAME.toml.",
    show_default=True,
)
def init(name: str, source: str, directory: Path) -> None:
    """Write a commented recipe NAME.toml."""
    from cpupack.recipe.init import init_recipe

    path = init_recipe(name, source, directory)
    click.echo(f"next: edit the calibration source, then `cpupack check {path}`", err=True)
    click.echo(path)
