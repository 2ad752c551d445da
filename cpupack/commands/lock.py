"""``cpupack lock``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.building import build_options, load_recipes
from cpupack.commands.options import CACHE_GIB, JSON, NO_CACHE, NO_TUNE, QUIET, RECIPES, SET, TARGETS
from cpupack.interrupts import import_torch


@click.command(short_help="Write NAME.lock.toml: all that a build needs to give the same bytes again.")
@RECIPES
@TARGETS
@SET
@NO_TUNE
@NO_CACHE
@CACHE_GIB
@QUIET
@JSON
def lock(
    recipes: tuple[Path, ...],
    targets: tuple[str, ...],
    overrides: tuple[str, ...],
    no_tune: bool,
    no_cache: bool,
    cache_gib: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build RECIPE and write NAME.lock.toml beside it. The wheel itself is thrown away.

    The lock names the SHA-256 of every file that was read, the versions, the captured graph, the fused chains, the
    engine, the settings and all measurements. `cpupack build --locked` then builds a wheel with the same bytes, or says
    what has changed. The last lines of stdout are the paths of the locks, one on each line.
    """
    loaded = load_recipes(recipes, overrides)

    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress
    from cpupack.lock import lock_path
    from cpupack.pipeline import build
    from cpupack.scratch import scratch_directory

    console = Console(stderr=True)
    options = build_options(targets, tune=not no_tune, cache=not no_cache, cache_gib=cache_gib, renew_lock=True)
    answers = []
    for each in loaded:
        with scratch_directory() as out, redirect_stdout(sys.stderr):  # the recipe may name code that prints
            results = build(each, out, options, ConsoleProgress(console, quiet=quiet))
        path = lock_path(each.path)
        answers.append({"lock": str(path), "wheels": {each.wheel.path.name: each.wheel.sha256 for each in results}})
        if not as_json:
            click.echo(path)
    if as_json:
        click.echo(json.dumps({"locks": answers}, indent=2))
