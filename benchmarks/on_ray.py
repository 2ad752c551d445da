"""What Ray costs and what it survives: `NAME batch` and Ray Serve on a local cluster of two nodes of one CPU each.

    python benchmarks/on_ray.py batch --package lite0_int8 --images PHOTOS --out benchmarks/results/on_ray.jsonl
    python benchmarks/on_ray.py serve --package lite0_int8 --images PHOTOS --out benchmarks/results/on_ray.jsonl

Run it with the interpreter of an environment that has the wheel with its extra ``ray``, on a host that does nothing
else. ``batch`` runs one process alone and the cluster in turn, over the same images. ``serve`` offers a rate, kills a
replica in the middle, and asks `bench --server` again and again for the p99.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers.ray_cluster import replicas, two_nodes

Row = dict[str, Any]
_APPLICATION, _PORT = "measured", 8123


def main() -> None:
    arguments = parse()
    measure: Mapping[str, Callable[[argparse.Namespace, Any], Iterator[Row]]] = {"batch": batch, "serve": serve_killed}
    with two_nodes() as (started, _):
        for row in measure[arguments.what](arguments, started):
            line = json.dumps({"what": arguments.what, **row})
            print(line, flush=True)  # noqa: T201 - a script
            if arguments.out is not None:
                with arguments.out.open("a") as out:
                    out.write(line + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("batch", "serve"))
    parser.add_argument("--package", required=True, help="import name of the wheel")
    parser.add_argument("--images", type=Path, required=True, help="folder of image files")
    parser.add_argument("--count", type=int, default=2000, help="of `batch`: images, the files again and again")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=12.0, help="of `serve`: requests a second")
    parser.add_argument("--max-latency-ms", type=float, default=250.0, help="of `serve`: the promise")
    parser.add_argument("--out", type=Path, help="JSON lines are added to this file")
    return parser.parse_args()


def batch(arguments: argparse.Namespace, started: Any) -> Iterator[Row]:
    """Yield the figures of one process on all cores, and of the cluster, in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch) / "images"
        images.mkdir()
        files = sorted(path for path in arguments.images.rglob("*") if path.is_file())
        for number, path in zip(range(arguments.count), itertools.cycle(files), strict=False):
            shutil.copyfile(path, images / f"{number:06}{path.suffix.lower()}")
        ways: dict[str, list[str]] = {"one process": [], "ray": ["--address", started.address, "--no-baseline"]}
        for number in range(arguments.rounds):
            for way, more in ways.items():
                target = Path(scratch) / f"{number}-{way}".replace(" ", "-")
                command = [sys.executable, "-m", arguments.package, "batch", "--from", str(images), "--to", str(target)]
                done = subprocess.run(
                    [*command, "--rows-per-file", "100", "--json", *more], check=True, stdout=subprocess.PIPE
                )
                found = json.loads(done.stdout)
                kept = ("inputs", "took_s", "busy_s", "processes", "cores", "inputs_per_s_per_core")
                yield {"way": way, "round": number, **{name: found[name] for name in kept}}


def serve_killed(arguments: argparse.Namespace, started: Any) -> Iterator[Row]:
    """Yield what the client of `bench --server` sees before, while and after a replica is killed."""
    from importlib import import_module

    import ray
    from ray import serve

    ray.init(address=started.address, namespace="serve", log_to_driver=False)
    try:
        app = import_module(f"{arguments.package}.ray").app
        serve.start(http_options={"port": _PORT})
        serve.run(app({"replicas": 2, "max_latency_ms": arguments.max_latency_ms}), name=_APPLICATION)
        ask(arguments, 3.0)  # the first requests of each process are slow
        yield {"when": "before", **ask(arguments, 10.0)}
        running = start(arguments, 15.0)
        time.sleep(5.0)
        killed_s = time.monotonic()
        os.kill(replicas(_APPLICATION)[0], signal.SIGKILL)
        yield {"when": "killed after 4 s", **answer(running)}
        for _ in range(2):
            yield {"when": f"{time.monotonic() - killed_s:.0f} s after", **ask(arguments, 5.0)}
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(arguments: argparse.Namespace, seconds: float) -> Row:
    """Return what the client sees in ``seconds``."""
    return answer(start(arguments, seconds))


def start(arguments: argparse.Namespace, seconds: float) -> subprocess.Popen[bytes]:
    """Start the client."""
    command = [sys.executable, "-m", arguments.package, "bench", "--server", f"http://127.0.0.1:{_PORT}", "--json"]
    options = ["--rate", f"{arguments.rate}", "--duration", f"{seconds}", "--from", f"images:{arguments.images}"]
    options += ["--max-latency-ms", f"{arguments.max_latency_ms}"]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE)


def answer(running: subprocess.Popen[bytes]) -> Row:
    """Return the figures of a client that has ended."""
    out, _ = running.communicate()
    found = json.loads(out)
    kept = ("rate_per_s", "requests", "answered", "refused", "failed", "errors", "max_latency_ms")
    latency_ms = {name: round(found["latency_ms"][name], 1) for name in ("p50", "p99", "max")}
    return {**{name: found[name] for name in kept}, "latency_ms": latency_ms}


if __name__ == "__main__":
    main()
