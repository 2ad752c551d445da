"""``cpupack compare``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpupack.commands.building import open_cache
from cpupack.commands.options import CACHE_GIB, NO_CACHE, QUIET, SET, Finite, Place, check_html, write_html
from cpupack.comparison.options import INPUTS, MIXED, CompareOptions, check_peers, settle
from cpupack.errors import UsageError
from cpupack.interrupts import import_torch
from cpupack.peers import PEERS
from cpupack.runtime.plain import to_plain
from cpupack.scratch import scratch_directory

if TYPE_CHECKING:
    from cpupack.comparison.result import Comparison


@click.command(short_help="Compare a package with other engines under equal conditions.")
@click.argument("recipe_or_wheel", metavar="RECIPE_OR_WHEEL", type=click.Path(path_type=Path))
@click.option("--against", metavar="ENGINE,...", help=f"Engines to compare with: {','.join(PEERS)} (default: all).")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="With a wheel: the recipe that it was built from. The default is the recipe inside the wheel; its relative "
    "paths then start at the current directory.",
)
@SET
@click.option(
    "--input",
    "input_kind",
    type=click.Choice(["auto", *INPUTS]),
    default="auto",
    show_default=True,
    help="Input of every engine: normalized floats, or pixels that the engine must normalize. auto means pixels for "
    f"models of images. {MIXED} gives cpupack pixels and the other engines ready floats, which is their best case.",
)
@click.option(
    "--end-to-end",
    "files",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Also measure the way from the JPEG files in DIR to outputs. The other engines decode with Pillow.",
)
@click.option(
    "--budget-s",
    type=Finite(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Time to measure in each engine's search for its best setting. Starting and compiling do not count.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Rounds of each mode.")
@click.option(
    "--round-s",
    type=Finite(min=0, min_open=True),
    default=1.5,
    show_default=True,
    help="Measured time of one engine in one round.",
)
@click.option("--html", metavar="FILE", type=Place(), help="Also write a page.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with every raw round on stdout.")
@NO_CACHE
@CACHE_GIB
@QUIET
def compare(
    recipe_or_wheel: Path,
    against: str | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
    input_kind: str,
    files: Path | None,
    budget_s: float,
    rounds: int,
    round_s: float,
    html: Path | None,
    as_json: bool,
    no_cache: bool,
    cache_gib: float,
    quiet: bool,
) -> None:
    """Measure a package side by side with other engines, on the same cores, model and data.

    A RECIPE is first built into a temporary directory, as `cpupack build` does. A WHEEL is measured as it is. A wheel
    holds no FP32 model, so the models of the other engines are made from its recipe: the recipe that --recipe names, or
    the recipe inside the wheel if the current directory has every file that it names. The FP32 outputs of that recipe
    must equal those that the wheel was built with.

    Each engine quantizes the same FP32 model with the same calibration data, by the method that its own documentation
    recommends. It serves in its own process with its own best threads x instances x batch. Rounds are interleaved,
    every process that is not being measured is stopped, and the ratios are medians of paired rounds. An engine that
    is not installed or that fails gets a row with the reason. An engine that --against names must be installed
    (pip install 'cpupack[compare]').
    """
    names = tuple(dict.fromkeys(name.strip() for name in against.split(","))) if against is not None else PEERS
    check_html(html)

    options = CompareOptions(
        against=names,
        explicit=against is not None,
        budget_s=budget_s,
        rounds=rounds,
        round_s=round_s,
        input_kind=input_kind,
        files=files,
    )
    check_peers(options)
    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        found = _run(
            recipe_or_wheel, recipe, overrides, options, cache_gib=None if no_cache else cache_gib, quiet=quiet
        )

    from cpupack.comparison.text import format_table, render_html

    if html is not None:
        write_html(html, render_html(found))
    click.echo(json.dumps(to_plain(found.to_dict()), indent=2, allow_nan=False) if as_json else format_table(found))


def _run(
    source: Path,
    recipe: Path | None,
    overrides: tuple[str, ...],
    options: CompareOptions,
    *,
    cache_gib: float | None,
    quiet: bool,
) -> Comparison:
    from cpupack.recipe.file import load_recipe

    wheel = source.suffix == ".whl"
    if recipe is not None and not wheel:
        raise UsageError(f"--recipe is only for wheels, and {source} is not a wheel", hint="leave --recipe out")
    loaded = None if wheel else load_recipe(source, overrides)
    if loaded is not None:
        options = settle(options, loaded.recipe)

    import_torch()
    from rich.console import Console

    from cpupack.comparison.result import result
    from cpupack.comparison.run import measure
    from cpupack.comparison.subject import from_recipe, from_wheel
    from cpupack.console import ConsoleProgress

    progress = ConsoleProgress(Console(stderr=True), quiet=quiet)
    caching = partial(open_cache, cache_gib=cache_gib, progress=progress)
    with scratch_directory("cpupack-compare-") as work:
        if loaded is not None:
            subject = from_recipe(loaded, work, progress, caching(loaded))
        else:
            subject = from_wheel(source, recipe, overrides, work, progress, caching)
            options = settle(options, subject.recipe.recipe)
        return result(subject, options, measure(subject, options, work, progress))
