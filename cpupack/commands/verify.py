"""``cpupack verify``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cpupack.commands.options import JSON, WHEEL
from cpupack.errors import VerificationError


@click.command(short_help="Check the signature of a wheel, then every file in it.")
@WHEEL
@click.option(
    "--key", required=True, metavar="FILE", type=click.Path(path_type=Path), help="Ed25519 public key in PEM."
)
@click.option(
    "--signature", metavar="FILE", type=click.Path(path_type=Path), help="The signature. The default is WHEEL.sig."
)
@click.option("--provenance", is_flag=True, help="Fail where there is no WHEEL.intoto.jsonl, too.")
@JSON
def verify(wheel: Path, key: Path, signature: Path | None, provenance: bool, as_json: bool) -> None:
    """Check the signature of WHEEL, its provenance, and then all that `inspect --verify` checks.

    The signature is checked over the bytes of the file, before the wheel is opened. Exit code 6 if anything does not
    hold. Needs cpupack[sign].
    """
    from cpupack.signing import verify_signature
    from cpupack.wheel.verify import format_verified, verify_wheel

    signed = verify_signature(wheel, key, signature=signature, needs_provenance=provenance)
    found = verify_wheel(wheel)
    if as_json:
        facts = {**found.to_dict(), "sha256": signed.sha256, "key_id": signed.key_id, "provenance": signed.statement}
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(f"signed by {signed.key_id}\n{format_verified(found)}")
        click.echo(_provenance(signed.statement))
    if found.problems:
        raise VerificationError(
            f"{wheel} is signed, but is not as it was built", hint="ask who signed it to build it again"
        )


def _provenance(statement: dict[str, object] | None) -> str:
    if statement is None:
        return "provenance: none beside the wheel"
    predicate: dict[str, dict[str, dict[str, object]]] = statement["predicate"]  # type: ignore[assignment]  # was checked
    count = len(predicate["buildDefinition"]["resolvedDependencies"])
    return f"provenance: built by {predicate['runDetails']['builder']['id']} from {count} named materials"
