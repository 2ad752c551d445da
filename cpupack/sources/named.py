"""Samples of several inputs by name, as rows: from arrays of a file, from items of a factory, or generated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.runtime.errors import InputError
from cpupack.runtime.random_rows import random_batch
from cpupack.runtime.rows import SKIPS_CHECK, add_sizes, batch_of, by_name, flat
from cpupack.runtime.signature import OUTPUT, OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec, engine_input_shape, input_text
from cpupack.sources.request import Array, Floats, Request, array_of, centre, image_of, pixels_of

_ROWS_AT_ONCE = 256


def signature_of(request: Request) -> Signature:
    """Return the inputs of a request as a signature, whose output nobody asks for."""
    return Signature(request.inputs, (OutputSpec(OUTPUT, ()),))


def rows_of_arrays(arrays: Mapping[str, Array], rows: Sequence[int], request: Request, where: str) -> Floats:
    """Return rows of a sample each from ``arrays`` of whole data sets by the names of the inputs.

    Raises CalibrationError for an input that is missing or does not fit.
    """
    missing = [each for each in request.inputs if each.name not in arrays and each.default is None]
    if missing:
        raise CalibrationError(
            f"{request.spec}: {where} has no array for {', '.join(input_text(each) for each in missing)}; it has "
            f"{', '.join(arrays) or 'none'}",
            hint=f"np.savez(path, {', '.join(f'{each.name}=...' for each in request.inputs)})",
        )
    request.check_memory(len(rows))
    check_sizes({name: np.shape(array)[1:] for name, array in arrays.items()}, request, where)
    result = _blank(len(rows), request)
    for spec, place in zip(request.inputs, signature_of(request).input_places(), strict=True):
        if spec.name not in arrays:
            continue
        data = arrays[spec.name]
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chosen = list(rows[start : start + _ROWS_AT_ONCE])
            names = [f"row {row}" for row in chosen]
            result[start : start + len(chosen), place] = flat(spec, _batch(spec, data[chosen], request, names))
    return result


def _batch(spec: TensorSpec, data: Array, request: Request, names: Sequence[str], *, of_one: bool = False) -> Array:
    """Return a batch of one input, checked. Pixels of any size become the model's.

    ``of_one`` says that it is one sample, which was given without the batch.
    """
    if spec.preprocess is not None and data.dtype == np.uint8 and data.shape[1:] != spec.pixel_shape:
        one = dataclasses.replace(request, inputs=(spec,))
        data = np.stack([pixels_of(each, one, name) for each, name in zip(data, names, strict=True)])
    elif spec.names and data.ndim == 1 + len(spec.names):
        for axis, (name, size) in enumerate(zip(spec.names, spec.shape, strict=True), 1):
            if name:
                data = centre(data, axis, name, size, request, names)
    if spec.dtype == "float32" and data.dtype.kind == "f":
        with np.errstate(over="ignore"):  # an overflow gives infinity, which is reported
            data = data.astype(np.float32)
    try:
        return batch_of(spec, data, of_one=of_one)
    except InputError as error:
        if len(names) > 1 and ": sample " in str(error):  # which of them has such a value
            for name, one in zip(names, data, strict=True):
                _batch(spec, one[None], request, [name], of_one=True)
        where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        told = str(error).removesuffix(SKIPS_CHECK).replace(": sample 0 has", " has") if of_one else str(error)
        raise CalibrationError(f"{request.spec}: {where}: {told}") from error


def check_sizes(shapes: Mapping[str, Sequence[int]], request: Request, where: str) -> None:
    """Raise CalibrationError where inputs that share a name have different sizes of it. Shapes are of a sample.

    What [preprocess] makes of an image is known later.
    """
    found: dict[str, tuple[int, str]] = {}
    for spec in request.inputs:
        shape = shapes.get(spec.name, ())
        if spec.preprocess is not None or len(shape) != len(spec.names):
            continue
        for name, side in zip(spec.names, shape, strict=True):
            other, owner = found.setdefault(name, (side, spec.name))
            if name and other != side:
                raise CalibrationError(
                    f'{request.spec}: {where}: {name} is {other} in "{owner}" and {side} in "{spec.name}"',
                    hint="inputs that share a name have the same size in a sample; give one of them another name",
                )


def row_of_item(item: Any, request: Request, name: str) -> Floats:
    """Return the row of one item of a factory: a dict by the names of the inputs, or a tuple in their order.

    A dataclass or a named tuple whose fields are inputs is taken by their names.
    """
    only = only_plain(request)
    if (fields := _fields(item)) and {each.name for each in request.inputs} & set(fields):
        item = {name: getattr(item, name) for name in fields}
    if only is not None and not isinstance(item, Mapping | tuple | list):
        item = {only.name: item}
    if len(request.inputs) > 1 and not isinstance(item, Mapping | tuple | list):
        raise CalibrationError(
            f"{request.spec}: {name} is a {type(item).__name__}, and the model has {len(request.inputs)} inputs",
            hint="yield a dict of the inputs for each sample, or (dict, label) pairs",
        )
    given = (item,) if isinstance(item, Mapping) or len(request.inputs) == 1 else tuple(item)
    try:
        values = by_name(signature_of(request), given, {})
    except InputError as error:
        raise CalibrationError(
            f"{request.spec}: {name}: {error}",
            hint="yield a dict of the inputs for each sample, or (dict, label) pairs",
        ) from error
    if missing := [each.name for each in request.inputs if each.name not in values and each.default is None]:
        raise CalibrationError(
            f"{request.spec}: {name} has no {', '.join(missing)}",
            hint="yield a dict of the inputs for each sample, or (dict, label) pairs",
        )
    check_sizes({key: np.shape(each) for key, each in values.items() if hasattr(each, "shape")}, request, name)
    row = _blank(1, request)
    for spec, place in zip(request.inputs, signature_of(request).input_places(), strict=True):
        if spec.name in values:
            value = _one(spec, values[spec.name], request, name)
            row[:, place] = flat(spec, _batch(spec, value, request, [name], of_one=True))
    return np.asarray(row[0])


def _fields(item: Any) -> tuple[str, ...]:
    """Return the names of the fields of a dataclass or a named tuple, none of anything else."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return tuple(each.name for each in dataclasses.fields(item))
    return tuple(getattr(item, "_fields", ())) if isinstance(item, tuple) else ()


def _one(spec: TensorSpec, value: Any, request: Request, name: str) -> Array:
    """Return one sample's value of an input as a batch of one."""
    if isinstance(value, Image.Image):
        if spec.preprocess is None:
            raise CalibrationError(f"{request.spec}: {name}: {spec.name} is a PIL image, and has no [input.preprocess]")
        return pixels_of(value, dataclasses.replace(request, inputs=(spec,)), name)[None]
    if spec.preprocess is not None and isinstance(value, str | bytes | os.PathLike):
        return _one(spec, image_of(value, request, name), request, name)
    return array_of(value, request, f"{name}: {spec.name}")[None]


def split_item(item: Any, request: Request) -> tuple[Any, Any]:
    """Return the inputs of a factory's item and its label or target, None without one.

    ``(inputs, label)``, where the inputs are a dict or a tuple; or the inputs in order, with the label after them.
    """
    if not isinstance(item, tuple | list) or {each.name for each in request.inputs} <= set(_fields(item)):
        return item, None
    count = len(request.inputs)
    if only_plain(request) is not None and not _is_state(item, request):
        count = 1
    if len(item) == 2 and (count == 1 or isinstance(item[0], Mapping | tuple | list)):
        return item[0], item[1]
    return (tuple(item[:count]), item[count]) if len(item) == count + 1 else (item, None)


def only_plain(request: Request) -> TensorSpec | None:
    """Return the only input that is no state, None where there are several or none."""
    plain = [each for each in request.inputs if each.state is None]
    return plain[0] if len(plain) == 1 else None


def _is_state(item: Sequence[Any], request: Request) -> bool:
    """Whether an item is the inputs in order: after the first comes a value of the second one's shape."""
    return (
        len(item) >= len(request.inputs) > 1
        and request.inputs[1].shape != ()
        and np.shape(item[1]) == request.inputs[1].shape
    )


def rows_of_pixels(pixels: Samples, image: TensorSpec, request: Request) -> Samples:
    """Return samples of one image input as rows, with the defaults of all others."""
    request.check_memory(len(pixels))
    rows = _blank(len(pixels), request)
    place = signature_of(request).input_places()[request.inputs.index(image)]
    for start in range(0, len(pixels), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows[part, place] = flat(image, pixels.data[part])
    return dataclasses.replace(pixels, data=rows, preprocess=None)


def only_image(request: Request) -> TensorSpec:
    """Return the input that image folders give. Raises CalibrationError unless there is one and it is enough."""
    images = [each for each in request.inputs if each.preprocess is not None]
    others = [each.name for each in request.inputs if each.preprocess is None and each.default is None]
    if len(images) != 1 or others:
        needed = ", ".join(each.name for each in request.inputs)
        raise CalibrationError(
            f"{request.spec}: a folder of images is data for one image, and the model takes {needed}",
            hint="use arrays:FILE.npz or python:FILE.py:factory",
        )
    return images[0]


def generated(spec: TensorSpec, request: Request, count: int, number: int) -> Array:
    """Return ``count`` generated values of one input that is no image, the ``number``-th. Ids are of its vocabulary."""
    if spec.dtype == "int64" and spec.vocabulary is None:
        raise CalibrationError(
            f'{request.spec}: the input "{spec.name}" is int64, and the model looks it up in no table that would say '
            "which values it has",
            hint=f'set vocabulary in the [[input]] table of "{spec.name}" (2 for a mask of zeros and ones)',
        )
    return random_batch(spec, np.random.default_rng([request.seed, number]), count)


def _blank(count: int, request: Request) -> Floats:
    rows = np.zeros((count, *engine_input_shape(request.inputs)), np.float32)
    for spec, place in zip(request.inputs, signature_of(request).input_places(), strict=True):
        rows[:, place] = spec.default or 0
    add_sizes(request.inputs, rows)
    return rows
