"""The columns of the output: what ``predict --json`` prints for one input, with types.

Numbers in structs are float64, as in JSON. Vectors and raw outputs are fixed-size lists of the model's own type, in C
order; the field's metadata has their ``shape``. Of a model for images of any size a raw output is a struct of its
``shape`` and its ``data``. Masks and images are PNG files in a binary column, maps of numbers
and masks of scans files of numpy. Where an input could not be read, ``error`` says why, and all other columns but the
id are null.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..signature import Signature
from ..tasks import classification
from ..tasks.embedding import Embedding
from ..tasks.maps import are_maps
from ..tasks.masks import Masks
from ..tasks.raw import Raw
from ..tasks.segmentation import is_volume
from ..tasks.spec import TaskSpec
from .shards import Id

ID, ERROR, TRUNCATED = "id", "error", "truncated"
_CLASS = (("label", pa.string()), ("index", pa.int32()))
_PLACE = (("start", pa.int64()), ("end", pa.int64()))
_FILES = ("png", "mask_png", "mask_npy", "values_npy")
"""What is a file in base64 in the JSON."""
_SIZE = (("width", pa.int32()), ("height", pa.int32()))


@dataclass(frozen=True)
class Outcome:
    """What became of one input: its result, or why there is none; of a text, whether the model read a part alone."""

    id: Id
    result: Any
    error: str | None = None
    truncated: bool | None = None


def result_fields(task: TaskSpec, signature: Signature) -> list[pa.Field]:
    """Return the columns of a task."""
    return [pa.field(name, of) for name, of in _types(task, signature)]


def _types(task: TaskSpec, signature: Signature) -> list[tuple[str, Any]]:
    size = signature.outputs[0].size
    match task.kind:
        case "classification":
            return [("top", _structs(*_CLASS, ("probability", pa.float64())))]
        case "multilabel":
            labels = _structs(*_CLASS, ("probability", pa.float64()))
            count = sum(each.size for each in signature.outputs)
            threshold = pa.list_(pa.float64(), count) if task.thresholds else pa.float64()
            return [("labels", labels), ("threshold", threshold), ("probabilities", pa.list_(pa.float64(), count))]
        case "regression" if are_maps({each.name: each.result_shape for each in signature.outputs}):
            numbers = (("min", pa.float64()), ("max", pa.float64()), ("mean", pa.float64()))
            maps = _structs(("name", pa.string()), ("unit", pa.string()), *numbers)
            return [*_SIZE, ("maps", maps), ("values_npy", pa.binary())]
        case "regression":
            return [("values", _structs(("name", pa.string()), ("value", pa.float64()), ("unit", pa.string())))]
        case "embedding":
            return [("embedding", pa.list_(pa.float32(), size))]
        case "tokens":
            spans = _structs(
                ("label", pa.string()), ("score", pa.float64()), *_PLACE, ("text", pa.string()), ("second", pa.bool_())
            )
            return [("entities", spans), ("words", spans)]
        case "answer":
            return [("answer", pa.string()), ("score", pa.float64()), *_PLACE, ("none", pa.float64())]
        case "fill":
            guess = pa.struct([("token", pa.string()), ("id", pa.int32()), ("score", pa.float64())])
            return [("gaps", pa.list_(pa.list_(guess)))]
        case "segmentation":
            classes = _structs(*_CLASS, ("share", pa.float64()))
            if is_volume(signature.outputs[0].result_shape, signature.outputs[0].dtype):
                return [*_SIZE, ("depth", pa.int32()), ("classes", classes), ("mask_npy", pa.binary())]
            return [*_SIZE, ("classes", classes), ("mask_png", pa.binary())]
        case "masks":
            file = "mask_npy" if task.volume else "mask_png"
            masks = _structs(*_CLASS, ("share", pa.float64()), (file, pa.binary()))
            return [*_SIZE, *((("depth", pa.int32()),) if task.volume else ()), ("masks", masks)]
        case "detection":
            turned = (("corners", pa.list_(pa.list_(pa.float64()))), ("angle", pa.float64())) if task.angle else ()
            boxes = _structs(*_CLASS, ("score", pa.float64()), ("box", pa.list_(pa.float64())), *turned)
            return [*_SIZE, ("detections", boxes)]
        case "keypoints":
            numbers = (("x", pa.float64()), ("y", pa.float64()), ("score", pa.float64()))
            return [*_SIZE, ("points", _structs(*_CLASS, *numbers))]
        case "image":
            return [*_SIZE, ("png", pa.binary())]
    of_any_size = signature.sizes is not None
    return [("outputs", pa.struct([_output(*each, of_any_size=of_any_size) for each in _outputs(signature)]))]


def _structs(*fields: tuple[str, pa.DataType]) -> pa.DataType:
    return pa.list_(pa.struct(list(fields)))


def _outputs(signature: Signature) -> list[tuple[str, tuple[int, ...], str]]:
    return [(each.name, each.result_shape, each.dtype) for each in signature.outputs]


def _output(name: str, shape: tuple[int, ...], dtype: str, *, of_any_size: bool) -> pa.Field:
    number = pa.from_numpy_dtype(np.dtype(dtype))
    if of_any_size:
        return pa.field(name, pa.struct([("shape", pa.list_(pa.int64())), ("data", pa.list_(number))]))
    if not shape:
        return pa.field(name, number)
    return pa.field(name, pa.list_(number, math.prod(shape)), metadata={"shape": json.dumps(list(shape))})


def result_columns(task: TaskSpec, signature: Signature, outcomes: Sequence[Outcome]) -> list[pa.Array]:
    """Return the columns of ``result_fields`` for these outcomes."""
    fields = result_fields(task, signature)
    of_any_size = signature.sizes is not None
    rows = [None if each.error is not None else _plain(each.result, of_any_size=of_any_size) for each in outcomes]
    return [pa.array([None if row is None else row[field.name] for row in rows], field.type) for field in fields]


def error_column(outcomes: Sequence[Outcome]) -> pa.Array:
    """Return why inputs have no result, null for those that have one."""
    return pa.array([each.error for each in outcomes], pa.string())


def schema_of(
    task: TaskSpec, signature: Signature, ids: pa.DataType, metadata: dict[str, str], *, texts: bool = False
) -> pa.Schema:
    """Return the schema of an output file; of ``texts`` it says which ones were cut off."""
    fields = [pa.field(ID, ids), pa.field(ERROR, pa.string())]
    if texts:
        fields.append(pa.field(TRUNCATED, pa.bool_()))
    return pa.schema([*fields, *result_fields(task, signature)], metadata=metadata)


def table_of(task: TaskSpec, signature: Signature, outcomes: Sequence[Outcome], schema: pa.Schema) -> pa.Table:
    """Return the rows of an output file."""
    ids = pa.array([each.id for each in outcomes], schema.field(ID).type)
    cut = [pa.array([each.truncated for each in outcomes], pa.bool_())] if TRUNCATED in schema.names else []
    return pa.Table.from_arrays(
        [ids, error_column(outcomes), *cut, *result_columns(task, signature, outcomes)], schema=schema
    )


def _plain(result: Any, *, of_any_size: bool) -> dict[str, Any]:
    """Return one result by columns."""
    if isinstance(result, Raw) and of_any_size:
        return {
            "outputs": {name: {"shape": list(each.shape), "data": each.reshape(-1)} for name, each in result.items()}
        }
    if isinstance(result, Embedding):  # its JSON would be a list of Python's numbers
        return {"embedding": result.vector}
    if isinstance(result, Raw):
        return {"outputs": {name: value.reshape(-1) if value.ndim else value[()] for name, value in result.items()}}
    if isinstance(result, list):
        return {"top": classification.to_dicts(result)}
    found = result.to_dict()
    if isinstance(result, Masks):
        found["masks"] = [_with_bytes(one) for one in found["masks"]]
    return _with_bytes(found)


def _with_bytes(found: dict[str, Any]) -> dict[str, Any]:
    """Return the same with the bytes of each file in place of base64."""
    return {name: base64.b64decode(value) if name in _FILES else value for name, value in found.items()}
