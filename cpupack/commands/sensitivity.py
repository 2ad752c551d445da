"""``cpupack sensitivity``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import click

from cpupack.commands.building import open_cache
from cpupack.commands.options import CACHE_GIB, JSON, NO_CACHE, QUIET, RECIPE, SET, check_html, write_html
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
@NO_CACHE
@CACHE_GIB
@JSON
@QUIET
def sensitivity(
    recipe: Path,
    samples: int,
    overrides: tuple[str, ...],
    html: Path | None,
    no_cache: bool,
    cache_gib: float,
    as_json: bool,
    quiet: bool,
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
        cache = open_cache(loaded, None if no_cache else cache_gib, progress)
        report = rank_layers(loaded, samples, progress, cache)
    if html is not None:
        write_html(html, render_html(report))
    click.echo(json.dumps(to_dict(report), indent=2, allow_nan=False) if as_json else format_table(report))
