"""A handler as most people write it: FastAPI on uvicorn, one request a call of the model.

    python fastapi_app.py PORT PACKAGE '{"workers": 1, "threads": 2, "blocking": false}'

``threads`` bounds the threads of the handlers; ``blocking`` runs the model on the event loop.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request

SETTING = json.loads(os.environ.get("SETTING") or sys.argv[3])
PACKAGE = os.environ.get("PACKAGE") or sys.argv[2]
WORKERS = SETTING.get("workers", 1)

app = FastAPI()
runner = None


@app.on_event("startup")
def load() -> None:
    """Load the model once in each worker; the workers share the cores."""
    global runner
    instances = max(1, 2 // WORKERS)
    runner = import_module(PACKAGE).Runner(threads=1, instances=instances, batch_size=1)
    anyio.to_thread.current_default_thread_limiter().total_tokens = SETTING.get("threads", 40)


@app.get("/ready")
def ready() -> dict[str, bool]:
    """Say that the model is loaded."""
    return {"ready": runner is not None}


@app.post("/predict")
async def predict(request: Request) -> list[dict[str, Any]]:
    """Classify the image in the body."""
    body = await request.body()
    return classify(body) if SETTING.get("blocking") else await anyio.to_thread.run_sync(classify, body)


def classify(body: bytes) -> list[dict[str, Any]]:
    """Return the classes as JSON has them."""
    assert runner is not None
    return [
        {"label": one.label, "index": one.index, "probability": one.probability}
        for one in runner.predict(body, top_k=5)
    ]


if __name__ == "__main__":
    os.environ["SETTING"], os.environ["PACKAGE"] = json.dumps(SETTING), PACKAGE
    sys.path.insert(0, str(Path(__file__).parent))
    uvicorn.run(
        "fastapi_app:app", port=int(sys.argv[1]), workers=WORKERS, log_level="warning", loop="uvloop", http="httptools"
    )
