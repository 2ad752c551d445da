"""The messages of gRPC's Open Inference Protocol and of its health check, built in code in a pool of their own.

Generated stubs register their files in the process's one pool. Two packages that bring the same file then cannot be
imported together ("duplicate symbol"), and stubs of a newer protoc refuse an older protobuf. A private pool has neither
problem: this server and tritonclient live in one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2

_TYPES = {
    "bool": 8,
    "int32": 5,
    "int64": 3,
    "uint32": 13,
    "uint64": 4,
    "float": 2,
    "double": 1,
    "string": 9,
    "bytes": 12,
}
"""Numbers of the scalar types (descriptor.proto, FieldDescriptorProto.Type)."""
_MESSAGE, _ENUM = 11, 14
_OPTIONAL, _REPEATED = 1, 3

_NAMED = "name:string version:string"
_TENSOR = "name:string datatype:string shape:*int64"
_MESSAGES: dict[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "ready:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string version:string extensions:*string",
    "ModelMetadataRequest": _NAMED,
    "ModelMetadataResponse": (
        "name:string versions:*string platform:string inputs:*.TensorMetadata outputs:*.TensorMetadata"
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferTensorContents": (
        "bool_contents:*bool int_contents:*int32 int64_contents:*int64 uint_contents:*uint32 uint64_contents:*uint64 "
        "fp32_contents:*float fp64_contents:*double bytes_contents:*bytes"
    ),
    "ModelInferRequest": (
        "model_name:string model_version:string id:string parameters:%InferParameter inputs:*.InferInputTensor "
        "outputs:*.InferRequestedOutputTensor raw_input_contents:*bytes"
    ),
    "ModelInferRequest.InferInputTensor": f"{_TENSOR} parameters:%InferParameter contents:InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name:string parameters:%InferParameter",
    "ModelInferResponse": (
        "model_name:string model_version:string id:string parameters:%InferParameter outputs:*.InferOutputTensor "
        "raw_output_contents:*bytes"
    ),
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR} parameters:%InferParameter contents:InferTensorContents",
}
"""Fields of each message in order, numbered from 1. ``*`` is repeated, ``%`` a map from strings, ``.`` is within it.
From the protocol's grpc_predict_v2.proto; a test compares them with tritonclient's."""

_PARAMETER = "bool_param:bool int64_param:int64 string_param:string double_param:double uint64_param:uint64"


@cache
def messages() -> Mapping[str, Any]:
    """Return the class of each message by its short name."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_inference_file())
    pool.Add(_health_file())
    names = [name for name in _MESSAGES if "." not in name]
    found = {name: pool.FindMessageTypeByName(f"inference.{name}") for name in (*names, "InferParameter")}
    found |= {
        name: pool.FindMessageTypeByName(f"grpc.health.v1.{name}")
        for name in ("HealthCheckRequest", "HealthCheckResponse")
    }
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _inference_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="cpupack/inference.proto", package="inference", syntax="proto3")
    parameter = file.message_type.add(name="InferParameter")
    parameter.oneof_decl.add(name="parameter_choice")
    _add_fields(parameter, "InferParameter", _PARAMETER)
    for field in parameter.field:
        field.oneof_index = 0
    made: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        _add_fields(made[name], name, fields)
    return file


def _add_fields(message: Any, path: str, fields: str) -> None:
    for number, text in enumerate(fields.split(), start=1):
        name, _, kind = text.partition(":")
        field = message.field.add(name=name, number=number, label=_REPEATED if kind[0] in "*%" else _OPTIONAL)
        kind = kind.lstrip("*")
        if kind.startswith("%"):
            entry = message.nested_type.add(name=f"{name.title()}Entry")
            entry.options.map_entry = True
            _add_fields(entry, f"{path}.{entry.name}", f"key:string value:{kind[1:]}")
            kind = f".{entry.name}"
        if kind in _TYPES:
            field.type = _TYPES[kind]
        else:
            field.type = _MESSAGE
            field.type_name = f".inference.{path}{kind}" if kind.startswith(".") else f".inference.{kind}"


def _health_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="cpupack/health.proto", package="grpc.health.v1", syntax="proto3")
    file.message_type.add(name="HealthCheckRequest").field.add(
        name="service", number=1, label=_OPTIONAL, type=_TYPES["string"]
    )
    answer = file.message_type.add(name="HealthCheckResponse")
    status = answer.enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        status.value.add(name=name, number=number)
    kind = ".grpc.health.v1.HealthCheckResponse.ServingStatus"
    answer.field.add(name="status", number=1, label=_OPTIONAL, type=_ENUM, type_name=kind)
    return file
