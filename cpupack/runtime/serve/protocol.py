"""The Open Inference Protocol over HTTP: reads ``infer`` requests and writes their answers. Pure: no input or output.

A body is one JSON object. With the extension ``binary_tensor_data`` it is a JSON object of as many bytes as the header
``Inference-Header-Content-Length`` says, and then the raw data of each input that has ``binary_data_size``. A length of
0 means that the whole body is the raw data of the only input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import tensors
from .tensors import BYTES, Buffer

EXTENSIONS = ("binary_tensor_data", "classification")
GRPC_EXTENSIONS = ("classification",)
HEADER_LENGTH = "Inference-Header-Content-Length"
SHARED_MEMORY = "shared_memory_region"
"""The parameter of an input or output whose data are in shared memory, an extension of Triton."""
_EXTENSION_ROOTS = {
    "systemsharedmemory": "system_shared_memory", "cudasharedmemory": "cuda_shared_memory",
    "repository": "model_repository", "trace": "trace", "logging": "logging",
}  # fmt: skip
_MODEL_EXTENSIONS = {
    "stats": "statistics", "config": "model_configuration", "trace": "trace", "generate": "generate",
    "generate_stream": "generate",
}  # fmt: skip
MAX_DEPTH_HINT = "the JSON is nested too deeply"

_WRITER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)

Elements = npt.NDArray[Any] | list[memoryview]


@dataclass(frozen=True)
class InputTensor:
    """One input: its array, or for BYTES its elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Elements


@dataclass(frozen=True)
class WantedOutput:
    """One output that is asked for. ``classes`` is k of the extension ``classification``, 0 for the tensor itself."""

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True)
class InferRequest:
    """One request. ``outputs`` is empty when every output is wanted; ``binary`` is then how."""

    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputTensor:
    """One output to send: a float array, or for BYTES (classes) its elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | list[bytes]
    binary: bool = False

    def raw(self) -> bytes:
        """Return the raw form."""
        if isinstance(self.data, list):
            return tensors.join_bytes(self.data)
        return np.ascontiguousarray(self.data).tobytes()


@dataclass(frozen=True)
class Answer:
    """The body of an answer, and the length of its JSON part, None where it is JSON alone."""

    body: bytes
    json_length: int | None


def header_length(text: str | None, body_bytes: int) -> int | None:
    """Return the value of ``Inference-Header-Content-Length``, None without it. Raises InputError."""
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) > body_bytes:
        raise InputError(
            f"{HEADER_LENGTH} is {text[:40]!r}; expected a number from 0 to the {body_bytes} bytes of the body"
        )
    return int(text)


def read_json(data: Buffer, where: str = "the body") -> Any:
    """Parse JSON strictly: UTF-8, no NaN, no repeated keys. Raises InputError saying where it fails."""
    try:
        return json.loads(bytes(data).decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise InputError(f"{where} is not usable: {MAX_DEPTH_HINT}") from None
    except ValueError as error:  # of the hooks, and of a number with thousands of digits
        raise InputError(f"{where} is not usable JSON: {error}") from None


def read_request(body: Buffer, json_length: int | None) -> InferRequest:
    """Return the request in a body; ``json_length`` is that of the header, None for JSON alone, not 0.

    Raises InputError saying which input is wrong and how.
    """
    view = memoryview(body)
    head = read_json(view if json_length is None else view[:json_length])
    if not isinstance(head, dict):
        raise InputError(f"the body is a JSON {_kind(head)}; expected an object with inputs")
    binary = view[len(view) if json_length is None else json_length :]
    parameters = _parameters(head, "the request")
    if not isinstance(head.get("inputs"), list) or not head["inputs"]:
        raise InputError("inputs is missing or empty; expected a list of tensors")
    inputs, at = [], 0
    for number, one in enumerate(head["inputs"]):
        tensor, at = _input(one, f"inputs[{number}]", binary, at)
        inputs.append(tensor)
    if at != len(binary):
        raise InputError(f"{len(binary) - at} bytes of binary data belong to no input; check binary_data_size")
    whole_binary = _flag(parameters, "binary_data_output", "the request")
    return InferRequest(
        id=_text(head.get("id", ""), "id"),
        inputs=tuple(inputs),
        outputs=_outputs(head.get("outputs"), whole_binary),
        binary=whole_binary,
        parameters=parameters,
    )


def write_answer(
    model: str,
    version: str,
    request_id: str,
    outputs: Sequence[OutputTensor],
    parameters: Mapping[str, Any] | None = None,
) -> Answer:
    """Return the body with the outputs, each as JSON or as binary data."""
    head: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id:
        head["id"] = request_id
    if parameters:
        head["parameters"] = dict(parameters)
    described, raw = [], []
    for one in outputs:
        entry: dict[str, Any] = {"name": one.name, "datatype": one.datatype, "shape": list(one.shape)}
        if one.binary:
            raw.append(one.raw())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        elif isinstance(one.data, list):
            entry["data"] = [element.decode("utf-8", "replace") for element in one.data]
        else:
            entry["data"] = tensors.to_json(one.data)
        described.append(entry)
    head["outputs"] = described
    # Half of a surrogate pair, which JSON may have in an id, goes back as the escape that it came as.
    text = _WRITER.encode(head).encode("utf-8", "backslashreplace")
    return Answer(b"".join([text, *raw]), len(text)) if raw else Answer(text, None)


def error_body(message: str) -> bytes:
    """Return the body of an error as the protocol has it."""
    return json.dumps({"error": message}).encode("ascii")


def check_no_shared_memory(parameters: Mapping[str, Any], where: str) -> None:
    """Raise InputError where data are to come from, or to go to, memory that the client shares with another server."""
    if SHARED_MEMORY in parameters:
        raise InputError(f"{where}: shared memory is not offered here; requests and answers carry their data")


def not_offered(path: str) -> str | None:
    """Return what to say of an address of an extension that this server does not have, None for any other address."""
    parts = path.split("/")[2:]
    name = _EXTENSION_ROOTS.get(parts[0]) if parts else None
    if name is None and parts[:1] == ["models"]:
        rest = parts[4:] if parts[2:3] == ["versions"] else parts[2:]
        name = _MODEL_EXTENSIONS.get(rest[0]) if rest else "statistics" if parts[1:] == ["stats"] else None
    return None if name is None else extension_text(name)


def extension_text(name: str) -> str:
    """Return that an extension is not offered, in words."""
    instead = "; GET /metrics has figures" if name == "statistics" else ""
    return f"the extension {name} is not offered here{instead}; GET /v2 lists the extensions that are"


def _input(one: Any, where: str, binary: memoryview, at: int) -> tuple[InputTensor, int]:
    if not isinstance(one, dict):
        raise InputError(f"{where} is a JSON {_kind(one)}; expected an object with name, shape, datatype and data")
    name = _text(one.get("name"), f"{where}.name")
    if not name:
        raise InputError(f"{where}.name is missing")
    where = f"input {tensors.short(name)}"
    shape = tensors.check_shape(one.get("shape"), where)
    datatype = tensors.check_datatype(one.get("datatype"), where)
    parameters = _parameters(one, where)
    check_no_shared_memory(parameters, where)
    size = tensors.whole(parameters.get("binary_data_size"))
    if size is None:
        if "data" not in one:
            raise InputError(f"{where} has neither data nor binary_data_size")
        return InputTensor(name, datatype, shape, tensors.from_json(one["data"], datatype, shape, where)), at
    if "data" in one:
        raise InputError(f"{where} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(binary) - at:
        raise InputError(
            f"{where}: binary_data_size is {tensors.short(size)}, and {len(binary) - at} bytes of binary data are left"
        )
    data = binary[at : at + size]
    return InputTensor(name, datatype, shape, tensors.from_raw(data, datatype, shape, where)), at + size


def _outputs(listed: Any, default_binary: bool) -> tuple[WantedOutput, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise InputError(f"outputs is a JSON {_kind(listed)}; expected a list")
    found = []
    for number, one in enumerate(listed):
        where = f"outputs[{number}]"
        if not isinstance(one, dict):
            raise InputError(f"{where} is a JSON {_kind(one)}; expected an object with a name")
        parameters = _parameters(one, where)
        check_no_shared_memory(parameters, where)
        found.append(
            WantedOutput(
                name=_text(one.get("name"), f"{where}.name"),
                binary=_flag(parameters, "binary_data", where, default_binary),
                classes=_classes(tensors.whole(parameters.get("classification", 0)), where),
            )
        )
    names = [one.name for one in found]
    if len(set(names)) != len(names):
        raise InputError(f"outputs names {max(names, key=names.count)!r} twice")
    return tuple(found)


def _classes(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f"{where}: classification is {tensors.short(value)}; expected a whole number from 0")
    return value


def _parameters(owner: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"{where}: parameters is a JSON {_kind(found)}; expected an object")
    return found


def _flag(parameters: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} is {tensors.short(value)}; expected true or false")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is a JSON {_kind(value)}; expected a string")
    return value


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {tensors.short(max(names, key=names.count))} is there twice")
    return found


__all__ = ["BYTES", "EXTENSIONS", "Answer", "InferRequest", "InputTensor", "OutputTensor", "WantedOutput"]
