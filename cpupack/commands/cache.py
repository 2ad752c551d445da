"""``cpupack cache``."""

from __future__ import annotations

import json

import click

from cpupack.commands.options import JSON
from cpupack.errors import UsageError
from cpupack.interrupts import import_torch


@click.group(short_help="List or remove what builds keep for the next build.")
def cache() -> None:
    """List or remove what builds keep for the next build: captured graphs, statistics, FP32 outputs, races.

    An entry is used only where nothing that it depends on has changed. Removing one costs time, nothing else.
    """


@cache.command("ls")
@JSON
def list_entries(as_json: bool) -> None:
    """List the entries, the last used first."""
    import_torch()
    from cpupack.cache import user_store
    from cpupack.cache.store import age_text

    store = user_store()
    entries = [] if store is None else store.entries()
    if as_json:
        listed = [
            {
                "stage": each.stage,
                "package": each.label,
                "key": each.key,
                "size_bytes": each.size_bytes,
                "used_s": round(each.used_s, 3),
                "path": str(each.path),
            }
            for each in entries
        ]
        directory = None if store is None else str(store.directory)
        click.echo(json.dumps({"directory": directory, "entries": listed}, indent=2))
        return
    for each in entries:
        size = f"{each.size_bytes / 1e6:,.1f} MB"
        click.echo(f"{each.stage:<9}  {each.key[:12]}  {size:>12}  {age_text(each.used_s):<14}  {each.label}")
    total = sum(each.size_bytes for each in entries) / 1e6
    where = "no directory: this user has no home" if store is None else store.directory
    click.echo(f"{len(entries)} entr{'y' if len(entries) == 1 else 'ies'}, {total:,.1f} MB in {where}")


@cache.command()
@click.option("--package", metavar="NAME", help="Remove only the entries of this package.")
def clear(package: str | None) -> None:
    """Remove all entries."""
    import_torch()
    from cpupack.cache import user_store

    store = user_store()
    try:
        gone = [] if store is None else store.clear(package)
    except OSError as error:
        raise UsageError(f"cannot remove {error.filename}: {error.strerror or error}") from error
    freed = sum(each.size_bytes for each in gone) / 1e6
    click.echo(f"{len(gone)} entr{'y' if len(gone) == 1 else 'ies'} removed, {freed:,.1f} MB")
