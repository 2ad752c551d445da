"""``cpupack build``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.building import build_options, load_recipes
from cpupack.commands.options import CACHE_GIB, JSON, NO_CACHE, NO_TUNE, QUIET, RECIPES, SET, TARGETS, Place
from cpupack.errors import UsageError
from cpupack.interrupts import import_torch


@click.command()
@RECIPES
@TARGETS
@click.option(
    "--out",
    default="dist",
    type=Place(),
    show_default=True,
    help="Directory for the wheels.",
)
@SET
@NO_TUNE
@click.option(
    "--locked",
    is_flag=True,
    help="Build the bytes that NAME.lock.toml beside the recipe names, or say what has changed. Nothing is raced or "
    "tuned.",
)
@NO_CACHE
@CACHE_GIB
@QUIET
@JSON
def build(
    recipes: tuple[Path, ...],
    targets: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    no_tune: bool,
    locked: bool,
    no_cache: bool,
    cache_gib: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build wheels. The last lines of stdout are the paths of the wheels, one on each line.

    The first build of a recipe writes NAME.lock.toml beside it (see `cpupack lock`).
    """
    if locked and no_tune:
        raise UsageError("--locked takes the setting from the lock", hint="leave --no-tune out")
    loaded = load_recipes(recipes, overrides)

    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress, show_warning
    from cpupack.pipeline import build as build_wheels
    from cpupack.summary import summary_dict, summary_text, times_text

    console = Console(stderr=True)
    options = build_options(targets, tune=not no_tune, cache=not no_cache, cache_gib=cache_gib, locked=locked)
    answers = []
    for each in loaded:
        progress = ConsoleProgress(console, quiet=quiet)
        with redirect_stdout(sys.stderr):  # the recipe may name code that prints
            results = build_wheels(each, out, options, progress)
        for result in results:
            answers.append(summary_dict(result))
            if not (quiet or as_json):
                console.print(summary_text(result), soft_wrap=True)
        if not (quiet or as_json):
            console.print(times_text(progress.times_s), soft_wrap=True)
            for warning in progress.warnings:
                show_warning(console, warning)
        if not as_json:
            for result in results:
                click.echo(result.wheel.path)
    if as_json:
        click.echo(json.dumps({"wheels": answers}, indent=2, allow_nan=False))
