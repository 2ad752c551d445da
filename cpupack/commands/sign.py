"""``cpupack sign``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cpupack.commands.options import JSON, WHEEL
from cpupack.errors import UsageError


@click.command(short_help="Sign a wheel, and the statement about where it comes from.")
@WHEEL
@click.option(
    "--key",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Ed25519 private key in PEM. The password of an encrypted one is asked for.",
)
@click.option(
    "--lock",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The lock of the build: the statement then names every file and version that took part.",
)
@click.option(
    "--builder",
    metavar="URI",
    default="urn:cpupack:local",
    show_default=True,
    help="Who built the wheel, for the statement.",
)
@JSON
def sign(wheel: Path, key: Path, lock: Path | None, builder: str, as_json: bool) -> None:
    """Verify WHEEL, then write WHEEL.sig and WHEEL.intoto.jsonl beside it.

    WHEEL.sig is a detached Ed25519 signature over the wheel's bytes. WHEEL.intoto.jsonl is an in-toto statement with
    SLSA provenance in a DSSE envelope, signed with the same key. Needs cpupack[sign].
    """
    from cpupack.signing import provenance_path, sign_wheel, signature_path
    from cpupack.wheel.foreign import facts_of

    if ":" not in builder or any(each.isspace() for each in builder):
        raise UsageError(f"--builder {builder!r} is no URI", hint="such as https://ci.example.org/pipelines/7")
    with facts_of(wheel):
        done = sign_wheel(wheel, key, _password, lock=lock, builder=builder)
    paths = [signature_path(wheel), provenance_path(wheel)]
    if as_json:
        click.echo(
            json.dumps({"sha256": done.sha256, "key_id": done.key_id, "files": [str(path) for path in paths]}, indent=2)
        )
        return
    for path in paths:
        click.echo(path)


def _password() -> str:
    if not sys.stdin.isatty():
        raise UsageError("--key is encrypted, and there is no terminal to ask for its password")
    answer: str = click.prompt("password of --key", hide_input=True, err=True)
    return answer
