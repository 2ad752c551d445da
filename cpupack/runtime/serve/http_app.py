"""The routes: which request goes where, and how errors and refusals are answered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import InputError, RunnerError
from . import metrics, openapi, page, predict_route, protocol
from .access_log import AccessLog, trace_ids
from .aside import Aside
from .encodings import decoded
from .held import Held
from .messages import HttpAnswer, HttpError, HttpRequest, error_body, json_answer
from .model import IMAGE, TENSOR, Data
from .request import Format, RefusedError, Request, Urgency
from .scheduler import BYTES, NORMAL, Refusal
from .service import Service, Timing, UnavailableError, read_deadline_ms, read_priority, read_timeout_us
from .token import has_token

DEADLINE_HEADER, PRIORITY_HEADER = b"x-deadline-ms", b"x-priority"
_SLOW_JSON_BYTES = 32 * 1024
"""JSON of more bytes is parsed on a thread of its own."""
_MISSING = "there is nothing at this address; GET /docs lists what there is"
_SERVER = "cpupack"


@dataclass(frozen=True)
class HttpSettings:
    """How the routes answer. ``token`` is None without authorization; ``shed_status`` is 429 or 503."""

    token: str | None
    shed_status: int
    body_bytes: int
    docs: bool = True


class HttpApp:
    """Answers requests with ``service``."""

    def __init__(self, service: Service, settings: HttpSettings, held: Held, log: AccessLog | None = None) -> None:
        self._service, self._settings, self._held, self._log = service, settings, held, log
        self.use_token(settings.token)
        self._parser = Aside()
        self._routes: dict[str, dict[bytes, Callable[[HttpRequest], HttpAnswer]]] = {
            "/metrics": {b"GET": self._metrics},
            "/v2": {b"GET": self._server_metadata},
            "/v2/health/live": {b"GET": self._live},
            "/v2/health/ready": {b"GET": self._server_ready},
            "/openapi.json": {b"GET": self._openapi},
            "/status.json": {b"GET": self._status},
        }
        for path, asset in page.assets().items():
            self._routes[path] = {b"GET": partial(_same, asset)}
        self._open_paths = {"/v2/health/live", "/v2/health/ready", *page.assets()}

    def use_token(self, token: str | None) -> None:
        """Ask for this token from now on, for none where it is None."""
        self._token = None if token is None else token.encode()

    def early(self, request: HttpRequest) -> HttpAnswer | None:
        """Return the answer that a request gets whatever is in its body, None when the body matters."""
        path = _plain(request.path)
        if self._token is not None and path not in self._open_paths and not self._authorized(request):
            return HttpAnswer(
                401,
                error_body("a token is needed: Authorization: Bearer ..."),
                headers=((b"www-authenticate", b"Bearer"),),
            )
        if request.method != b"POST":
            return None
        try:
            if (found := self._inference(path)) is None:
                return None
            request.route = found
            service = self._service
            service.check_serving()
            if service.idle:
                return None
            executor = service.executor
            images = (found == "predict" and executor.model.takes_images) or request.headers.get(
                b"content-type", b""
            ).startswith(b"image/")
            refusal = executor.would_refuse(IMAGE if images else TENSOR, request.length, 1, self._urgency(request))
        except HttpError as error:
            return error.answer()
        except UnavailableError as error:
            return self._unavailable(error)
        except InputError as error:
            return HttpAnswer(400, error_body(str(error)))
        return None if refusal is None else self._refused(request, refusal)

    def full(self, request: HttpRequest) -> HttpAnswer:
        """Return the answer to a request for whose body there is no room."""
        try:
            return self._refused(request, Refusal(BYTES, self._service.executor.backlog_s()))
        except UnavailableError as error:
            return self._unavailable(error)

    async def handle(self, request: HttpRequest) -> HttpAnswer:
        """Return the answer to a whole request."""
        path = _plain(request.path)
        try:
            if (methods := self._routes.get(path)) is not None:
                method = b"GET" if request.method == b"HEAD" else request.method
                if method not in methods:
                    raise _wrong_method(methods)
                return methods[method](request)
            found = request.route or self._inference(path)
            if found is None:
                return self._model(request, path)
            request.route = found
            if request.method != b"POST":
                raise _wrong_method([b"POST"])
            body = self._decoded(request)
            return await (self._predict(request, body) if found == "predict" else self._infer(request, body))
        except InputError as error:
            return HttpAnswer(400, error_body(str(error)))
        except RefusedError as error:
            return self._refused(request, error.refusal)
        except UnavailableError as error:
            return self._unavailable(error)
        except (RunnerError, MemoryError) as error:
            self._service.metrics.failures.add()
            return HttpAnswer(500, error_body(f"the model failed: {error or 'not enough memory'}"))

    def answered(self, request: HttpRequest, answer: HttpAnswer) -> None:
        """Count and log an answer that has just been written."""
        served: Request | None = request.log.get("served")
        if served is not None:
            self._service.sent(served)
        now_s = time.monotonic()
        route = request.log.get("route")
        counters = self._service.metrics
        if route is not None:
            counters.requests.add(route, str(answer.status))
            if (reason := request.log.get("refused")) is not None:
                counters.refused.add(reason)
                counters.refusal.observe(now_s - request.arrived_s)
            else:
                counters.duration.observe(now_s - request.arrived_s)
        if self._log is not None:
            self._log.write(self._line(request, answer, now_s))

    def close(self) -> None:
        """Stop the parser's thread."""
        self._parser.close()

    # The routes that answer from what is known.

    def _live(self, _: HttpRequest) -> HttpAnswer:
        return json_answer({"live": True})

    def _server_ready(self, _: HttpRequest) -> HttpAnswer:
        ready = self._service.ready
        return json_answer({"ready": ready}, 200 if ready else 503)

    def _server_metadata(self, _: HttpRequest) -> HttpAnswer:
        return json_answer(
            {"name": _SERVER, "version": self._service.model.version, "extensions": list(protocol.EXTENSIONS)}
        )

    def _metrics(self, _: HttpRequest) -> HttpAnswer:
        return HttpAnswer(200, self._service.metrics.text().encode(), metrics.CONTENT_TYPE.encode())

    def _openapi(self, _: HttpRequest) -> HttpAnswer:
        return json_answer(openapi.document(self._service.model, token=self._token is not None))

    def _status(self, _: HttpRequest) -> HttpAnswer:
        return json_answer(page.status(self._service))

    def _model(self, request: HttpRequest, path: str) -> HttpAnswer:
        """Answer ``/v2/models/NAME[/versions/VERSION][/ready]``."""
        rest = self._below_model(path)
        if request.method not in (b"GET", b"HEAD"):
            raise _wrong_method([b"GET"])
        if rest == "":
            return json_answer(self._service.model.metadata())
        if rest == "ready":
            ready = self._service.ready
            return json_answer({"name": self._service.model.name, "ready": ready}, 200 if ready else 503)
        raise HttpError(404, _MISSING)

    # The routes that compute.

    async def _infer(self, request: HttpRequest, body: bytes | bytearray) -> HttpAnswer:
        text = request.headers.get(b"inference-header-content-length")
        model = self._service.model
        json_length = protocol.header_length(None if text is None else text.decode("latin-1"), len(body))
        if json_length == 0:
            data = model.read_raw(body, request.headers.get(b"content-type", b"").decode("latin-1"))
            asked = protocol.InferRequest("", (), binary=True)
        else:
            if (json_length or len(body)) > _SLOW_JSON_BYTES:
                asked = await self._parser.run(protocol.read_request, body, json_length)
                model = self._service.model  # a reload may have come between
            else:
                asked = protocol.read_request(body, json_length)
            data = model.read(asked)
        urgency = self._urgency(request, asked.parameters)

        def make(logits: Any, _: Request) -> protocol.Answer:
            outputs = model.outputs(logits, asked.outputs, data, binary=asked.binary)
            return protocol.write_answer(model.name, model.version, asked.id, outputs)

        answer = await self._answer(request, data, urgency, make)
        if answer.json_length is None:
            return HttpAnswer(200, answer.body, headers=self._timing(request))
        length = (protocol.HEADER_LENGTH.encode(), b"%d" % answer.json_length)
        return HttpAnswer(200, answer.body, b"application/octet-stream", headers=(length, *self._timing(request)))

    async def _predict(self, request: HttpRequest, body: bytes | bytearray) -> HttpAnswer:
        model = self._service.model
        top_k = predict_route.read_top_k(request.query, model.kind)
        content_type = request.headers.get(b"content-type", b"").decode("latin-1")
        if len(body) > _SLOW_JSON_BYTES and content_type.startswith("application/json"):
            data = await self._parser.run(predict_route.read_body, model, body, content_type)
            while model is not self._service.model:  # a reload came between
                model = self._service.model
                data = await self._parser.run(predict_route.read_body, model, body, content_type)
        else:
            data = predict_route.read_body(model, body, content_type)
        answer = await self._answer(
            request, data, self._urgency(request), predict_route.answer_format(model, top_k, data.items)
        )
        return HttpAnswer(200, answer, headers=self._timing(request))

    async def _answer(self, request: HttpRequest, data: Data, urgency: Urgency, make: Format) -> Any:
        def admitted(forget: Callable[[], None]) -> None:
            request.on_gone = forget

        try:
            answer, served = await self._service.answer(data, urgency, make, admitted)
        finally:
            request.on_gone = None
        request.log["served"] = served
        return answer

    def _timing(self, request: HttpRequest) -> tuple[tuple[bytes, bytes], ...]:
        timing = Timing.of(request.log["served"])
        text = f"queue;dur={timing.queue_ms:g}, prepare;dur={timing.prepare_ms:g}, compute;dur={timing.compute_ms:g}"
        return ((b"server-timing", text.encode("ascii")),)

    # What all share.

    def _inference(self, path: str) -> str | None:
        """Return ``predict`` or ``infer`` for a route that computes, None for another."""
        if path == "/predict":
            return "predict"
        if path.startswith("/v2/models/") and path.endswith("/infer") and self._below_model(path) == "infer":
            return "infer"
        return None

    def _below_model(self, path: str) -> str:
        """Return what follows the model and its version in a path. Raises HttpError 404 for another model."""
        parts = path.split("/")[1:]
        if parts[:1] == ["v2"] and (unknown := protocol.not_offered(path)) is not None:
            raise HttpError(404, unknown)
        if len(parts) < 3 or parts[:2] != ["v2", "models"]:
            raise HttpError(404, _MISSING)
        model = self._service.model
        if parts[2] != model.name:
            raise HttpError(404, f"there is no model {parts[2][:80]!r} here; this server has {model.name!r}")
        rest = parts[3:]
        if rest[:1] == ["versions"]:
            if len(rest) < 2 or rest[1] != model.version:
                wanted = rest[1][:80] if len(rest) > 1 else ""
                raise HttpError(
                    404, f"there is no version {wanted!r} of {model.name!r} here; this server has {model.version!r}"
                )
            rest = rest[2:]
        return "/".join(rest)

    def _urgency(self, request: HttpRequest, parameters: Any = None) -> Urgency:
        headers = request.headers
        deadline_ms, priority = None, NORMAL
        if (text := headers.get(DEADLINE_HEADER)) is not None:
            deadline_ms = read_deadline_ms(text.decode("latin-1"), "X-Deadline-Ms")
        if (text := headers.get(PRIORITY_HEADER)) is not None:
            priority = read_priority(text.decode("latin-1"), "X-Priority")
        if parameters:
            if deadline_ms is None:
                deadline_ms = read_timeout_us(parameters.get("timeout"))
            if PRIORITY_HEADER not in headers:
                priority = read_priority(parameters.get("priority"), "priority")
        complete_s = request.complete_s or request.arrived_s
        return self._service.urgency(request.arrived_s, complete_s, deadline_ms, priority)

    def _authorized(self, request: HttpRequest) -> bool:
        assert self._token is not None
        return has_token(request.headers.get(b"authorization", b""), self._token)

    def _refused(self, request: HttpRequest, refusal: Refusal) -> HttpAnswer:
        request.log["refused"] = refusal.reason
        request.log.setdefault("route", request.route)
        wait_ms = max(1, math.ceil(1000.0 * min(refusal.retry_after_s, 3600.0)))
        headers = (
            (b"retry-after", b"%d" % math.ceil(wait_ms / 1000)),
            (b"x-retry-after-ms", b"%d" % wait_ms),
            (b"x-refused", refusal.reason.encode()),
        )
        body = _REFUSAL % (refusal.reason.encode(), _REASONS.get(refusal.reason, _OVERLOADED), wait_ms)
        return HttpAnswer(self._settings.shed_status, body, headers=headers)

    def _unavailable(self, error: UnavailableError) -> HttpAnswer:
        text = "the server is about to stop" if error.reason == "draining" else "the model is not loaded yet"
        headers = ((b"retry-after", b"1"), (b"x-refused", error.reason.encode()))
        self._service.metrics.refused.add(error.reason)
        return HttpAnswer(503, error_body(text), headers=headers)

    def _decoded(self, request: HttpRequest) -> bytes | bytearray:
        """Return the body without its Content-Encoding, which counts as well. Raises HttpError and RefusedError."""
        request.log["route"] = request.route
        encoding = request.headers.get(b"content-encoding")
        if encoding is None:
            return request.body
        found, own = decoded(request.body, encoding, self._settings.body_bytes), request.reserved_bytes
        if found is not request.body:
            if not self._held.take(own + len(found), own):
                raise RefusedError(Refusal(BYTES, self._service.executor.backlog_s()))
            request.reserved_bytes = own + len(found)
        return found

    def _line(self, request: HttpRequest, answer: HttpAnswer, now_s: float) -> dict[str, Any]:
        trace, parent = trace_ids(request.headers.get(b"traceparent"))
        line: dict[str, Any] = {
            "client": request.client,
            "method": request.method.decode("latin-1"),
            "path": request.path[:512],
            "status": answer.status,
            "duration_ms": round(1000.0 * (now_s - request.arrived_s), 3),
            "request_bytes": len(request.body),
            "response_bytes": len(answer.body),
            "trace_id": trace,
        }
        if parent is not None:
            line["parent_id"] = parent
        if (reason := request.log.get("refused")) is not None:
            line["refused"] = reason
        if (served := request.log.get("served")) is not None:
            timing = Timing.of(served)
            line |= {"queue_ms": timing.queue_ms, "prepare_ms": timing.prepare_ms, "compute_ms": timing.compute_ms}
            line["batch"] = timing.batch
        return line


_REFUSAL = b'{"error": "refused (%b): %b; try again in %d ms"}'
_OVERLOADED = b"the server is overloaded"
_REASONS = {
    "deadline": b"it could not be answered by its deadline",
    "expired": b"it waited until its deadline could no longer be kept",
    "queue": b"too many requests wait",
    "bytes": b"the requests that wait hold too much memory",
}
"""Texts that need no escape in JSON: a server under load writes thousands of refusals."""


def _same(answer: HttpAnswer, request: HttpRequest) -> HttpAnswer:
    """Return an answer that does not depend on the request."""
    return answer


def _plain(path: str) -> str:
    return path if path[-1:] != "/" else path.rstrip("/") or "/"


def _wrong_method(allowed: Any) -> HttpError:
    names = ", ".join("GET, HEAD" if one == b"GET" else one.decode() for one in allowed)
    return HttpError(405, f"this address takes {names}", ((b"allow", names.encode()),))
