"""``cpupack bundle``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from cpupack.commands.options import JSON, WHEEL, Place
from cpupack.errors import UsageError


@click.command(short_help="Gather a wheel and all that it needs, to install it where there is no network.")
@WHEEL
@click.option(
    "--out",
    metavar="DIR",
    type=Place(),
    help="The directory to write, new or empty. The default is NAME-VERSION-bundle beside the wheel.",
)
@click.option("--python", metavar="VERSION", help="The Python to install it in, such as 3.11. The default is this one.")
@click.option(
    "--platform",
    metavar="TAG",
    help="The platform to install it on, such as manylinux_2_28_x86_64. The default is that of the wheel.",
)
@click.option("--extra", "extras", multiple=True, metavar="NAME", help="An extra of the wheel, e.g. serve; repeatable.")
@click.option("--pip-args", default="", metavar="TEXT", help="Options for pip, such as an index.")
@JSON
def bundle(
    wheel: Path,
    out: Path | None,
    python: str | None,
    platform: str | None,
    extras: tuple[str, ...],
    pip_args: str,
    as_json: bool,
) -> None:
    """Verify WHEEL and gather it with all that it requires: wheels/, requirements.txt with hashes, a Containerfile.

    On a host without a network, `pip install --no-index --require-hashes --find-links wheels -r requirements.txt`
    installs it. The last line of stdout is the directory.
    """
    from cpupack.bundle import BundleOptions, gather

    for extra in extras:
        if not extra.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"--extra {extra!r} is not the name of an extra")
    try:
        options = BundleOptions(python, platform, extras, tuple(shlex.split(pip_args)))
    except ValueError as error:
        raise UsageError(f"--pip-args: {error}") from error
    target = out or wheel.with_name("-".join(wheel.name.split("-")[:2]) + "-bundle")
    found = gather(wheel, target, options)
    if as_json:
        facts = {
            "directory": str(found.directory),
            "python": found.python,
            "platform": found.platform,
            "files": found.files,
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(found.directory)
