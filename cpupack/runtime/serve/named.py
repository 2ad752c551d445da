"""Requests to a model with several inputs: tensors, JSON values and form fields by the names of its inputs."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..open_sizes import Size
from ..rows import mixes_truth, pack
from ..signature import Signature
from ..tensor_spec import TensorSpec
from .multipart import Part
from .protocol import InputTensor
from .tensors import Buffer

DATATYPES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}
"""The protocol's name of each dtype of an input or output."""
NPY = b"\x93NUMPY"
"""How an ``.npy`` file begins."""


class Sample(dict[str, Any]):
    """One sample as ``Runner.load`` takes it, by the names of the inputs. Its length is in bytes."""

    def __init__(self, values: Mapping[str, Any], size_bytes: int) -> None:
        super().__init__(values)
        self.size_bytes = size_bytes
        self.size: Size | None = None
        """Of a model that takes several sizes, once the sample is decoded."""


def rows_of(
    signature: Signature, tensors: Sequence[InputTensor], *, check_finite: bool
) -> npt.NDArray[np.float32] | list[Sample]:
    """Return rows of tensors by name; samples to be decoded where an image is encoded (BYTES). Raises InputError."""
    specs = {each.name: each for each in signature.inputs}
    given: dict[str, Any] = {}
    for tensor in tensors:
        _check_name("the input", tensor.name, specs, given)
        given[tensor.name] = _elements(specs[tensor.name], tensor) if isinstance(tensor.data, list) else tensor.data
    if not any(isinstance(value, list) for value in given.values()):
        return pack(signature, given, check_finite=check_finite)
    counts = {name: len(value) for name, value in given.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"the inputs have different numbers of samples: {told}")
    return [
        _sample({name: value[number] for name, value in given.items()}) for number in range(next(iter(counts.values())))
    ]


def _check_name(what: str, name: str, specs: Mapping[str, TensorSpec], found: Mapping[str, Any]) -> None:
    """Raise InputError for a name that is no input, or that is among ``found`` already."""
    if name not in specs:
        raise InputError(f"got {what} {name[:40]!r}; this model has {', '.join(map(repr, specs))}")
    if name in found:
        raise InputError(f"{what} {name!r} is there twice; each is for one input of the model")


def _elements(spec: TensorSpec, tensor: InputTensor) -> list[Any]:
    """Return the encoded images of a tensor of BYTES."""
    if spec.preprocess is None:
        raise InputError(f"input {spec.name!r}: BYTES are encoded images, and this input is {DATATYPES[spec.dtype]}")
    shape = tensor.shape
    if not shape or shape != (shape[0],) + (1,) * (len(shape) - 1):
        raise InputError(f"input {spec.name!r}: BYTES of shape {list(shape)}; expected [n] or [n, 1], an image each")
    if not shape[0]:
        raise InputError(f"input {spec.name!r}: the batch is empty; expected at least one image")
    return list(tensor.data)


def samples_of_json(signature: Signature, items: Sequence[Any]) -> list[Sample]:
    """Return the samples in JSON, each an object by the names of the inputs; images are in base64. Raises InputError.

    The only input of a model may be given by itself.
    """
    specs = {each.name: each for each in signature.inputs}
    found = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) and len(specs) == 1:
            item = {next(iter(specs)): item}
        if not isinstance(item, dict):
            raise InputError(f"input {number} is no object; expected one with {', '.join(specs)}")
        found.append(_sample({name: _value(specs.get(name), name, value, number) for name, value in item.items()}))
    return found


def _value(spec: TensorSpec | None, name: str, value: Any, number: int) -> Any:
    """Return a value of JSON as ``Runner.load`` takes it. A string is an image, and never the path of a file here."""
    image = spec is not None and spec.preprocess is not None
    if isinstance(value, str):
        if image:
            return _image(value, name, number)
        one = "true, false" if spec is not None and spec.dtype == "bool" else "a number"
        raise InputError(f"input {number}: {name} is a string; expected {one} or a list of them")
    if image and not isinstance(value, list):
        raise InputError(f"input {number}: {name} is an image; expected a string in base64, or its floats as a list")
    if image and isinstance(value, list):
        try:
            array = np.array(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"input {number}: {name} is no array of numbers: {error}") from None
        if array.dtype.kind not in "iuf" or mixes_truth(value):
            raise InputError(f"input {number}: {name} is no array of numbers; it has {array.dtype} among its elements")
        with np.errstate(over="ignore"):  # what becomes infinite is refused later
            return array.astype(np.float32)
    if isinstance(value, list) and spec is not None and spec.dtype != "bool" and mixes_truth(value):
        raise InputError(f"input {number}: {name} has true or false among its numbers")
    return value


def _image(text: str, name: str, number: int) -> bytes:
    """Return an image that JSON has in base64."""
    try:
        found = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"input {number}: {name} is not base64: {error}") from None
    if not found:
        raise InputError(f"input {number}: {name} is empty")
    return found


def sample_of_form(signature: Signature, parts: Sequence[Part]) -> Sample:
    """Return the sample whose inputs are the fields of a form: image files, ``.npy`` files, numbers and lists in JSON.

    Raises InputError.
    """
    specs = {each.name: each for each in signature.inputs}
    values: dict[str, Any] = {}
    for part in parts:
        _check_name("the field", part.name, specs, values)
        content = bytes(part.content)
        if specs[part.name].preprocess is not None:
            values[part.name] = content
        elif content.startswith(NPY):
            values[part.name] = io.BytesIO(content)
        else:
            values[part.name] = _number(content, part.name)
    return _sample(values)


def _number(content: bytes, name: str) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = ""
    if isinstance(value, str):
        raise InputError(f"the field {name!r} is neither an .npy file nor a number or a list in JSON")
    return value


def with_images(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a sample with its image files as bytes. Raises InputError for an array among them."""
    return {
        name: image_file(value, f"input {name!r}") if isinstance(value, bytes | memoryview) else value
        for name, value in sample.items()
    }


def image_file(content: Buffer, where: str) -> bytes:
    """Return the bytes of an image that a client has sent. Raises InputError for an array, which a tensor can hold."""
    found = bytes(content)
    if found.startswith(NPY):
        raise InputError(
            f"{where} is an .npy file; send an image file, or the array as a tensor to the address that ends in /infer"
        )
    return found


def _sample(values: Mapping[str, Any]) -> Sample:
    return Sample(values, sum(_bytes_of(each) for each in values.values()))


def _bytes_of(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, bytes | memoryview):
        return len(value)
    if isinstance(value, io.BytesIO):
        return value.getbuffer().nbytes
    return sum(map(_bytes_of, value)) if isinstance(value, list) else 8
