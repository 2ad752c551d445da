"""The command line: the only place that prints or exits. Torch is imported inside the commands that need it."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cpupack import __version__
from cpupack.commands.compare import compare
from cpupack.commands.report import report
from cpupack.commands.sensitivity import sensitivity
from cpupack.errors import CpupackError, RecipeError, UsageError
from cpupack.interrupts import import_torch, install_handlers

if TYPE_CHECKING:
    from cpupack.recipe import LoadedRecipe

_RECIPES = click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...", type=click.Path(path_type=Path))
_RECIPE = click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe key, e.g. calibration.samples=64.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Show warnings and the answer only.")


class _InterruptedError(Exception):
    """A signal asked to stop. click would print an empty line for KeyboardInterrupt and forget which signal it was."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise _InterruptedError(*(interrupt.args or (signal.SIGINT,))) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cpupack")
def cli() -> None:
    """Turn a PyTorch model into a tuned, verified INT8 wheel for CPUs.

    A recipe (TOML) names the model, its calibration data and the target CPU; `cpupack build` makes the wheel.
    """


cli.add_command(compare)
cli.add_command(report)
cli.add_command(sensitivity)


@cli.command()
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


@cli.command()
@_RECIPES
@_SET
@click.option("--deep", is_flag=True, help="Also load the model and resolve every module name.")
@_JSON
def check(recipes: tuple[Path, ...], overrides: tuple[str, ...], deep: bool, as_json: bool) -> None:
    """Validate recipes and report every problem at once."""
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
                _print_error(error)
        else:
            if not as_json:
                click.echo(f"{path}: ok" + (f" ({answer['found']})" if deep else ""))
        answers.append(answer)
    if as_json:
        click.echo(json.dumps({"recipes": answers}, indent=2))
    click.get_current_context().exit(worst)


def _check_deep(loaded: LoadedRecipe) -> dict[str, Any]:
    import_torch()
    from cpupack.pipeline import check_model
    from cpupack.progress import SilentProgress

    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        model, fused = check_model(loaded, SilentProgress())
    return {
        "parameters": model.parameters,
        "macs": model.macs,
        "output_shape": list(model.output_shape),
        "fused_chains": len(fused.chains),
        "found": f"{model.parameters:,} parameters, {model.macs:,} MACs, {len(fused.chains)} fused chains",
    }


@cli.command()
@_RECIPES
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
@_SET
@click.option(
    "--no-tune",
    is_flag=True,
    help="Skip the search for threads and batch size; the runner plans from its host.",
)
@_QUIET
@_JSON
def build(
    recipes: tuple[Path, ...],
    targets: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    no_tune: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build wheels. The last lines of stdout are their paths, one a line."""
    loaded = _load_recipes(recipes, overrides)

    import_torch()
    from rich.console import Console

    from cpupack.console import ConsoleProgress, show_warning
    from cpupack.pipeline import BuildOptions
    from cpupack.pipeline import build as build_wheels
    from cpupack.summary import summary_dict, summary_text, times_text

    console = Console(stderr=True)
    options = BuildOptions(out=out, cpus=tuple(dict.fromkeys(targets)), tune=not no_tune)
    answers = []
    for each in loaded:
        progress = ConsoleProgress(console, quiet=quiet)
        with redirect_stdout(sys.stderr):  # the recipe may name code that prints
            results = build_wheels(each, options, progress)
        for result in results:
            answers.append(summary_dict(result, progress.times_s, progress.warnings))
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


def _load_recipes(paths: Sequence[Path], overrides: Sequence[str]) -> list[LoadedRecipe]:
    """Load every recipe before anything is built, and report the problems of all of them."""
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
        hint = f"mend them and run `cpupack check {' '.join(map(str, paths))}`"
        raise RecipeError(
            "\n".join(error.message for error in failed), hint=failed[0].hint if len(failed) == 1 else hint
        )
    return list(loaded.values())


@cli.command()
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option("--layers", is_flag=True, help="Show what runs each layer, its scale and its SQNR, and what stayed FP32.")
@_JSON
def inspect(wheel: Path, layers: bool, as_json: bool) -> None:
    """Show what is inside a wheel, and check its hashes."""
    from cpupack.wheel.inspect import format_inspection
    from cpupack.wheel.inspect import inspect as inspect_wheel

    if layers:
        _inspect_layers(wheel, as_json)
        return
    found = inspect_wheel(wheel)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else format_inspection(found))
    if found.problems:
        raise UsageError(f"{wheel}: {len(found.problems)} files are not what was built", hint="build or copy it again")


def _inspect_layers(wheel: Path, as_json: bool) -> None:
    from cpupack.wheel.layers import format_layers
    from cpupack.wheel.report import read_report

    found = read_report(wheel).facts.get("layers")
    if not found:
        raise UsageError(f"{wheel} does not say what runs its layers", hint="build it again with this cpupack")
    click.echo(json.dumps({"layers": found}, indent=2) if as_json else format_layers(found))


@cli.command()
@_RECIPE
@_SET
@_JSON
def fusions(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the fusible chains as TOML to paste into a recipe."""
    from cpupack.recipe.file import load_recipe

    loaded = load_recipe(recipe, overrides)

    import_torch()
    from cpupack.pipeline import fusible_chains
    from cpupack.progress import SilentProgress
    from cpupack.templates import render

    with redirect_stdout(sys.stderr):  # the recipe may name code that prints
        chains = fusible_chains(loaded, SilentProgress())
    if as_json:
        click.echo(json.dumps({"modules": [list(chain) for chain in chains]}, indent=2))
    else:
        click.echo(render("recipe/fuse.toml.j2", chains=[list(chain) for chain in chains]), nl=False)


@cli.command()
@_JSON
def doctor(as_json: bool) -> None:
    """Show what this host can build and run, and what is missing."""
    import_torch()
    from cpupack.doctor import collect, format_doctor

    facts = collect()
    click.echo(json.dumps(facts, indent=2, allow_nan=False) if as_json else format_doctor(facts))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of what happened.

    See ``errors.py``; an interrupt exits as a shell reports it, 130 for Ctrl-C.
    """
    install_handlers()
    try:
        code = cli.main(args=arguments, prog_name="cpupack", standalone_mode=False)
    except (_InterruptedError, click.exceptions.Abort) as error:
        _say_interrupted()
        sys.exit(128 + (error.signum if isinstance(error, _InterruptedError) else signal.SIGINT))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CpupackError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - the boundary: anything else is a bug, shown whole, exit code 1
        traceback.print_exc()
        click.echo("cpupack: this is a bug in cpupack; please report it with the traceback above", err=True)
        sys.exit(1)
    sys.exit(code or 0)


def _print_error(error: CpupackError) -> None:
    lines = error.message.splitlines()
    if isinstance(error, RecipeError) and len(lines) > 1:
        lines = [f"{len(lines)} problems", *(f"  {line}" for line in lines)]
    click.echo("\n".join([f"{_styled('error:', fg='red', bold=True)} {lines[0]}", *lines[1:]]), err=True)
    if error.hint is not None:
        click.echo(f"  {_styled('hint:', bold=True)} {error.hint}", err=True)


def _say_interrupted() -> None:
    # A terminal has just echoed ^C, and the cursor stands behind it.
    click.echo(("\n" if sys.stderr.isatty() else "") + "cpupack: interrupted", err=True)


def _styled(text: str, **style: Any) -> str:
    """Style a word for a terminal; click leaves it plain elsewhere, and NO_COLOR (no-color.org) everywhere."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


if __name__ == "__main__":
    main()
