"""Hands each request to a replica, and to another one where that one dies: Ray Serve itself would answer 500."""

from __future__ import annotations

import time
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import Response

from ..serve.messages import HttpAnswer, error_body
from .cluster import node_id
from .replica import Call

_TRIES = 3
"""Replicas that a request is given to. The model changes nothing, so a request may run twice."""
_INLINE_BYTES = 64 * 1024
"""Ray sends arguments of up to 100 KB along with a call. Larger ones would go through the object store of a node."""


class Front:
    """An HTTP handler of Ray Serve in front of the replicas of ``model``, which is a handle."""

    def __init__(self, model: Any, max_body_bytes: int) -> None:
        self._model, self._max_body_bytes = model, max_body_bytes
        self._node = node_id()

    async def __call__(self, request: Request) -> Response:
        """Return the replica's answer: 429 where all replicas are full, 503 where none is there."""
        arrived_s = time.monotonic()
        body = await request.body()
        if len(body) > self._max_body_bytes:
            text = f"the body has {len(body)} bytes, and this server takes {self._max_body_bytes}"
            return _response(HttpAnswer(413, error_body(text)))
        scope = request.scope
        call = Call(
            method=scope["method"].encode("latin-1"),
            path=scope["path"].removeprefix(scope.get("root_path", "")) or "/",
            query=scope.get("query_string", b""),
            headers={name.lower(): value for name, value in scope["headers"]},
            arrived_s=arrived_s,
            node_id=self._node,
        )
        return _response(await self._answer(call, body))

    async def _answer(self, call: Call, body: bytes) -> HttpAnswer:
        parts = [body[start : start + _INLINE_BYTES] for start in range(0, len(body), _INLINE_BYTES)]
        for _ in range(_TRIES):
            try:
                answer: HttpAnswer = await self._model.answer.remote(call, *parts)
            except RayActorError:  # the replica has died, or cannot be reached: its router goes on without it
                continue
            except BackPressureError:
                return _refused(429, "refused (queue): too many requests wait; try again in 1000 ms", "queue")
            except DeploymentUnavailableError:
                break
            return answer
        return _refused(503, "no replica could answer; try again in 1000 ms", "not_ready")


def _refused(status: int, text: str, reason: str) -> HttpAnswer:
    headers = ((b"retry-after", b"1"), (b"x-retry-after-ms", b"1000"), (b"x-refused", reason.encode()))
    return HttpAnswer(status, error_body(text), headers=headers)


def _response(answer: HttpAnswer) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
    headers["content-type"] = answer.content_type.decode("latin-1")
    return Response(answer.body, answer.status, headers)
