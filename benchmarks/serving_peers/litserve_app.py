"""LitServe with the same runner: batches are formed by LitServe, in worker processes.

python litserve_app.py PORT PACKAGE '{"workers": 2, "batch": 8, "wait_ms": 2, "fast": true}'
"""

import json
import sys
from importlib import import_module
from typing import Annotated, Any

import litserve
from fastapi import Body


class Classify(litserve.LitAPI):  # type: ignore[misc] # LitServe has no types
    """Takes an encoded image, answers the five best classes."""

    package = ""
    """Set on the object, which travels to the worker processes."""
    instances = 1

    def setup(self, device: str) -> None:
        """Load the model in a worker process."""
        self.runner = import_module(self.package).Runner(
            threads=1, instances=self.instances, batch_size=max(1, self.max_batch_size)
        )

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/jpeg")]) -> bytes:
        """Pass the body on: the runner decodes it."""
        return request

    def predict(self, x: Any) -> Any:
        """Classify one image, or a list of them."""
        return self.runner.predict(x, top_k=5)

    def unbatch(self, output: Any) -> list[Any]:
        """Return the answers of a batch one by one."""
        return list(output)

    def encode_response(self, output: Any) -> list[dict[str, Any]]:
        """Return the classes as JSON has them."""
        return [{"label": one.label, "index": one.index, "probability": one.probability} for one in output]


if __name__ == "__main__":
    setting = json.loads(sys.argv[3])
    workers = setting.get("workers", 1)
    batch = setting.get("batch", 1)
    api = Classify(max_batch_size=batch, batch_timeout=setting.get("wait_ms", 0) / 1000.0)
    api.package, api.instances = sys.argv[2], max(1, 2 // workers)
    if batch > 1:
        api.batch = list
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=workers,
        timeout=setting.get("timeout_s", 30),
        fast_queue=setting.get("fast", False),
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=setting.get("servers", 1), generate_client_file=False,
        log_level="warning",
    )  # fmt: skip
