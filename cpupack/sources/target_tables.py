"""Targets in a table: ``csv:FILE.csv`` and ``jsonl:FILE.jsonl`` have a row for each image of a folder."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpupack.errors import CalibrationError
from cpupack.recipe.metrics import known_metric
from cpupack.sources.classes import labels_of
from cpupack.sources.request import Array, Request

FILE = "file"
"""What names the image in a JSON line."""
_OBJECT = '{"file": "a.jpg", "age": 41.5, "height": 180}'


class _Row(NamedTuple):
    """``where`` names the row for messages; ``cells`` are those of the columns."""

    where: str
    file: str
    cells: list[Any]


def read_table(kind: str, path: Path, names: Sequence[str], request: Request) -> Array:
    """Return the numbers ``(n, columns)`` of images in their order, or for embeddings the class ``(n,)`` as text.

    Raises CalibrationError that names file and row.
    """
    columns, rows = (_csv if kind == "csv" else _jsonl)(path, request)
    metric = known_metric(str(request.loaded.recipe.evaluation.metric))
    of_classes = metric is not None and metric.kind == "embedding"
    if of_classes and len(columns) != 1:
        raise error(
            request,
            f"{path} has the columns {', '.join(columns)}; {request.loaded.recipe.evaluation.metric} compares with one",
            "the class of each image, a number or a name",
        )
    of_points = metric is not None and metric.kind == "keypoints"
    in_order = _points_in_order if of_points else _order
    order = [0] if of_classes else in_order(columns, path, request)
    found: dict[str, list[Any]] = {}
    for row in rows:
        if row.file in found:
            raise error(request, f"{path}, {row.where}: {row.file} has a row before")
        if len(row.cells) != len(columns):
            raise error(request, f"{path}, {row.where}: {len(row.cells)} numbers for {len(columns)} columns")
        values = _classes(row, path, request) if of_classes else _numbers(row, columns, path, request, of_points)
        found[row.file] = [values[each] for each in order]
    check_short_names(path, names, found, request)
    for name in names:
        if name not in found and Path(name).name not in found:
            raise error(request, f"{path} has no row for {name}")
    table = [found.get(name, found.get(Path(name).name)) for name in names]
    return np.array(table)[:, 0] if of_classes else np.array(table, np.float64)


def _numbers(row: _Row, columns: Sequence[str], path: Path, request: Request, unknown: bool) -> list[float]:
    """Return the numbers of a row. With ``unknown`` an empty cell or a null is NaN."""
    values = [_number(each) for each in row.cells]
    given = [not (unknown and (each is None or (isinstance(each, str) and not each.strip()))) for each in row.cells]
    wrong = next((at for at, each in enumerate(values) if given[at] and not np.isfinite(each)), None)
    if wrong is not None:
        shown = row.cells[wrong] if isinstance(row.cells[wrong], str) else json.dumps(row.cells[wrong])
        raise error(
            request,
            f'{path}, {row.where}: "{shown}" in the column {columns[wrong]} is no finite number',
            "leave out images whose values nobody knows",
        )
    return values


def _classes(row: _Row, path: Path, request: Request) -> list[str]:
    (cell,) = row.cells
    if isinstance(cell, bool | float | list | dict) or cell is None or not str(cell).strip():
        raise error(
            request,
            f"{path}, {row.where}: {json.dumps(cell)} is no class",
            "a class is a whole number or a name",
        )
    return [str(cell).strip()]


def _csv(path: Path, request: Request) -> tuple[list[str], list[_Row]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, line) for line in reader if any(each.strip() for each in line)]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise error(request, f"{path} cannot be read: {fault}") from fault
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise error(
            request,
            f"{path} needs a header and rows, with commas between the columns",
            "the columns are the file, then a value for each output",
        )
    columns = [each.strip() for each in lines[0][1][1:]]
    return columns, [_Row(f"row {number}", line[0].strip(), list(line[1:])) for number, line in lines[1:]]


def _jsonl(path: Path, request: Request) -> tuple[list[str], list[_Row]]:
    """Return the columns of the first line, and the rows. A list has a column for each of its entries."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise error(request, f"{path} cannot be read: {fault}") from fault
    columns: list[str] = []
    rows: list[_Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as fault:
            raise error(request, f"{path}, {where}: no JSON: {fault}", f"each line is {_OBJECT}") from fault
        if not isinstance(value, dict) or not isinstance(value.get(FILE), str) or len(value) < 2:
            raise error(request, f'{path}, {where} is no object with "{FILE}" and values', f"each line is {_OBJECT}")
        cells = _flat({key: each for key, each in value.items() if key != FILE})
        columns = columns or list(cells)
        if sorted(cells) != sorted(columns):
            raise error(
                request, f"{path}, {where} has {', '.join(cells) or 'none'}, and the first line {', '.join(columns)}"
            )
        rows.append(_Row(where, value[FILE].strip(), [cells[each] for each in columns]))
    if not rows:
        raise error(request, f"{path} has no line", f"each line is {_OBJECT}")
    return columns, rows


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by columns: ``angles 0`` and ``angles 1`` of a list, as the values of an output are named."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list):
            found |= {f"{key} {number}" if len(value) > 1 else key: each for number, each in enumerate(value)}
        else:
            found[key] = value
    return found


def _order(columns: list[str], path: Path, request: Request) -> list[int]:
    """Return the columns in the order of the labels, whose names they have.

    What a metric of the user's own compares with may be something else, such as x and y of each point: columns of which
    none is a label keep their order.
    """
    labels = labels_of(request)
    own = known_metric(str(request.loaded.recipe.evaluation.metric)) is None
    if labels is None or (own and not set(labels) & set(columns)):
        return list(range(len(columns)))
    if sorted(labels) != sorted(columns):
        raise error(request, f"{path} has the columns {', '.join(columns)}, and the labels are {', '.join(labels)}")
    return [columns.index(label) for label in labels]


def _points_in_order(columns: list[str], path: Path, request: Request) -> list[int]:
    """Return the columns in the order of the points, x and y of each: of labels they are ``nose x`` and ``nose y``."""
    labels = labels_of(request)
    if labels is None:
        if len(columns) % 2:
            raise error(request, f"{path} has the columns {', '.join(columns)}", "each point has two: x and y")
        return list(range(len(columns)))
    wanted = [f"{label} {axis}" for label in labels for axis in "xy"]
    if sorted(wanted) != sorted(columns):
        raise error(request, f"{path} has the columns {', '.join(columns)}, and the points need {', '.join(wanted)}")
    return [columns.index(each) for each in wanted]


def _number(cell: Any) -> float:
    """Return the number in a cell, NaN where there is none."""
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        return float("nan")


def error(request: Request, text: str, hint: str | None = None) -> CalibrationError:
    """Return an error that says whose targets are wrong."""
    return CalibrationError(f"[evaluation] targets of {request.spec}: {text}", hint=hint)


def twice_in(names: Iterable[Any]) -> Any:
    """Return the first name that appears twice, None without one."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def check_short_names(path: Path, names: Sequence[str], known: Container[str], request: Request) -> None:
    """Raise CalibrationError where a file names two images of different folders by one name without folders."""
    twice = twice_in(Path(name).name for name in names if name not in known and Path(name).name in known)
    if twice is not None:
        both = [name for name in names if Path(name).name == twice]
        raise error(
            request,
            f"{path} has {twice}, which may be {both[0]} or {both[1]}",
            "name the images with their folders, as below the source",
        )
