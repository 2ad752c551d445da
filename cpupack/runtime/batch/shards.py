"""A part of the inputs, which becomes one file of the output, and the inputs in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Id = str | int | None
"""None where the column of ids has a null."""


@dataclass(frozen=True)
class Item:
    """One input: its id, and what reads it. ``read`` returns what ``Runner.load`` takes, or raises InputError."""

    id: Id
    read: Callable[[], Any]


@dataclass(frozen=True)
class Shard:
    """Inputs that become one file of the output, the ``number``-th.

    ``names`` are files below the directory of inputs; of Parquet it is one file, and ``row_groups`` those of its row
    groups that belong here, the first of which begins at ``first_row``. Of texts it is one file, read from
    ``first_byte`` on, before which it has ``first_row`` lines. ``rows`` are the inputs in all.
    """

    number: int
    names: tuple[str, ...]
    rows: int
    row_groups: tuple[int, ...] = ()
    first_row: int = 0
    first_byte: int = 0


@dataclass(frozen=True)
class Listing:
    """All inputs: the shards, how many inputs they have, and a digest of their names and sizes."""

    shards: tuple[Shard, ...]
    count: int
    digest: str
