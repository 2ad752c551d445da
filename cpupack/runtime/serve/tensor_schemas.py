"""The JSON Schemas of what a model takes: tensors of the Open Inference Protocol, and samples of ``/predict``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..arrays import MOST_FLOAT
from ..tensor_spec import LARGEST_EXACT, TensorSpec, ids_text
from ..text.spec import TEXT, TEXT_PAIR
from ..text.texts import MOST_CHARACTERS
from .model import ServedModel, TensorFacts
from .tensors import MAX_ELEMENTS

_FLOAT = {"type": "number", "minimum": -MOST_FLOAT, "maximum": MOST_FLOAT}
_BYTE = {"type": "integer", "minimum": 0, "maximum": 255}
_TRUTH, _BIT = {"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}
_WHOLE = ["INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"]
BASE64 = {"type": "string", "format": "byte", "minLength": 1}


def nested(one: dict[str, Any], shape: Sequence[int | range]) -> dict[str, Any]:
    """Return the schema of lists in lists of this shape. No schema says that a length is a multiple of a number."""
    for size in reversed(shape):
        one = {"type": "array", "items": one, "minItems": _least(size), "maxItems": _most(size)}
    return one


def array(model: ServedModel) -> dict[str, Any]:
    """Return the schema of one sample of a model that takes one array."""
    return nested(_FLOAT, model.input.sides)


def sample(model: ServedModel) -> dict[str, Any]:
    """Return the schema of one sample by the names of its inputs; an image is in base64, or its floats."""
    values: dict[str, Any] = {}
    for spec, facts in zip(model.signature.inputs, model.inputs, strict=True):
        if spec.preprocess is not None:
            values[spec.name] = {"oneOf": [BASE64, nested(_FLOAT, _planes(facts.sides))]}
        else:
            values[spec.name] = nested(_element(spec), facts.sides)
        if (ids := ids_text(spec)) is not None:
            values[spec.name]["description"] = f"whole numbers {ids}"
    needed = [each.name for each in model.signature.inputs if each.default is None]
    return {"type": "object", "properties": values, "required": needed, "additionalProperties": False}


def fields(model: ServedModel, file: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form with a field for each input: an image file, an ``.npy`` file, or JSON."""
    specs = model.signature.inputs
    numbers = {"type": "string", "minLength": 1, "description": "An .npy file, or a number or a list in JSON"}
    values = {each.name: file if each.preprocess is not None else numbers for each in specs}
    return {"type": "object", "properties": values, "required": [each.name for each in specs if each.default is None]}


def tensors(model: ServedModel) -> dict[str, Any]:
    """Return the schema of ``inputs`` of a request in JSON.

    The elements must be as many as the shape says, and each input has as many samples: no schema says so.
    """
    forms = [
        form for spec, facts in zip(model.signature.inputs, model.inputs, strict=True) for form in _forms(spec, facts)
    ]
    own = _list_of(forms, {each.name: each.default is None for each in model.signature.inputs})
    if not model.takes_text:
        return own
    string = {"type": "string", "maxLength": MOST_CHARACTERS}
    texts = [_tensor(name, {"const": "BYTES"}, shape, string) for name in (TEXT, TEXT_PAIR) for shape in ((), (1,))]
    return {"oneOf": [_list_of(texts, {TEXT: True, TEXT_PAIR: False}), own]}


def _list_of(forms: list[dict[str, Any]], needed: dict[str, bool]) -> dict[str, Any]:
    """Return the schema of a list with each name once, those that are needed at least."""
    found = {"type": "array", "minItems": 1, "maxItems": len(needed), "items": {"oneOf": forms}}
    return found | each_once(needed)


def each_once(needed: dict[str, bool]) -> dict[str, Any]:
    """Return what a list's schema has besides, so that no name is there twice, and those that are needed are there."""
    if len(needed) == 1:  # its greatest length says so
        return {}
    named = {name: {"type": "object", "properties": {"name": {"const": name}}, "required": ["name"]} for name in needed}
    return {
        "allOf": [
            {"contains": named[name], "minContains": int(must), "maxContains": 1} for name, must in needed.items()
        ]
    }


def _forms(spec: TensorSpec, facts: TensorFacts) -> Iterator[dict[str, Any]]:
    """Yield the forms that one input has in JSON. Encoded images are not among them: JSON has no bytes."""
    shape = facts.sides
    if spec.preprocess is not None:
        yield _tensor(spec.name, {"const": "FP32"}, _planes(shape), _FLOAT)
        yield _tensor(spec.name, {"const": "UINT8"}, shape, _BYTE)
    elif spec.dtype == "float32":
        yield _tensor(spec.name, {"const": "FP32"}, shape, _FLOAT)
    elif spec.dtype == "bool":
        yield _tensor(spec.name, {"const": "BOOL"}, shape, _TRUTH)
        yield _tensor(spec.name, {"enum": _WHOLE}, shape, _BIT)
    else:
        yield _tensor(spec.name, {"enum": _WHOLE}, shape, _element(spec))
        if spec.least == 0:
            yield _tensor(spec.name, {"const": "BOOL"}, shape, _TRUTH)


def _tensor(
    name: str, datatype: dict[str, Any], shape: Sequence[int | range], element: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of a tensor whose samples have this shape."""
    sizes = [_side(size) for size in shape]
    flat = {"type": "array", "items": element, "minItems": math.prod(map(_least, shape))}
    rows = {"type": "array", "items": nested(element, shape), "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            "datatype": datatype,
            "shape": {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": 1, "maximum": MAX_ELEMENTS}, *sizes],
                "minItems": 1 + len(shape),
                "maxItems": 1 + len(shape),
            },
            "data": {
                "description": "Flat, in row-major order, or nested as the shape is",
                "anyOf": [flat, rows] if shape else [flat],
            },
            "parameters": {"type": "object", "properties": {"binary_data_size": False, "shared_memory_region": False}},
        },
        "required": ["name", "datatype", "shape", "data"],
    }


def _element(spec: TensorSpec) -> dict[str, Any]:
    """Return the schema of one value of an input that is no image."""
    if spec.dtype == "float32":
        return dict(_FLOAT)
    if spec.dtype == "bool":
        return dict(_TRUTH)
    if spec.dtype == "uint8" and spec.vocabulary is None:
        return dict(_BYTE)
    low, high = (-LARGEST_EXACT, LARGEST_EXACT) if spec.vocabulary is None else (spec.least, spec.vocabulary - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _least(side: int | range) -> int:
    return side[0] if isinstance(side, range) else side


def _most(side: int | range) -> int:
    return side[-1] if isinstance(side, range) else side


def _side(side: int | range) -> dict[str, Any]:
    """Return the schema of one number of a shape."""
    if not isinstance(side, range):
        return {"const": side}
    return {"type": "integer", "minimum": side[0], "maximum": side[-1], "multipleOf": side.step}


def _planes(pixels: Sequence[int | range]) -> tuple[int | range, ...]:
    """Return the shape of an image's floats, whose pixels have the shape ``(height, width, channels)``."""
    return pixels[-1], *pixels[:-1]
