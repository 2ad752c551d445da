"""``POST /predict``: images or JSON in, classes with their probabilities out, or what else the task gives."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..plain import to_plain
from ..rows import array_of, by_name
from ..tasks.spec import CLASSIFICATION, RAW
from . import multipart
from .model import ARRAY_FILE, IMAGE, NAMED, TEXTS, Data, ServedModel
from .named import Sample, sample_of_form, samples_of_json
from .protocol import InputTensor, read_json
from .request import Format, Request
from .service import Timing
from .tensors import to_json
from .texts import is_text_json, texts_of_form, texts_of_json, wanted_text

DEFAULT_TOP_K = 5
_MOST_PARAMETERS = 20
_FORM = "application/x-www-form-urlencoded"


def read_top_k(query: bytes, kind: str) -> int:
    """Return ``top_k`` of a query string; ``kind`` is the model's task.

    Raises InputError for another parameter or value, and for one that has no meaning here.
    """
    if not query:
        return DEFAULT_TOP_K
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise InputError(f"the query has more than {_MOST_PARAMETERS} parameters; /predict takes top_k") from None
    found = dict(pairs)
    if unknown := set(found) - {"top_k"}:
        raise InputError(f"the query has {min(unknown)[:40]!r}; /predict takes top_k")
    if found and kind != CLASSIFICATION:
        raise InputError(f"top_k is for classifications; this model's task is {kind!r}")
    text = found.get("top_k", str(DEFAULT_TOP_K))
    if len(pairs) > len(found) or not (text.isascii() and text.isdecimal() and 0 < len(text) <= 9 and int(text) > 0):
        raise InputError(f"top_k is {text[:40]!r}; expected one whole number from 1")
    return int(text)


def read_body(model: ServedModel, body: bytes | bytearray, content_type: str) -> Data:
    """Return the samples that a body holds. Raises InputError saying what is taken instead."""
    kind = content_type.partition(";")[0].strip().lower()
    # ``curl -d`` calls all a form that it is not told of.
    if kind == "application/json" or (kind in ("", _FORM) and body.lstrip()[:1] in (b"{", b"[")):
        return _from_json(model, read_json(body))
    if kind == "multipart/form-data":
        parts = multipart.parts(body, multipart.boundary_of(content_type))
        files = [part.content for part in parts]
        if not files:
            raise InputError("the multipart body has no part; send one for each input")
        if model.takes_text and not {part.name for part in parts} & {each.name for each in model.inputs}:
            return Data(TEXTS, texts_of_form(parts))
        if model.named:
            return Data(NAMED, [sample_of_form(model.signature, parts)])
        return Data(IMAGE if model.takes_images else ARRAY_FILE, files)
    if model.takes_text and kind == "text/plain":
        return Data(TEXTS, texts_of_json({"text": bytes(body)}))
    if not body:
        raise InputError("the body is empty; send " + _wanted(model))
    if model.takes_images:
        return Data(IMAGE, [body])
    if body.startswith(b"\x93NUMPY") and not model.named:
        return Data(ARRAY_FILE, [body])
    raise InputError(f"Content-Type is {kind[:60] or 'missing'!r}; send " + _wanted(model))


def answer_format(model: ServedModel, top_k: int, items: npt.NDArray[Any] | Sequence[Any]) -> Format:
    """Return what makes the body of an answer, in an instance's thread. ``items`` are the samples as they came."""

    def make(logits: npt.NDArray[np.float32], request: Request) -> bytes:
        found: dict[str, Any] = {"model": model.name, "version": model.version}
        if model.kind != RAW:
            found["task"] = model.kind
            found["predictions"] = model.results(logits, items, top_k)
        else:
            found["outputs"] = _outputs(model, logits, items)
        found["timing_ms"] = _timing(Timing.of(request))
        return _written(found)

    return make


def _written(found: dict[str, Any]) -> bytes:
    """Return an answer as JSON, with null for what is infinite, as the command line has it."""
    try:
        text = json.dumps(found, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(to_plain(found), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _outputs(
    model: ServedModel, logits: npt.NDArray[np.float32], items: npt.NDArray[Any] | Sequence[Any]
) -> list[dict[str, Any]]:
    """Return the outputs of each sample: one, or all by name."""
    if model.runner.sizes is not None and len(logits) > 1:  # images of several sizes
        pairs = zip(logits, items, strict=True)
        return [each for row, item in pairs for each in _outputs(model, row[None], [item])]
    values = model.signature_of(items).unpack(logits)
    rows = [
        {name: {"shape": list(each.shape[1:]), "data": to_json(each[number])} for name, each in values.items()}
        for number in range(len(logits))
    ]
    return rows if len(model.signature.outputs) > 1 else [next(iter(row.values())) for row in rows]


def _timing(timing: Timing) -> dict[str, Any]:
    return {"queue": timing.queue_ms, "prepare": timing.prepare_ms, "compute": timing.compute_ms, "batch": timing.batch}


def _wanted(model: ServedModel) -> str:
    if model.takes_text:
        return wanted_text()
    if model.named:
        names = ", ".join(f'"{each.name}": ...' for each in model.inputs)
        return f'JSON {{"inputs": [{{{names}}}, ...]}}, or multipart/form-data with a field for each input'
    if model.takes_images:
        return 'image bytes, multipart/form-data with files, or JSON {"images": [base64, ...]}'
    return 'JSON {"inputs": [array, ...]}, or an .npy file'


def _from_json(model: ServedModel, value: Any) -> Data:
    if model.takes_text and is_text_json(value):
        return Data(TEXTS, texts_of_json(value))
    one, many = ("image", "images") if model.takes_images else ("input", "inputs")
    if not isinstance(value, dict) or len(value) != 1 or not ({one, many} & set(value)):
        raise InputError(f'the JSON must be an object with "{one}" or "{many}" alone; send {_wanted(model)}')
    items = value[many] if many in value else [value[one]]
    if not isinstance(items, list) or not items:
        single = f'; one alone goes into "{one}"' if isinstance(items, dict) else ""
        raise InputError(f'"{many}" must be a list with at least one element{single}; send {_wanted(model)}')
    if model.takes_text and not all(isinstance(item, dict) for item in items):
        raise InputError(f"the inputs are no objects with the tokens of a text; send {_wanted(model)}")
    if model.named:
        return Data(NAMED, samples_of_json(model.signature, items))
    if model.takes_images:
        return Data(IMAGE, [_from_base64(item, number) for number, item in enumerate(items)])
    return _arrays(model, items)


def _from_base64(text: Any, number: int) -> bytes:
    if not isinstance(text, str):
        raise InputError(f"image {number} is not a string; expected the file in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"image {number} is not base64: {error}") from None
    if not found:
        raise InputError(f"image {number} is empty")
    return found


def _arrays(model: ServedModel, items: Sequence[Any]) -> Data:
    """Return arrays of one shape as one tensor, those of several lengths one by one."""
    if -1 in model.input.shape[1:] and len(items) > 1:
        alone = []
        for number, item in enumerate(items):
            try:
                alone.append(np.asarray(_array(model, [item]).items))
            except InputError as error:
                raise InputError(f"input {number}: {error}") from None
        if len({each.shape for each in alone}) > 1:
            return Data(NAMED, [Sample({model.input.name: each[0]}, each.nbytes) for each in alone])
    return _array(model, items)


def _only(model: ServedModel, item: Any) -> Any:
    """Return the value of the only input, which an object may have by its name."""
    return next(iter(by_name(model.signature, (item,), {}).values())) if isinstance(item, dict) else item


def _array(model: ServedModel, items: Sequence[Any]) -> Data:
    shape = model.input.shape[1:]
    (spec,) = model.signature.inputs
    wild = len(shape) if -1 in shape else 0  # the sizes of images are checked with the tensor
    array = array_of(spec, [_only(model, item) for item in items])
    if array.dtype != np.float32 or (array.ndim != 1 + wild if wild else array.shape[1:] != shape):
        what = "texts" if array.dtype.kind == "U" else array.dtype
        raise InputError(
            f"inputs are {what} {array.shape}; expected numbers of shape (n, {', '.join(map(str, shape))})"
        )
    return model.read_tensor(InputTensor(model.input.name, "FP32", array.shape, array))
