"""``cpupack build``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpupack.commands.options import JSON, QUIET, RECIPES, SET
from cpupack.errors import RecipeError, UsageError
from cpupack.interrupts import import_torch

if TYPE_CHECKING:
    from cpupack.recipe import LoadedRecipe


@click.command()
@RECIPES
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["x86_64", "aarch64"]),
    help="Build for this CPU only; repeatable.",
)
@click.option(
    "--out",
    default="dist",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Directory for the wheels.",
)
@SET
@click.option(
    "--no-tune",
    is_flag=True,
    help="Skip the search for threads and batch size. The runner then chooses them on its own host.",
)
@click.option(
    "--locked",
    is_flag=True,
    help="Build the bytes that NAME.lock.toml beside the recipe names, or say what has changed. Nothing is raced or "
    "tuned.",
)
@QUIET
@JSON
def build(
    recipes: tuple[Path, ...],
    targets: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    no_tune: bool,
    locked: bool,
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
    from cpupack.pipeline import BuildOptions
    from cpupack.pipeline import build as build_wheels
    from cpupack.summary import summary_dict, summary_text, times_text

    console = Console(stderr=True)
    options = BuildOptions(cpus=tuple(dict.fromkeys(targets)), tune=not no_tune, locked=locked)
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


def load_recipes(paths: Sequence[Path], overrides: Sequence[str]) -> list[LoadedRecipe]:
    """Load all recipes before the first build starts, and report the problems of all of them."""
    from cpupack.recipe.file import load_recipe

    loaded: dict[str, LoadedRecipe] = {}
    failed: list[RecipeError] = []
    for path in paths:
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            failed.append(error)
            continue
        package = recipe.recipe.package
        wheel = f"{package.import_name} {package.version}"
        if wheel in loaded:
            raise UsageError(
                f"{loaded[wheel].path} and {recipe.path} both build {wheel}",
                hint="give them different [package] names or versions, or build them one by one into different --out",
            )
        loaded[wheel] = recipe
    if failed:
        hint = f"fix them and run `cpupack check {' '.join(map(str, paths))}`"
        raise RecipeError(
            "\n".join(error.message for error in failed), hint=failed[0].hint if len(failed) == 1 else hint
        )
    return list(loaded.values())
