"""``cpupack sensitivity``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.options import JSON, QUIET, RECIPE, SET, check_html
from cpupack.interrupts import import_torch


@click.command(short_help="Rank layers by what INT8 costs each of them.")
@RECIPE
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Samples to measure on, spread evenly over the evaluation data (without any: the calibration data).",
)
@SET
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write a page with charts.")
@JSON
@QUIET
def sensitivity(
    recipe: Path, samples: int, overrides: tuple[str, ...], html: Path | None, as_json: bool, quiet: bool
) -> None:
    """Rank layers by what is lost when each of them alone is INT8.

    Every layer is rounded to 8 bits in the FP32 model, with the ranges of the calibration, while all others stay FP32:
    the SQNR of its weights, of its output, and of the model's outputs, and the accuracy lost. No engine is involved.
    The first layers of the ranking are those to keep in FP32 with [quantize] skip.
    """
    from cpupack.recipe.file import load_recipe

    check_html(html)
    loaded = load_recipe(recipe, overrides)

    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress
    from cpupack.pipeline import rank_layers
    from cpupack.sensitivity.ranking import format_table, render_html, to_dict

    progress = ConsoleProgress(Console(stderr=True), quiet=quiet)
    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        report = rank_layers(loaded, samples, progress)
    if html is not None:
        html.write_text(render_html(report), encoding="utf-8")
    click.echo(json.dumps(to_dict(report), indent=2, allow_nan=False) if as_json else format_table(report))
