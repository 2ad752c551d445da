"""How a command prints an error on stderr."""

from __future__ import annotations

import os
from typing import Any

import click

from cpupack.errors import CpupackError, RecipeError


def print_error(error: CpupackError) -> None:
    """Print the message and the hint. Several problems of a recipe get one line each, after a line with the count."""
    lines = error.message.splitlines()
    if isinstance(error, RecipeError) and len(lines) > 1:
        lines = [f"{len(lines)} problems", *(f"  {line}" for line in lines)]
    click.echo("\n".join([f"{styled('error:', fg='red', bold=True)} {lines[0]}", *lines[1:]]), err=True)
    if error.hint is not None:
        click.echo(f"  {styled('hint:', bold=True)} {error.hint}", err=True)


def styled(text: str, **style: Any) -> str:
    """Style a word for a terminal; click leaves it plain elsewhere, and NO_COLOR (no-color.org) everywhere."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)
