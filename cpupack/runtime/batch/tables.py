"""Inputs that are rows of Parquet files: encoded images or arrays in a column, and ids in another."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..arrays import why_unread
from ..errors import InputError
from ..files import UNREADABLE
from ..names import files_below
from ..signature import Signature
from ..tensor_spec import TensorSpec
from ..text.spec import TEXT, TEXT_PAIR
from .shards import Item, Listing, Shard

SUFFIX = ".parquet"
ID = "id"
_ROWS_AT_A_TIME = 64
_UNREADABLE = (*UNREADABLE, pa.ArrowException)


@dataclass(frozen=True)
class Columns:
    """Which columns hold the inputs, by the names of the model's inputs, and which holds ids (None: file and row).

    With ``texts`` they hold texts, by the names ``text`` and maybe ``text_pair``.
    """

    inputs: tuple[tuple[str, str], ...]
    id: str | None
    texts: bool = False


def parquet_files(source: Path) -> list[Path]:
    """Return the Parquet files that a path names: itself, or those below it, in the order of their paths.

    Raises InputError for a directory that cannot be read.
    """
    if source.is_file():
        return [source]
    found = (path for path in files_below(source) if path.suffix == SUFFIX)
    return sorted(path for path in found if not _hidden(path.relative_to(source)))


def list_rows(source: Path, files: Sequence[Path], columns: Columns, rows_per_file: int) -> Listing:
    """Return the rows of Parquet files in shards of whole row groups of one file. Raises InputError."""
    digest, shards, count = hashlib.sha256(repr(columns).encode()), list[Shard](), 0
    for path in files:
        opened = _opened(path)
        metadata = opened.metadata
        for column in (*(column for _, column in columns.inputs), *([columns.id] if columns.id else [])):
            if column not in opened.schema_arrow.names:
                raise InputError(f"{path} has no column {column}, as {files[0]} has")
        name = path.name if path == source else path.relative_to(source).as_posix()
        digest.update(f"{name} {path.stat().st_size} {metadata.num_rows}\n".encode())
        groups, rows, first = list[int](), 0, 0
        for number in range(metadata.num_row_groups):
            more = metadata.row_group(number).num_rows
            if groups and rows + more > rows_per_file:
                shards.append(Shard(len(shards), (name,), rows, tuple(groups), first))
                groups, first, rows = [], first + rows, 0
            groups.append(number)
            rows += more
        if rows:
            shards.append(Shard(len(shards), (name,), rows, tuple(groups), first))
        count += metadata.num_rows
    if not count:
        raise InputError(f"--from {source}: its Parquet files have no rows")
    return Listing(tuple(shards), count, digest.hexdigest())


def choose_columns(
    files: Sequence[Path], signature: Signature, column: str | None, id_column: str | None, *, texts: bool = False
) -> Columns:
    """Return the columns to read; with ``texts`` the model takes these, too.

    Raises InputError that lists the columns where it is not clear which ones.
    """
    schema = _opened(files[0]).schema_arrow
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    for option, name in (("--column", column), ("--id", id_column)):
        if name is not None and name not in schema.names:
            raise InputError(f"{option} {name}: {files[0]} has no such column; it has {listed}")
    ids = id_column or (ID if ID in schema.names and column != ID else None)
    if ids is not None and not _is_id(schema.field(ids).type):
        raise InputError(f"--id {ids}: the column holds {schema.field(ids).type}; ids are text or whole numbers")
    if texts and not {each.name for each in signature.inputs} & set(schema.names):
        return Columns(_text_columns(schema, column, ids, f"{files[0]} has {listed}"), ids, texts=True)
    needed = [each for each in signature.inputs if each.default is None] or [signature.inputs[0]]
    if len(needed) > 1:
        if column is not None:
            raise InputError("--column is for a model with one input; name the columns as the inputs are named")
        if missing := [each.name for each in needed if each.name not in schema.names]:
            raise InputError(f"{files[0]} has no column {', '.join(missing)}, an input of the model; it has {listed}")
        named = [each.name for each in signature.inputs if each.name in schema.names]
        return Columns(tuple((name, name) for name in named), ids)
    (spec,) = needed
    fitting = [column] if column else [f.name for f in schema if f.name != ids and _fits(f.type)]
    if len(fitting) != 1:
        raise InputError(
            f"{files[0]}: which column holds the inputs? It has {listed}; choose one with --column"
            if fitting
            else f"{files[0]}: no column holds encoded images or arrays; it has {listed}"
        )
    if not _fits(schema.field(fitting[0]).type):
        raise InputError(
            f"--column {fitting[0]} holds {schema.field(fitting[0]).type}; inputs are binary (encoded images or .npy "
            "files), a struct with a field `bytes`, or lists of numbers"
        )
    return Columns(((spec.name, fitting[0]),), ids)


def _text_columns(schema: pa.Schema, column: str | None, ids: str | None, has: str) -> tuple[tuple[str, str], ...]:
    """Return the columns of texts. Raises InputError, which says what the file ``has``."""
    strings = [each.name for each in schema if _is_string(each.type) and each.name != ids]
    if column is not None:
        if column not in strings:
            raise InputError(f"--column {column}: texts are strings; {has}")
        return ((TEXT, column),)
    if TEXT in strings:
        return ((TEXT, TEXT), *([(TEXT_PAIR, TEXT_PAIR)] if TEXT_PAIR in strings else []))
    if len(strings) != 1:
        raise InputError(f"which column holds the texts? Choose one with --column, or name it {TEXT}; {has}")
    return ((TEXT, strings[0]),)


def id_type(files: Sequence[Path], columns: Columns) -> pa.DataType:
    """Return the type of the ids in the output: that of the column, text for file and row."""
    if columns.id is None:
        return pa.string()
    found = _opened(files[0]).schema_arrow.field(columns.id).type
    return found if pa.types.is_integer(found) else pa.string()


def items_of(source: Path, shard: Shard, columns: Columns, signature: Signature) -> Iterator[Item]:
    """Yield the inputs of a shard. Raises InputError when the file cannot be read."""
    (name,) = shard.names
    path = source if source.is_file() else source / name
    wanted = [column for _, column in columns.inputs]
    number = shard.first_row
    specs = {each.name: each for each in signature.inputs}

    def reader(cells: list[tuple[str, pa.Scalar]]) -> Callable[[], Any]:
        if columns.texts:
            return _Texts({name: cell.as_py() for name, cell in cells})
        return _Cell([(specs[name], cell) for name, cell in cells], signature)

    try:
        read = list(dict.fromkeys([*wanted, columns.id or wanted[0]]))
        for batch in _opened(path).iter_batches(_ROWS_AT_A_TIME, row_groups=list(shard.row_groups), columns=read):
            ids = None if columns.id is None else batch.column(columns.id).to_pylist()
            cells = {column: batch.column(column) for column in wanted}
            for row in range(len(batch)):
                yield Item(
                    f"{name}#{number}" if ids is None else ids[row],
                    reader([(one, cells[column][row]) for one, column in columns.inputs]),
                )
                number += 1
    except _UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class _Texts:
    """Reads a text of one row, or a pair."""

    found: dict[str, str | None]

    def __call__(self) -> Any:
        if self.found[TEXT] is None:
            raise InputError("the text is null")
        return {name: value for name, value in self.found.items() if value is not None}


class _Cell:
    """Reads one row."""

    def __init__(self, cells: Sequence[tuple[TensorSpec, pa.Scalar]], signature: Signature) -> None:
        self._cells, self._signature = cells, signature

    def __call__(self) -> Any:
        found = {spec.name: cell_value(spec, _plain(cell)) for spec, cell in self._cells}
        return found if self._signature.takes_rows else found[self._cells[0][0].name]


def _plain(cell: pa.Scalar) -> Any:
    return cell.value.as_py() if isinstance(cell, pa.ExtensionScalar) and cell.is_valid else cell.as_py()


def cell_value(spec: TensorSpec, value: Any) -> Any:
    """Return one cell as ``Runner.load`` takes it: bytes of an image, or an array. Raises InputError.

    Lists of numbers may be flat or nested. For an image they are pixels of the model's size, 0 to 255, or, where they
    are fractions, the model's own floats.
    """
    if isinstance(value, dict) and "bytes" in value:  # as Hugging Face's datasets store images
        value = value["bytes"]
    if value is None:
        raise InputError("the value is null")
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return data if spec.preprocess is not None and not data.startswith(b"\x93NUMPY") else _npy(data)
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        raise InputError("the lists have different lengths") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"the value is no numbers, but {array.dtype}")
    return shaped(spec, array)


def shaped(spec: TensorSpec, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return numbers as one input: in its shape where they were flat, of its dtype. Raises InputError."""
    pixels = spec.pixel_shape is not None and array.dtype.kind in "iu"
    if pixels:
        if array.size and not 0 <= array.min() <= array.max() <= 255:
            raise InputError(f"pixels are 0 to 255, and these are {array.min()} to {array.max()}")
        array = array.astype(np.uint8, copy=False)
    elif spec.dtype == "float32":
        array = array.astype(np.float32, copy=False)
    shape = spec.pixel_shape if pixels and spec.pixel_shape is not None else spec.shape
    return array.reshape(shape) if array.ndim <= 1 and array.size == math.prod(shape) else array


def _npy(data: bytes) -> Any:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"the bytes are no .npy file of numbers: {why_unread(error)}") from error


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except _UNREADABLE as error:
        raise InputError(f"{path} is not a Parquet file that can be read: {error}") from error


def _fits(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return True
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_id(kind: pa.DataType) -> bool:
    return _is_string(kind) or bool(pa.types.is_integer(kind))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)
