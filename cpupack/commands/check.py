"""``cpupack check``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpupack.commands.messages import print_error
from cpupack.commands.options import JSON, RECIPES, SET
from cpupack.errors import CpupackError
from cpupack.interrupts import import_torch

if TYPE_CHECKING:
    from cpupack.recipe import LoadedRecipe


@click.command()
@RECIPES
@SET
@click.option("--deep", is_flag=True, help="Also load the model and resolve every module name.")
@JSON
def check(recipes: tuple[Path, ...], overrides: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Validate recipes and report every problem at once.

    Without --deep no code that a recipe names is run. What a build would run is said on stderr.
    """
    from cpupack.recipe.code import user_code
    from cpupack.recipe.file import load_recipe

    answers, worst = [], 0
    for path in recipes:
        answer: dict[str, Any] = {"recipe": str(path), "ok": True, "problems": []}
        try:
            loaded = load_recipe(path, overrides)
            if deep:
                answer |= _check_deep(loaded)
        except CpupackError as error:
            answer |= {"ok": False, "problems": error.message.splitlines(), "hint": error.hint}
            worst = max(worst, error.exit_code)
            if not as_json:
                print_error(error)
        else:
            answer["runs_python"] = user_code(loaded.recipe)
            if not as_json:
                click.echo(f"{path}: ok" + (f" ({answer['found']})" if deep else ""))
                if answer["runs_python"]:
                    click.echo(f"{path}: a build runs Python of yours: {', '.join(answer['runs_python'])}", err=True)
        answers.append(answer)
    if as_json:
        click.echo(json.dumps({"recipes": answers}, indent=2))
    click.get_current_context().exit(worst)


def _check_deep(loaded: LoadedRecipe) -> dict[str, Any]:
    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress
    from cpupack.pipeline import check_model

    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        model, fused = check_model(loaded, ConsoleProgress(Console(stderr=True), quiet=True))
    return {
        "parameters": model.parameters,
        "macs": model.macs,
        "output_shape": list(model.output_shape),
        "fused_chains": len(fused.chains),
        "found": f"{model.parameters:,} parameters, {model.macs:,} MACs, {len(fused.chains)} fused chains",
    }
