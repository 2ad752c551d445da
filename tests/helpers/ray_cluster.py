"""A local Ray cluster of two nodes of one CPU each, for tests and for ``benchmarks/on_ray.py``.

Tests need it in processes of a wheel's own environment. As a script it is the process that holds the cluster: it obeys
the lines of its standard input and answers each with a line ``> ...``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.fresh_venv import Environment  # which the cluster's own process does not need


PATIENT = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_health_check_timeout_ms": "60000",
}
"""Ray gives up what does not start or answer within seconds, which happens on a host that runs other tests, too. That a
node was killed it may notice by nothing else."""


NEW_CONNECTIONS = 30
"""So many answers in a row come from one proxy alone in one of 2**29 cases."""


@dataclass
class RayCluster:
    """The cluster's address, and the process that obeys."""

    process: subprocess.Popen[str]
    address: str = ""

    def tell(self, line: str) -> str:
        """Send a line, and return the answer to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> str:
        """Return the next answer. Ray prints lines of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:].rstrip("\n")
        raise AssertionError(f"the cluster's process has ended: {self.process.wait()}")


@contextmanager
def ray_cluster(environment: Environment) -> Iterator[RayCluster]:
    """Start a cluster whose workers are of ``environment``; what is left of it at the end is killed."""
    scratch = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Ray's sockets have long names below it
    kept = environment.variables() | {"RAY_TMPDIR": scratch} | PATIENT
    process = subprocess.Popen(
        [str(environment.root / "bin" / "python"), __file__],
        cwd=environment.root, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    started = RayCluster(process)
    try:
        with process:  # at the end its input is closed, and so it ends
            started.address = started.hear()
            yield started
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """Start a cluster of two nodes of one CPU in this process; yield it and its second node."""
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **store})
    try:
        yield cluster, cluster.add_node(num_cpus=1, **store)
    finally:
        cluster.shutdown()


def replicas(application: str) -> list[int]:
    """Return the processes of this host that are replicas of an application's model."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            title = (directory / "cmdline").read_bytes().decode()
        except OSError:  # it has ended
            continue
        if title.startswith(f"ray::ServeReplica:{application}:") and "-front" not in title:
            found.append(int(directory.name))
    return found


def main() -> None:
    import ray

    with two_nodes() as (cluster, second):
        print("> " + cluster.address, flush=True)
        try:
            for line in sys.stdin:
                command, *words = line.split()
                if command == "kill":
                    cluster.remove_node(second, allow_graceful=False)
                    print("> killed", flush=True)
                else:
                    print("> " + _COMMANDS[command](cluster.address, *words), flush=True)
        finally:
            ray.shutdown()


def _dataset(address: str, package: str, directory: str) -> str:
    """Run the class for Ray Data over the files of a directory; return labels, and what an actor's own plan is."""
    from importlib import import_module

    import ray

    ray.init(address=address, log_to_driver=False)
    predictor = import_module(f"{package}.ray").Predictor
    files = sorted(str(path) for path in Path(directory).iterdir())
    found = ray.data.from_items([{"path": path, "number": n} for n, path in enumerate(files)]).map_batches(
        predictor, **predictor.options(column="path", top_k=1)
    )
    rows = sorted(found.take_all(), key=lambda row: row["number"])
    labels = [row["error"] or row["top"][0]["label"] for row in rows]
    plans = ray.get([ray.remote(_plan).options(num_cpus=1).remote(package) for _ in range(2)])
    ray.shutdown()
    return repr((labels, plans))


def _plan(package: str) -> tuple[int, int, str]:
    """Return how a runner that nobody configured runs in a worker of one CPU, and what Ray set there."""
    import os
    from importlib import import_module

    with import_module(package).Runner() as runner:
        return runner.plan.threads, runner.plan.instances, os.environ["OMP_NUM_THREADS"]


def _serve(address: str, package: str, port: str, name: str, arguments: str) -> str:
    """Run the application with ``arguments``, a JSON object without blanks."""
    from importlib import import_module

    import ray
    from ray import serve

    ray.init(address=address, namespace="serve", log_to_driver=False)
    application = import_module(f"{package}.ray").app(json.loads(arguments))
    serve.start(http_options={"port": int(port)})
    serve.run(application, name=name)
    _wait_for_routes(int(port), name)
    return "ready"


def _wait_for_routes(port: int, name: str) -> None:
    """Wait until the proxies of all nodes are there and know the application: ``serve.run`` waits for no other node's.

    All listen on the same port of this host, and the kernel gives each new connection to one of them. A proxy that
    does not know the application yet answers 404.
    """
    import ray
    from ray import serve

    nodes = sum(node["Alive"] for node in ray.nodes())
    while [proxy.value for proxy in serve.status().proxies.values()] != ["HEALTHY"] * nodes:
        time.sleep(0.1)
    known = 0
    while known < NEW_CONNECTIONS:
        known = known + 1 if name in _applications(port) else 0
        if not known:
            time.sleep(0.1)


def _applications(port: int) -> list[str]:
    """Return the applications that the proxy behind a new connection knows."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/routes", timeout=300) as answer:
            return list(json.load(answer).values())
    except urllib.error.HTTPError as refusal:  # it does not know any yet
        if refusal.code != 503:
            raise
        return []


def _health(_address: str, name: str) -> str:
    from ray import serve

    deployments = serve.status().applications[name].deployments
    return " ".join(sorted(f"{name}={one.replica_states.get('RUNNING', 0)}" for name, one in deployments.items()))


_COMMANDS: dict[str, Callable[..., str]] = {"dataset": _dataset, "serve": _serve, "health": _health}


if __name__ == "__main__":
    main()
