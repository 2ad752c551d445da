"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from cpupack.errors import UsageError
from cpupack.scratch import write_whole


class Finite(click.FloatRange):
    """A number in a range. NaN, which no bound stops, and infinity are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Place(click.Path):
    """A path to write to. An empty one, of a variable that is not set, is refused: it would mean this directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if value == "":
            self.fail("the path is empty.", param, ctx)
        return super().convert(value, param, ctx)


RECIPES = click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...", type=click.Path(path_type=Path))
RECIPE = click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
WHEEL = click.argument("wheel", type=click.Path(path_type=Path))
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe key, e.g. calibration.samples=64.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only warnings and the result.")
TARGETS = click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(["x86_64", "aarch64"]),
    help="Build for this CPU only; repeatable.",
)
NO_TUNE = click.option(
    "--no-tune",
    is_flag=True,
    help="Skip the search for threads and batch size. The runner then chooses them on its own host.",
)
NO_CACHE = click.option(
    "--no-cache",
    is_flag=True,
    help="Do all the work, and keep nothing of it for the next time. So does CPUPACK_NO_CACHE=1.",
)
CACHE_GIB = click.option(
    "--cache-gib",
    type=Finite(min=0, max=1e6, min_open=True),
    default=10.0,
    show_default=True,
    envvar="CPUPACK_CACHE_GIB",
    show_envvar=True,
    help="What the cache of all builds may take, in GiB. The entries that were not used for longest go first.",
)


def check_html(html: Path | None) -> None:
    """Raise UsageError unless a page can be written at ``html``. Called before the work, so that it fails early."""
    if html is not None and not html.parent.is_dir():
        raise UsageError(
            f"--html {html}: {html.parent} is not a directory", hint="name a file in a directory that exists"
        )


def write_html(path: Path, text: str) -> None:
    """Write a page, whole or not at all. Raises UsageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", hint="name another place with --html or --out"
        ) from error
