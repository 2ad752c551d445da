"""The Open Inference Protocol over gRPC, on the event loop of the HTTP server, and gRPC's own health check."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from ..errors import HostError, InputError, RunnerError
from ..host.limits import why_no_thread
from ..threads import may_start
from . import protocol, tensors
from .access_log import AccessLog, trace_ids
from .addresses import address as address_of
from .addresses import client_of
from .aside import Aside
from .descriptors import HEALTH, NOT_SERVING, SERVICE, SERVING, messages
from .grpc_carrier import Carried, Carrier
from .held import Held
from .keys import Keys, grpc_credentials
from .options import ServeOptions
from .protocol import InferRequest, InputTensor, OutputTensor, WantedOutput
from .request import RefusedError, Request
from .service import Service, Timing, UnavailableError, read_deadline_ms, read_priority, read_timeout_us
from .tensors import BYTES
from .token import has_token

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field that holds the elements of each datatype; FP16 and BF16 have only the raw form."""
_EXTENSION_METHODS = {
    "ModelStatistics": "statistics", "ModelConfig": "model_configuration", "TraceSetting": "trace",
    "LogSettings": "logging", "RepositoryIndex": "model_repository", "RepositoryModelLoad": "model_repository",
    "RepositoryModelUnload": "model_repository",
} | {
    f"{memory}SharedMemory{verb}": f"{memory.lower()}_shared_memory"
    for memory in ("System", "Cuda")
    for verb in ("Status", "Register", "Unregister")
}  # fmt: skip
_FEWEST_STREAMS = 1024
_GRPC_THREADS = min(16, max(4, os.cpu_count() or 1)) + 4
"""What the library of gRPC starts by itself. It ends the process (SIGABRT) where the system refuses one of them."""


class GrpcDoor:
    """A running server of gRPC on ``port``."""

    def __init__(self, server: Any, port: int, calls: Calls) -> None:
        self._server, self.port, self._calls = server, port, calls

    def sweep(self) -> None:
        """End calls of clients that are too slow. To be called every second."""
        self._calls.carrier.sweep()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give those under way ``grace_s`` to finish."""
        await self._server.stop(grace_s)
        self._calls.close()


async def open_door(service: Service, options: ServeOptions, keys: Keys, held: Held, log: AccessLog | None) -> GrpcDoor:
    """Start to listen. Raises InputError when the port cannot be had, HostError where threads are refused."""
    if not may_start(_GRPC_THREADS):
        raise HostError(why_no_thread())
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", options.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", _FEWEST_STREAMS),
            ("grpc.max_metadata_size", 32 * 1024),
            # A host that is gone without a word, or a process that was stopped, holds no answers for ever.
            ("grpc.keepalive_time_ms", math.ceil(1000.0 * options.client_timeout_s)),
            ("grpc.keepalive_timeout_ms", math.ceil(1000.0 * options.client_timeout_s)),
        ]
    )
    calls = Calls(service, keys, Carrier(held, options.max_body_bytes, options.client_timeout_s), log)
    server.add_generic_rpc_handlers(calls.handlers())
    address = address_of(options.host, options.grpc_port or 0)
    try:
        if keys.pair is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, grpc_credentials(keys))
    except (RuntimeError, OSError) as error:
        raise InputError(f"cannot listen on {address} for gRPC; choose another --grpc-port ({error})") from error
    if port == 0:
        raise InputError(f"cannot listen on {address} for gRPC; choose another --grpc-port")
    await server.start()
    return GrpcDoor(server, port, calls)


class Calls:
    """The methods of the service."""

    def __init__(self, service: Service, keys: Keys, carrier: Carrier, log: AccessLog | None) -> None:
        self._service, self._keys, self.carrier, self._log = service, keys, carrier, log
        self._messages = messages()
        self._parser = Aside()

    def close(self) -> None:
        """Stop the parser's thread."""
        self._parser.close()

    def handlers(self) -> tuple[Any, ...]:
        """Return what grpc's server calls."""
        health = {"Check": self._method("HealthCheckRequest", self._check)}
        found = {
            "ServerLive": self._method("ServerLiveRequest", self._server_live),
            "ServerReady": self._method("ServerReadyRequest", self._server_ready),
            "ModelReady": self._method("ModelReadyRequest", self._model_ready),
            "ServerMetadata": self._method("ServerMetadataRequest", self._server_metadata),
            "ModelMetadata": self._method("ModelMetadataRequest", self._model_metadata),
            # On the wire it is one message and one answer. This form alone lets their bytes be counted.
            "ModelInfer": grpc.stream_stream_rpc_method_handler(self._carried),
        }
        return (
            grpc.method_handlers_generic_handler(SERVICE, found | _not_offered()),
            grpc.method_handlers_generic_handler(HEALTH, health),
        )

    def _method(self, request: str, call: Callable[[Any, Any], Any]) -> Any:
        read = self._messages[request].FromString

        async def answer(data: bytes, context: Any) -> Any:
            try:  # here, because grpc would log a traceback for each and answer UNKNOWN
                message = read(data)
            except DecodeError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {request}: {error}")
            try:
                return await call(message, context)
            except UnavailableError as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, error.reason, (("x-refused", error.reason),))

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=_serialized)

    async def _server_live(self, _: Any, __: Any) -> Any:
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any, __: Any) -> Any:
        return self._messages["ServerReadyResponse"](ready=self._service.ready)

    async def _check(self, request: Any, context: Any) -> Any:
        if request.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r} here")
        return self._messages["HealthCheckResponse"](status=SERVING if self._service.ready else NOT_SERVING)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        await self._check_token(context)
        await self._check_model(request.name, request.version, context)
        return self._messages["ModelReadyResponse"](ready=self._service.ready)

    async def _server_metadata(self, _: Any, context: Any) -> Any:
        await self._check_token(context)
        return self._messages["ServerMetadataResponse"](
            name="cpupack", version=self._service.model.version, extensions=protocol.GRPC_EXTENSIONS
        )

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        await self._check_token(context)
        await self._check_model(request.name, request.version, context)
        return self._messages["ModelMetadataResponse"](**self._service.model.metadata())

    async def _carried(self, _: Any, context: Any) -> None:
        await self.carrier.carry(context, self._messages["ModelInferRequest"].FromString, self._infer)

    async def _infer(self, request: Any, context: Any, call: Carried) -> bytes:
        begin_s = time.monotonic()
        await self._check_token(context)
        try:
            await self._check_model(request.model_name, request.model_version, context)
        except UnavailableError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.reason, (("x-refused", error.reason),))
        answer = b""
        service, reason, served = self._service, None, None
        code, text = grpc.StatusCode.OK, ""
        trailing: tuple[tuple[str, str], ...] = ()
        try:
            service.check_serving()
            call.hold(service.executor.backlog_s)
            if call.message_bytes > 64 * 1024 and not request.raw_input_contents:
                asked = await self._parser.run(read_infer, request)
            else:
                asked = read_infer(request)
            model = service.model
            data = model.read(asked)
            urgency = self._urgency(begin_s, asked, context)

            def make(logits: Any, _: Request) -> bytes:
                outputs = model.outputs(logits, asked.outputs, data, binary=True)
                return self._answer(model.name, model.version, asked.id, outputs)

            answer, served = await service.answer(data, urgency, make)
        except InputError as error:
            code, text = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except RefusedError as error:
            reason = error.refusal.reason
            wait_ms = max(1, math.ceil(1000.0 * min(error.refusal.retry_after_s, 3600.0)))
            trailing = (("grpc-retry-pushback-ms", str(wait_ms)), ("x-refused", reason))
            code, text = grpc.StatusCode.RESOURCE_EXHAUSTED, f"refused ({reason}); try again in {wait_ms} ms"
        except UnavailableError as error:
            reason = error.reason
            code, text, trailing = grpc.StatusCode.UNAVAILABLE, reason, (("x-refused", reason),)
        except (RunnerError, MemoryError) as error:
            service.metrics.failures.add()
            code, text = grpc.StatusCode.INTERNAL, f"the model failed: {error or 'not enough memory'}"
        except asyncio.CancelledError:
            service.metrics.gone.add()
            raise
        self._count(begin_s, code, reason, served, context)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, text, trailing)
        return answer

    def _urgency(self, begin_s: float, asked: InferRequest, context: Any) -> Any:
        """Return the deadline of the call: its own, then the parameter ``timeout``, then that of gRPC."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        deadline_ms = read_deadline_ms(metadata.get("x-deadline-ms"), "x-deadline-ms")
        if deadline_ms is None:
            deadline_ms = read_timeout_us(asked.parameters.get("timeout"))
        if deadline_ms is None:
            left_s = context.time_remaining()
            promise_s = self._service.promise_s
            if left_s is not None and left_s < (math.inf if promise_s is None else promise_s):
                deadline_ms = max(0.001, 1000.0 * left_s)
        priority = metadata.get("x-priority", asked.parameters.get("priority"))
        return self._service.urgency(begin_s, begin_s, deadline_ms, read_priority(priority, "priority"))

    def _answer(self, model: str, version: str, request_id: str, outputs: list[OutputTensor]) -> bytes:
        answer = self._messages["ModelInferResponse"](model_name=model, model_version=version, id=request_id)
        for one in outputs:
            answer.outputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
            answer.raw_output_contents.append(one.raw())
        return bytes(answer.SerializeToString())

    def _count(self, begin_s: float, code: Any, reason: str | None, served: Request | None, context: Any) -> None:
        metrics, now_s = self._service.metrics, time.monotonic()
        metrics.requests.add("grpc", code.name)
        if served is not None:
            self._service.sent(served)
        if reason is not None:
            metrics.refused.add(reason)
            metrics.refusal.observe(now_s - begin_s)
        else:
            metrics.duration.observe(now_s - begin_s)
        if self._log is None:
            return
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        trace, parent = trace_ids(metadata.get("traceparent", "").encode())
        client = client_of(context.peer())
        line: dict[str, Any] = {
            "client": "local" if client is None else client[0], "method": "gRPC",
            "path": f"/{SERVICE}/ModelInfer", "status": code.name,
            "duration_ms": round(1000.0 * (now_s - begin_s), 3), "trace_id": trace,
        }  # fmt: skip
        if parent is not None:
            line["parent_id"] = parent
        if reason is not None:
            line["refused"] = reason
        if served is not None:
            timing = Timing.of(served)
            line |= {"queue_ms": timing.queue_ms, "prepare_ms": timing.prepare_ms, "compute_ms": timing.compute_ms}
            line["batch"] = timing.batch
        self._log.write(line)

    async def _check_token(self, context: Any) -> None:
        if self._keys.token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not has_token(given if isinstance(given, bytes) else str(given).encode(), self._keys.token.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed: authorization: Bearer ...")

    async def _check_model(self, name: str, version: str, context: Any) -> None:
        model = self._service.model
        if name != model.name or version not in ("", model.version):
            wanted = f"{name!r}" + (f" version {version!r}" if version else "")
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no model {wanted} here; this server has {model.name} {model.version}",
            )


def _not_offered() -> dict[str, Any]:
    """Return the methods of extensions that this server does not have. Each says so."""

    def refusing(text: str) -> Any:
        async def refuse(_: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

        return grpc.stream_stream_rpc_method_handler(refuse)

    streams = refusing("streams are not offered here; send each request with ModelInfer")
    return {"ModelStreamInfer": streams} | {
        method: refusing(protocol.extension_text(name)) for method, name in _EXTENSION_METHODS.items()
    }


def read_infer(message: Any) -> InferRequest:
    """Return the request that a message holds. Raises InputError saying which input is wrong and how."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InputError(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs; send one for each")
    inputs = []
    for number, one in enumerate(message.inputs):
        where = f"input {one.name[:80]!r}"
        protocol.check_no_shared_memory(one.parameters, where)
        shape = tensors.check_shape(list(one.shape), where)
        datatype = tensors.check_datatype(one.datatype, where)
        if raw:
            if one.HasField("contents"):
                raise InputError(f"{where} has both contents and raw_input_contents")
            data = tensors.from_raw(raw[number], datatype, shape, where)
        else:
            data = _from_contents(one.contents, datatype, shape, where)
        inputs.append(InputTensor(one.name, datatype, shape, data))
    outputs = []
    for one in message.outputs:
        protocol.check_no_shared_memory(one.parameters, f"output {one.name[:80]!r}")
        classes = _parameters(one.parameters).get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InputError(f"output {one.name[:80]!r}: classification is {classes!r}; expected a whole number from 0")
        outputs.append(WantedOutput(one.name, binary=True, classes=classes))
    if not inputs:
        raise InputError("the request has no inputs")
    if len({one.name for one in outputs}) != len(outputs):
        raise InputError("an output is asked for twice")
    return InferRequest(
        message.id, tuple(inputs), tuple(outputs), binary=True, parameters=_parameters(message.parameters)
    )


def _from_contents(contents: Any, datatype: str, shape: tuple[int, ...], where: str) -> Any:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InputError(f"{where}: {datatype} has no contents; send raw_input_contents")
    values = getattr(contents, field)
    if others := [other.name for other, _ in contents.ListFields() if other.name != field]:
        raise InputError(f"{where}: {datatype} has its data in {field}; got {', '.join(others)}")
    count = math.prod(shape)
    if len(values) != count:
        raise InputError(f"{where}: {field} has {len(values)} elements; shape {list(shape)} has {count}")
    if datatype == BYTES:
        return [memoryview(value) for value in values]
    array = np.array(values, dtype=_WIDE.get(field))
    dtype = tensors.DTYPES[datatype]
    if array.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"{where}: {field} holds a number that {datatype} cannot")
    return array.astype(dtype, copy=False).reshape(shape)


_WIDE = {
    "bool_contents": np.bool_, "int_contents": np.int32, "int64_contents": np.int64, "uint_contents": np.uint32,
    "uint64_contents": np.uint64, "fp32_contents": np.float32, "fp64_contents": np.float64,
}  # fmt: skip


def _parameters(found: Any) -> dict[str, Any]:
    chosen = {key: value.WhichOneof("parameter_choice") for key, value in found.items()}
    return {key: getattr(found[key], which) for key, which in chosen.items() if which is not None}


def _serialized(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
