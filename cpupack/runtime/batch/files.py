"""Inputs that are files below a directory: images, or arrays for models that take these."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images.paths import check_regular
from ..items import ARCHIVE
from ..names import printable
from ..signature import Signature
from .shards import Item, Listing, Shard

ARRAY = ".npy"
_NAMED = 5


def suffixes(signature: Signature) -> frozenset[str]:
    """Return the endings of files that are inputs of a model, in lower case."""
    needed = [each for each in signature.inputs if each.default is None]
    found = {ARCHIVE} if signature.takes_rows else set()
    if len(needed) == 1 or len(signature.inputs) == 1:
        spec = needed[0] if needed else signature.inputs[0]
        if spec.preprocess is not None:
            found |= _image_suffixes()
        if spec.preprocess is None or signature.takes_rows:
            found.add(ARRAY)
    return frozenset(found)


def list_files(directory: Path, wanted: frozenset[str], rows_per_file: int) -> tuple[Listing, Counter[str]]:
    """Return every file below ``directory`` with one of the endings, in the order of its path, in shards.

    Hidden files and directories are left out. The counter says what else was left out, by its ending. Raises InputError
    where a directory cannot be read.
    """
    digest, left_out, names, shards = hashlib.sha256(), Counter[str](), list[str](), list[Shard]()
    count = 0
    for name, size in _walk(directory, "", wanted, left_out):
        digest.update(f"{os.fsencode(name).hex()} {size}\n".encode())
        names.append(name)
        count += 1
        if len(names) == rows_per_file:
            shards.append(Shard(len(shards), tuple(names), len(names)))
            names = []
    if names:
        shards.append(Shard(len(shards), tuple(names), len(names)))
    return Listing(tuple(shards), count, digest.hexdigest()), left_out


def no_files(directory: Path, wanted: frozenset[str], left_out: Counter[str]) -> InputError:
    """Return the error for a directory without inputs."""
    others = in_words(left_out)
    endings = ", ".join(sorted(wanted)[:_NAMED]) + (" ..." if len(wanted) > _NAMED else "")
    return InputError(
        f"--from {directory}: no file in it is an input of this model ({endings}), and none is Parquet; "
        + (f"it holds {others}" if others else "it is empty")
    )


def in_words(left_out: Counter[str]) -> str:
    """Return what was left out: ``12 .txt, 1 .xml``."""
    named = [f"{number:,} {kind}" for kind, number in left_out.most_common(_NAMED)]
    return ", ".join(named) + (" and others" if len(left_out) > _NAMED else "")


def items_of(directory: Path, shard: Shard) -> Iterator[Item]:
    """Yield the inputs of a shard. An image is read as bytes, so that messages are the same wherever it lies."""
    for name in shard.names:
        yield Item(printable(name), _Reader(directory / name))


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> Any:
        if self._path.suffix.lower() in (ARRAY, ARCHIVE):
            return self._path
        check_regular(str(self._path))
        from ..images.preprocess import read_image  # here: models that take arrays do not need it

        return read_image(self._path)[0]


def _walk(directory: Path, below: str, wanted: frozenset[str], left_out: Counter[str]) -> Iterator[tuple[str, int]]:
    """Yield (path below the directory, size in bytes) in order, one directory in memory at a time."""
    folder = directory / below
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"--from {folder}: {error.strerror or error}") from error
    for entry in found:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(directory, name, wanted, left_out)
            continue
        if entry.is_dir():  # a link may lead to where it lies, for ever
            left_out["links to directories"] += 1
            continue
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each of millions takes minutes
        if suffix not in wanted:
            left_out[suffix or "files without an ending"] += 1
            continue
        try:
            size = entry.stat().st_size
        except OSError:  # a link to nothing: its row will say so
            size = -1
        yield name, size


def _image_suffixes() -> frozenset[str]:
    from ..images.formats import suffixes as of_images  # here: models that take arrays do not need it

    return of_images()
