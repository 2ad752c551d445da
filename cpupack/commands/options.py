"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

from cpupack.errors import UsageError

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


def check_html(html: Path | None) -> None:
    """Raise UsageError unless a page can be written at ``html``. Called before the work, so that it fails early."""
    if html is not None and not html.parent.is_dir():
        raise UsageError(
            f"--html {html}: {html.parent} is not a directory", hint="name a file in a directory that exists"
        )
