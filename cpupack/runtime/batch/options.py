"""The options of ``NAME batch``: what they are, and which values are possible."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from ..arguments import MOST_SAMPLES
from ..bench.options import positive_int, require_positive
from ..errors import InputError

DEFAULT_ROWS_PER_FILE = 1000
DEFAULT_TOP_K = 5


@dataclass(frozen=True)
class BatchOptions:
    """What to run over and how. None leaves a number to the plan. Raises InputError for a value that is impossible.

    ``address`` is that of a Ray cluster, None for this process alone.
    """

    source: Path
    target: Path
    column: str | None = None
    id_column: str | None = None
    top_k: int | None = None
    rows_per_file: int = DEFAULT_ROWS_PER_FILE
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    address: str | None = None
    baseline: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "rows_per_file", "threads", "instances", "batch_size"):
            require_positive("--" + name.replace("_", "-"), getattr(self, name))
        if self.rows_per_file > MOST_SAMPLES:
            raise InputError(f"--rows-per-file {self.rows_per_file}: at most {MOST_SAMPLES}")
        if not self.source.exists():
            url = "; a URL is no path: mount the bucket, or list it as Parquet" if ":/" in str(self.source) else ""
            raise InputError(f"--from {self.source}: no such file or directory{url}")
        if self.target.is_file():
            raise InputError(f"--to {self.target} is a file; name a directory, in which the files will be")
        if self.target.resolve().is_relative_to(self.source.resolve()):
            raise InputError(f"--to {self.target} lies in --from {self.source}; choose a directory outside of it")
        if self.address is not None and "://" in self.address:
            raise InputError(
                f"--address {self.address}: a client outside of the cluster cannot run this; start it on a node of the "
                "cluster with --address auto, for example with `ray job submit`"
            )
        if self.address is None and not self.baseline:
            raise InputError("--no-baseline is for --address: one process is the baseline itself")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``NAME batch``."""
    add = parser.add_argument
    add(
        "--from", type=Path, required=True, dest="source", metavar="PATH",
        help="a directory of files, a Parquet file or a directory of them; of texts also .txt and .jsonl files",
    )  # fmt: skip
    add("--to", type=Path, required=True, dest="target", metavar="DIR", help="directory for the Parquet files")
    add(
        "--column",
        metavar="NAME",
        help="column of Parquet, or field of JSON lines, with the inputs (default: the only one that can be)",
    )
    add("--id", dest="id_column", metavar="NAME", help="column or field with ids (default: id, else file and row)")
    add("--top-k", type=positive_int, metavar="K", help="classes of a classification (default: 5)")
    add(
        "--rows-per-file", type=positive_int, default=DEFAULT_ROWS_PER_FILE, metavar="N",
        help="inputs of one file of the output (default: 1000); what a crash costs at most, for each process",
    )  # fmt: skip
    add(
        "--address", metavar="ADDRESS",
        help="run on a Ray cluster: auto for the one of this node, HOST:PORT, or local to start one here "
        "(default: this process alone)",
    )  # fmt: skip
    add("--threads", type=positive_int, metavar="N", help="threads of one instance")
    add("--instances", type=positive_int, metavar="N", help="copies of the model in one process")
    add("--batch-size", type=positive_int, metavar="N", help="inputs a call (default: the plan's)")
    add(
        "--no-baseline", action="store_false", dest="baseline",
        help="with --address: do not measure one process alone first",
    )  # fmt: skip


def from_arguments(args: argparse.Namespace) -> BatchOptions:
    """Return the options that ``args`` hold (of a parser with ``add_arguments``). Raises InputError."""
    return BatchOptions(
        source=args.source, target=args.target, column=args.column, id_column=args.id_column, top_k=args.top_k,
        rows_per_file=args.rows_per_file, threads=args.threads, instances=args.instances, batch_size=args.batch_size,
        address=args.address, baseline=args.baseline,
    )  # fmt: skip
