"""What a run will do, before a model is loaded: which inputs there are, and which of them are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..errors import InputError
from ..manifest import Manifest, read_manifest, root_hash
from ..plan import decide as planning
from ..plan.decide import Plan
from ..signature import signature_of
from ..tasks.answers import task_of
from ..tasks.spec import CLASSIFICATION
from ..text.spec import spec_of
from ..text.texts import JSON_LINES
from . import files, lines, tables
from .options import DEFAULT_TOP_K, BatchOptions
from .shards import Listing, Shard
from .store import Run
from .work import Job

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """The job, its shards in all, and those that are left to do."""

    manifest: Manifest
    job: Job
    shards: tuple[Shard, ...]
    left: tuple[Shard, ...]

    @property
    def done_rows(self) -> int:
        """Inputs that an earlier start of this run has done."""
        return self.job.run.inputs - self.left_rows

    @property
    def left_rows(self) -> int:
        """Inputs that are left to do."""
        return sum(shard.rows for shard in self.left)


def prepare(package_dir: Path, options: BatchOptions, say: Say) -> Prepared:
    """List the inputs and open the output directory. Raises InputError before anything is written."""
    manifest = read_manifest(package_dir)
    if options.top_k is not None and task_of(manifest).kind != CLASSIFICATION:
        raise InputError(f'--top-k is for classifications; this model\'s task is "{task_of(manifest).kind}"')
    source = options.source.resolve()
    listing, columns, ids = _listed(source, options, manifest, say)
    run = Run(
        name=manifest.name,
        version=manifest.version,
        package_digest=root_hash(manifest),
        inputs=listing.count,
        inputs_digest=listing.digest,
        files=len(listing.shards),
        rows_per_file=options.rows_per_file,
        top_k=options.top_k or DEFAULT_TOP_K,
    )
    job = Job(source, options.target.resolve(), run, columns, ids)
    job.store.open()
    return Prepared(manifest, job, listing.shards, tuple(job.store.missing(listing.shards)))


def _listed(
    source: Path, options: BatchOptions, manifest: Manifest, say: Say
) -> tuple[Listing, tables.Columns | lines.Fields | None, pa.DataType]:
    """Return the inputs, where they are, and the type of their ids. Raises InputError."""
    signature, takes_text = signature_of(manifest), spec_of(manifest) is not None
    wanted = files.suffixes(signature)
    texts = lines.text_files(source) if takes_text or source.is_file() else []
    if texts and not takes_text:
        raise InputError(f"--from {source}: {manifest.name} takes no text")
    if texts:
        if source.is_dir() and tables.parquet_files(source):
            raise InputError(f"--from {source} holds both Parquet files and texts; name a directory of one kind")
        fields = lines.Fields(options.column, options.id_column)
        if fields != lines.Fields() and any(each.suffix.lower() not in JSON_LINES for each in texts):
            raise InputError(f"--column and --id are for Parquet and JSON lines, and {source} holds lines of text")
        return lines.list_lines(source, texts, fields, options.rows_per_file), fields, Job.id_type
    if source.is_dir() and options.column is None and options.id_column is None:
        listing, left_out = files.list_files(source, wanted, options.rows_per_file)
        if listing.count and left_out[tables.SUFFIX]:
            raise InputError(f"--from {source} holds both Parquet files and others; name a directory of one kind")
        if not listing.count and not left_out[tables.SUFFIX]:
            raise files.no_files(source, wanted, left_out)
        if listing.count:
            if left_out:
                say(f"left out: {files.in_words(left_out)}")
            return listing, None, Job.id_type
    paths = tables.parquet_files(source)
    if not paths:
        raise InputError(f"--column and --id are for Parquet, and {source} holds no file that ends in .parquet")
    columns = tables.choose_columns(paths, signature, options.column, options.id_column, texts=takes_text)
    return (
        tables.list_rows(source, paths, columns, options.rows_per_file),
        columns,
        tables.id_type(paths, columns),
    )


def plan_of(manifest: Manifest, options: BatchOptions) -> Plan:
    """Return how one process runs here: for throughput, whatever the package was tuned for."""
    return planning.decide(
        manifest,
        threads=options.threads,
        instances=options.instances,
        batch_size=options.batch_size,
        objective="throughput",
    )
