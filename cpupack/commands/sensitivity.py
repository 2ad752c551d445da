"""``cpupack sensitivity``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.options import JSON, QUIET, RECIPE, SET, check_html
from cpupack.interrupts import import_torch


@click.command(short_help="Rank layers by how much INT8 in that layer alone costs.")
@RECIPE
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Number of samples to measure on. They are spread evenly over the evaluation data, or over the calibration "
    "data if the recipe names no evaluation data.",
)
@SET
@click.option("--html", metavar="FILE", type=click.Path(path_type=Path), help="Also write a page with charts.")
@JSON
@QUIET
def sensitivity(
    recipe: Path, samples: int, overrides: tuple[str, ...], html: Path | None, as_json: bool, quiet: bool
) -> None:
    """Rank layers by the loss when only that layer is INT8.

    Each layer in turn is rounded to 8 bits with the ranges of the calibration, while all other layers stay FP32. The
    ranking shows the SQNR of the layer's weights, of its output and of the model's outputs, and the loss of accuracy.
    No engine is used. Keep the first layers of the ranking in FP32 with [quantize] skip.
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
