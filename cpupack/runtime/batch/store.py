"""The output directory: which run it is of, which files are there, and how a file gets there whole.

A file's name says which shard it is, and a file is moved to its name when it is whole. So a shard that is computed
twice is there once, and a run that was stopped goes on with the shards that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from ..files import UNREADABLE
from ..writing import whole_file
from .shards import Shard

RUN_NAME, DONE_NAME = "_run.json", "_SUCCESS"
"""What readers of Parquet directories ignore: the run that the files are of, and that it is complete."""
RUN_SCHEMA = 1
_HALF = ".part-"
_NAMED = 5


@dataclass(frozen=True)
class Run:
    """What makes two runs the same: the package, the inputs, and the options that show in the output.

    ``package_digest`` is the hash over the whole wheel, ``inputs_digest`` that of the inputs' names and sizes.
    """

    name: str
    version: str
    package_digest: str
    inputs: int
    inputs_digest: str
    files: int
    rows_per_file: int
    top_k: int
    schema: int = RUN_SCHEMA

    @property
    def digest(self) -> str:
        """One hash over all of it, which every file of the output has in its metadata."""
        return sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        """Return the file's text."""
        return json.dumps(asdict(self), indent=2) + "\n"


_TITLES = {
    "name": "package", "version": "version of the package", "package_digest": "build of the package",
    "inputs": "number of inputs", "inputs_digest": "inputs' names or sizes", "files": "number of files",
    "rows_per_file": "--rows-per-file", "top_k": "--top-k", "schema": "version of the format",
}  # fmt: skip


class Store:
    """The output directory of one run."""

    def __init__(self, directory: Path, run: Run) -> None:
        self.directory, self.run = directory, run

    def path(self, shard: Shard) -> Path:
        """Return where the rows of a shard go."""
        width = max(5, len(str(self.run.files)))
        return self.directory / f"part-{shard.number:0{width}}-of-{self.run.files:0{width}}.parquet"

    def open(self) -> None:
        """Make the directory for this run. Raises InputError where it holds anything else; then nothing is written."""
        directory = self.directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            found = sorted(path.name for path in directory.iterdir())
            if RUN_NAME in found:
                self.check()
                return
            if found:
                listed = ", ".join(found[:_NAMED]) + (" ..." if len(found) > _NAMED else "")
                raise InputError(f"--to {directory} holds files of something else ({listed}); choose a new directory")
            _write(directory / RUN_NAME, self.run.text().encode())
        except OSError as error:
            raise InputError(f"--to {directory} cannot be written: {error.strerror or error}") from error

    def check(self) -> None:
        """Raise InputError where the directory is not of this run."""
        path = self.directory / RUN_NAME
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}; choose a new directory") from error
        wanted = asdict(self.run)
        if found == wanted:
            return
        raw = found if isinstance(found, dict) else {}
        other = [_TITLES[key] for key, value in wanted.items() if raw.get(key) != value]
        raise InputError(
            f"--to {self.directory} holds the output of another run, which differs in the {', the '.join(other)}; "
            "choose a new directory, or delete that one"
        )

    def is_done(self, shard: Shard) -> bool:
        """Return whether the file of a shard is there and whole."""
        path = self.path(shard)
        try:
            metadata = pq.read_metadata(path)
        except (*UNREADABLE, pa.ArrowException):
            return False  # missing, or damaged: it is written anew
        kept = (metadata.metadata or {}).get(b"cpupack.run", b"")
        return bool(metadata.num_rows == shard.rows and kept == self.run.digest.encode())

    def missing(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards whose file is not there."""
        return [shard for shard in shards if not self.is_done(shard)]

    def write(self, shard: Shard, table: pa.Table) -> None:
        """Write the file of a shard. It appears whole or not at all. Raises InputError."""
        out = pa.BufferOutputStream()
        pq.write_table(table, out, compression="zstd")
        try:
            _write(self.path(shard), out.getvalue())
        except OSError as error:
            raise InputError(f"--to {self.directory} cannot be written: {error.strerror or error}") from error

    def finish(self) -> None:
        """Note that the run is complete, and delete what processes that were killed have left."""
        try:
            for path in self.directory.glob(f"{_HALF}*"):
                path.unlink(missing_ok=True)
            _write(self.directory / DONE_NAME, b"")
        except OSError as error:
            raise InputError(f"--to {self.directory} cannot be written: {error.strerror or error}") from error

    def metadata(self) -> dict[str, str]:
        """Return what every file says of its run."""
        return {"cpupack.package": f"{self.run.name} {self.run.version}", "cpupack.run": self.run.digest}


def _write(path: Path, data: Any) -> None:
    with whole_file(path, _HALF) as file:
        file.write(data)
