"""cpupack's own server with uvicorn in the place of its HTTP protocol: all else is the same.

    python uvicorn_app.py PORT PACKAGE '{"options": ["--batch-size", "1"]}'

It answers what one measurement needs, and offers none of the limits on clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import uvicorn


async def serve(port: int, package: str, setting: dict[str, Any]) -> None:
    """Load the model as ``serve`` does, and put an ASGI application on uvicorn before it."""
    serving = f"{package}._runtime.serve"
    options, lifecycle = import_module(f"{serving}.options"), import_module(f"{serving}.lifecycle")
    messages, service = import_module(f"{serving}.messages"), import_module(f"{serving}.service")
    import_module(f"{serving}.memory").keep_memory(os.environ)
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    arguments = parser.parse_args(["--port", "0", *setting.get("options", [])])
    server = lifecycle.Server(Path(import_module(package).__file__).parent, options.from_arguments(arguments), print)
    sys.setswitchinterval(0.0005)  # as ``serve`` does
    load = import_module(f"{serving}.loading").load
    loaded = await asyncio.to_thread(load, server._dir, server._options)
    server._use(loaded)
    server.service.state = service.State.READY

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request = messages.HttpRequest(
            scope["method"].encode(), scope["path"], scope["query_string"], headers, time.monotonic(),
            int(headers.get(b"content-length", b"0")),
        )  # fmt: skip
        answer = server.app.early(request)
        if answer is None:
            message = await receive()
            body = message["body"]
            if message.get("more_body"):
                chunks = [body]
                while message.get("more_body"):
                    message = await receive()
                    chunks.append(message["body"])
                body = b"".join(chunks)
            request.body, request.complete_s = body, time.monotonic()
            answer = await server.app.handle(request)
        lines = [(b"content-type", answer.content_type), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": [*lines, *answer.headers]})
        await send({"type": "http.response.body", "body": answer.body})
        server.app.answered(request, answer)

    config = uvicorn.Config(
        app, port=port, loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))
