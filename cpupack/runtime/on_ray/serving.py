"""``NAME.ray:app``: the application for Ray Serve, with the numbers of the plan.

Requests pass Ray's proxy, a front (``front.py``) and a replica (``replica.py``). The replica has the queue of ``NAME
serve``: it batches, keeps the promise, and refuses what it cannot answer in time.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ..bench.server import shapes_up_to
from ..capacity import planning
from ..capacity.profiles import CallTime, Profile
from ..capacity.queueing import simulate
from ..errors import HostError
from ..host.probe import HostProbe
from ..manifest import read_manifest
from ..runner import Runner
from ..serve import promise
from ..serve.model import ServedModel
from ..serve.options import ServeOptions
from ..serve.times import PrepareTimes
from .app_options import AppOptions, read_arguments
from .cluster import look_at_nodes, plan_here
from .front import Front
from .pool import make_pool
from .replica import Replica

RAY_MS = 25.0
"""Allowance for the way through Ray's proxy and a front and back, which the replica does not see. Measured, see
docs/how-to/ray.md."""
_ROUNDS = 2
"""Calls that a replica may hold for each instance: one runs, the next one waits."""
_HEALTH_EVERY_S, _HEALTH_S = 10.0, 30.0


@dataclass(frozen=True)
class ReplicaPlan:
    """What Ray Serve must know of one replica.

    ``max_ongoing`` are the requests it may hold, ``target_ongoing`` those it has on average under the load that it
    carries with the promise, ``carries_per_s``.
    """

    cpus: int
    options: ServeOptions
    max_ongoing: int
    target_ongoing: float
    carries_per_s: float | None


def build(package_dir: Path, arguments: dict[str, object]) -> Application:
    """Return the application. Raises InputError for arguments that are impossible, HostError for a promise that is."""
    options = read_arguments(arguments)
    manifest = read_manifest(package_dir)
    plan = plan_replica(package_dir, options)
    scaling = (
        {"num_replicas": options.replicas}
        if options.replicas is not None
        else {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.min_replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=plan.target_ongoing,
            )
        }
    )
    replica = serve.deployment(Replica).options(
        name=manifest.name,
        ray_actor_options={"num_cpus": plan.cpus},
        max_ongoing_requests=plan.max_ongoing,
        max_queued_requests=plan.max_ongoing,
        health_check_period_s=_HEALTH_EVERY_S,
        health_check_timeout_s=_HEALTH_S,
        graceful_shutdown_timeout_s=options.drain_s,
        **scaling,
    )
    most = (options.replicas or options.max_replicas) * 2 * plan.max_ongoing
    front = serve.deployment(Front).options(
        name=f"{manifest.name}-front",
        ray_actor_options={"num_cpus": 0},
        num_replicas=options.fronts,
        max_ongoing_requests=2 * most,  # so that refusals come from here, with their reason
        graceful_shutdown_timeout_s=options.drain_s,
    )
    return front.bind(replica.bind(manifest.import_name, plan.options), plan.options.max_body_bytes)


def plan_replica(package_dir: Path, options: AppOptions) -> ReplicaPlan:
    """Return the numbers of one replica, measured on this host. Raises HostError where the promise cannot be held."""
    cpus = options.cpus or _cpus(package_dir, options)
    plan = plan_here(package_dir, cpus)
    served = ServeOptions(
        max_latency_ms=own_promise_ms(options.max_latency_ms),
        threads=options.threads or min(plan.threads, cpus),
        instances=options.instances or max(1, cpus // (options.threads or plan.threads)),
        batch_size=options.batch_size or plan.batch_size,
        max_body_bytes=options.max_body_mb * 2**20,
        drain_s=options.drain_s,
    )
    assert served.instances is not None
    assert served.batch_size is not None
    together = served.instances * served.batch_size
    if served.max_latency_ms is None:
        return ReplicaPlan(cpus, served, _ROUNDS * together, float(together), None)
    rate_per_s, ongoing = carried(package_dir, served)
    return ReplicaPlan(cpus, served, _ROUNDS * together, min(ongoing, _ROUNDS * together), rate_per_s)


def own_promise_ms(max_latency_ms: float | None) -> float | None:
    """Return the part of a promise that is a replica's own. Raises HostError where none is left."""
    if max_latency_ms is None:
        return None
    if max_latency_ms <= RAY_MS:
        raise HostError(f"{max_latency_ms:g} ms cannot be held: Ray's proxy and fronts alone take up to {RAY_MS:g} ms")
    return max_latency_ms - RAY_MS


def carried(package_dir: Path, options: ServeOptions) -> tuple[float, float]:
    """Return the rate that one replica carries with the promise, and how many requests it then has on average.

    The number follows from the rate and the mean latency by Little's law. Measured with images where the model takes
    them, because decoding is a part of the load.
    """
    max_latency_ms = options.max_latency_ms
    assert max_latency_ms is not None
    with Runner(
        package_dir, threads=options.threads, instances=options.instances, batch_size=options.batch_size
    ) as runner:
        model = ServedModel(runner, package_dir)
        table = promise.choose_setting(package_dir, options).table(model)
        decoding_s = promise.learn_decoding(model, PrepareTimes())
        promise.check_promise(max_latency_ms, table, decoding_s)
        calls = tuple(
            CallTime(one.size, 1000 * (one.mean_s + one.size * decoding_s), 1000 * (one.p99_s + one.size * decoding_s))
            for one in table
        )
        profile = Profile(runner.plan.threads, runner.plan.instances, calls)
    best = planning.highest_load([profile], max_latency_ms - planning.HTTP_MS)
    if best is None:
        raise promise.cannot_hold(max_latency_ms, calls[0].p99_ms + planning.HTTP_MS)
    call_s = {size: profile.call_ms(size) / 1000.0 for size in shapes_up_to(best.batch_size)}
    latency_s = float(np.mean(simulate(best.rate_per_s, best.instances, call_s).latency_s))
    return best.rate_per_s, max(1.0, best.rate_per_s * latency_s)


def _cpus(package_dir: Path, options: AppOptions) -> int:
    """Return the CPUs of a replica: the largest that leave none idle on the nodes of the cluster, else this host's."""
    if options.threads is not None or options.instances is not None:
        return (options.threads or 1) * (options.instances or 1)
    if not ray.is_initialized():
        with suppress(ConnectionError):  # no cluster yet: `serve run` then starts one here, with all of its CPUs
            ray.init(address="auto", namespace="serve")
    if ray.is_initialized():
        return make_pool(look_at_nodes(package_dir)).cpus
    return HostProbe().budget().usable
