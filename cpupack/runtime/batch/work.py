"""The work of one process: shards in, files out, a report on each."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from ..errors import InputError
from ..runner import Runner
from . import files, lines, tables
from .results import schema_of, table_of
from .shards import Item, Shard
from .store import Run, Store
from .stream import Stream

_EXAMPLES = 3


@dataclass(frozen=True)
class Job:
    """What every process of a run must know beside the model.

    ``columns`` are those of Parquet, or the fields of lines of text; None where the inputs are files.
    """

    source: Path
    target: Path
    run: Run
    columns: tables.Columns | lines.Fields | None = None
    id_type: pa.DataType = pa.string()  # noqa: RUF009 - a constant, which nothing changes

    @property
    def texts(self) -> bool:
        """Whether the inputs are texts."""
        return isinstance(self.columns, lines.Fields) or (self.columns is not None and self.columns.texts)

    @property
    def store(self) -> Store:
        return Store(self.target, self.run)


@dataclass(frozen=True)
class Report:
    """What became of one shard: its rows, those without a result with ``examples``, and when it was worked on.

    The times are in seconds since 1970, on the clock of ``host``.
    """

    shard: int
    rows: int
    unreadable: int
    examples: tuple[str, ...]
    begin_s: float
    end_s: float
    host: str


def work(runner: Runner, stream: Stream, job: Job, shards: Sequence[Shard]) -> Iterator[Report]:
    """Write the file of each shard, and yield a report when it is there.

    The shards are one stream: the next one is read while the one before is computed. Raises InputError when the inputs
    have changed since they were listed.
    """
    store = job.store
    task, signature = runner.answers.spec, runner.signature
    schema = schema_of(task, signature, job.id_type, store.metadata(), texts=job.texts)
    outcomes = stream.outcomes(item for shard in shards for item in items_of(runner, job, shard))
    begin_s = time.time()
    for shard in shards:
        rows = list(islice(outcomes, shard.rows))
        store.write(shard, table_of(task, signature, rows, schema))
        bad = [each for each in rows if each.error is not None]
        examples = tuple(f"{each.id}: {each.error}" for each in bad[:_EXAMPLES])
        end_s = time.time()
        yield Report(shard.number, len(rows), len(bad), examples, begin_s, end_s, socket.gethostname())
        begin_s = end_s


def items_of(runner: Runner, job: Job, shard: Shard) -> Iterator[Item]:
    if job.columns is None:
        yield from files.items_of(job.source, shard)
        return
    if isinstance(job.columns, lines.Fields):
        yield from _counted(lines.items_of(job.source, shard, job.columns), job, shard)
        return
    yield from _counted(tables.items_of(job.source, shard, job.columns, runner.signature), job, shard)


def _counted(items: Iterator[Item], job: Job, shard: Shard) -> Iterator[Item]:
    count = 0
    for item in items:
        count += 1
        yield item
    if count != shard.rows:
        raise InputError(f"{job.source}: {shard.names[0]} has changed while it was read; start anew")
