"""Connects to a Ray cluster, and asks every node whether the package runs there and how."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..engine.contract import check_cpu
from ..errors import HostError, InputError, RunnerError
from ..host import granted
from ..host.granted import RAY, Grant
from ..host.probe import HostProbe
from ..manifest import read_manifest, root_hash
from ..plan import decide as planning
from .pool import NodeFacts

LOCAL, AUTO = "local", "auto"
_REACH_S = 5.0
_ANSWER_S = 120.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the cluster at ``address``: ``auto``, ``local`` for a new one here, or HOST:PORT.

    A connection that is there already is used and kept. Raises HostError without a cluster, or where its Ray or Python
    is another one.
    """
    if ray.is_initialized():
        yield
        return
    if address not in (AUTO, LOCAL):
        _reach(address)
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=_no_dashboard(address)
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise HostError(
            f"no Ray cluster at --address {address}: {text[:300]}; start one with `ray start --head`, or use "
            "--address local"
        ) from error
    with redirect_stdout(sys.stderr):  # Ray tells of nodes that die, also while it ends, and stdout has the result
        try:
            yield
        finally:
            ray.shutdown()


def _no_dashboard(address: str) -> bool | None:
    return False if address == LOCAL else None  # only who starts a cluster decides


def _reach(address: str) -> None:
    """Raise HostError where nothing listens: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--address {address}: expected auto, local, or HOST:PORT of the head node (port 6379)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise HostError(f"no Ray cluster at --address {address}: {error}; start one with `ray start --head`") from error


def package_of(import_name: str) -> Path:
    """Return the directory of the installed package. Raises HostError where it is not installed."""
    spec = importlib.util.find_spec(import_name)
    if spec is None or not spec.submodule_search_locations:
        raise HostError(f"the package {import_name} is not installed on {socket.gethostname()}")
    return Path(spec.submodule_search_locations[0]).resolve()


def look_at_nodes(package_dir: Path, paths: Sequence[tuple[str, Path]] = ()) -> list[NodeFacts]:
    """Return the facts of every node that has CPUs. ``paths`` (option, path) must be there on each.

    Raises HostError that names the first node that cannot work, and why.
    """
    manifest = read_manifest(package_dir)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise HostError("the Ray cluster has no node with a CPU")
    asked = [
        ray.remote(_look)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(manifest.import_name, node["NodeID"], int(node["Resources"]["CPU"]), list(paths))
        for node in nodes
    ]
    found = []
    for node, answer in zip(nodes, asked, strict=True):
        host = node["NodeManagerHostname"]
        try:
            facts: NodeFacts = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise HostError(
                f"node {host} ({node['NodeManagerAddress']}) cannot run {manifest.name}: {first_line(cause)}; install "
                f"the same wheel on every node: pip install '{manifest.name}[ray]'"
            ) from error
        if facts.problem is None and facts.digest != root_hash(manifest):
            facts = NodeFacts(facts.node_id, host, facts.cpus, problem=f"another build of {manifest.name} is installed")
        if facts.problem is not None:
            raise HostError(f"node {host} ({node['NodeManagerAddress']}) cannot work: {facts.problem}")
        found.append(facts)
    return found


def first_line(error: BaseException) -> str:
    """Return the line of an error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def plan_here(package_dir: Path, cpus: int) -> planning.Plan:
    """Return the plan for throughput with ``cpus`` CPUs of this host, whatever this process itself was given."""
    environ = dict(os.environ)
    own = granted.find()
    if own is not None and own.set_by_giver("OMP_NUM_THREADS", environ):
        del environ["OMP_NUM_THREADS"]
    probe = HostProbe(grant=Grant(cpus, RAY))
    return planning.decide(read_manifest(package_dir), objective="throughput", environ=environ, probe=probe)


def _look(import_name: str, node_id: str, cpus: int, paths: Sequence[tuple[str, Path]]) -> NodeFacts:
    host = socket.gethostname()
    try:
        package_dir = package_of(import_name)
        manifest = read_manifest(package_dir)
        check_cpu(manifest)
        for option, path in paths:
            if not path.exists():
                raise HostError(f"it has no {path}; {option} must lie on a file system that all nodes share")
        plan = plan_here(package_dir, cpus)
    except RunnerError as error:
        return NodeFacts(node_id, host, cpus, problem=str(error))
    return NodeFacts(node_id, host, cpus, plan.threads, plan.instances, plan.batch_size, root_hash(manifest))


def node_id() -> str:
    """Return the id of the node that this worker is on."""
    return str(ray.get_runtime_context().get_node_id())


def own_error(error: BaseException) -> RunnerError | None:
    """Return the runner's own error inside one of Ray's, None where there is none."""
    seen: Any = error
    for _ in range(8):
        cause = getattr(seen, "cause", None) or seen.__cause__
        if cause is None:
            return None
        if isinstance(cause, RunnerError) and not isinstance(cause, ray.exceptions.RayError):
            return cause
        seen = cause
    return None
