"""``NAME batch --address``: the shards of a run through an actor pool of Ray Data.

Only names and reports pass through Ray: each actor reads, decodes, computes and writes its own shards. Ray runs a task
again when its node dies, and a shard's file has one name. So every input is in the output once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data

from ..batch.command import check_some_readable
from ..batch.options import BatchOptions
from ..batch.prepare import Prepared, Say, prepare
from ..batch.results import ERROR
from ..batch.shards import Shard
from ..batch.store import RUN_NAME
from ..batch.stream import Stream
from ..batch.summary import Progress, facts
from ..batch.work import Job, Report, items_of, work
from ..errors import HostError, IntegrityError, RandomWeightsWarning
from ..manifest import read_manifest, root_hash
from ..runner import Runner
from ..warn import warn
from .cluster import connected, first_line, look_at_nodes, node_id, own_error, package_of
from .pool import Pool, Setting, make_pool

_TASKS_PER_ACTOR = 4
"""Parts that the shards are cut into, for each actor: the last ones end at about the same time."""
_MOST_SHARDS = 8
"""Shards of one task at most. Between two tasks the instances of an actor run empty."""
_ALONE_S = 2.0


def run(package_dir: Path, options: BatchOptions, say: Say) -> dict[str, Any]:
    """Run over all inputs that are not done, and return the figures. Raises as ``batch.command.run``, and HostError."""
    begin_s = time.monotonic()
    manifest = read_manifest(package_dir)
    with connected(options.address or "auto"):
        look_at_nodes(package_dir)  # before anything is written
        prepared = prepare(package_dir, options, say)
        shared = [("--from", prepared.job.source), ("--to", prepared.job.target / RUN_NAME)]
        nodes = look_at_nodes(package_dir, shared)
        pool = make_pool(nodes, threads=options.threads, instances=options.instances, batch_size=options.batch_size)
        if manifest.random_weights:  # the workers' own warnings are not seen
            text = f"{manifest.name} {manifest.version} has random weights: its predictions mean nothing"
            warn(text, RandomWeightsWarning)
        cores = sum(
            pool.settings[node.node_id].threads * pool.settings[node.node_id].instances * (node.cpus // pool.cpus)
            for node in nodes
        )
        counted = [(pool.actors, "actor"), (pool.cpus, "CPU"), (len(nodes), "node")]
        say("{} of {} on {}".format(*(f"{number} {noun}{'s' * (number != 1)}" for number, noun in counted)))
        progress = Progress(prepared, say)
        alone = None
        try:
            if prepared.left and options.baseline and pool.actors > 1:
                alone = _measure_alone(manifest.import_name, prepared, pool)
            for report in _reports(manifest.import_name, prepared, pool):
                progress.add(report)
        except ray.exceptions.RayError as error:
            if (own := own_error(error)) is not None:
                raise own from error
            raise HostError(f"Ray: {first_line(error)}; run the command again to go on where it stopped") from error
        left = prepared.job.store.missing(prepared.left)
        if left:
            raise HostError(f"{len(left)} files are missing from {prepared.job.target}; run the command again")
    prepared.job.store.finish()
    check_some_readable(progress)
    return facts(prepared, progress, time.monotonic() - begin_s, cores, pool.actors, alone)


def _reports(import_name: str, prepared: Prepared, pool: Pool) -> Iterator[Report]:
    left = prepared.left
    if not left:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it describes each of its plans
    tasks = min(len(left), max(_TASKS_PER_ACTOR * pool.actors, -(-len(left) // _MOST_SHARDS)))
    rows = [{"shard": json.dumps(asdict(shard))} for shard in left]
    found = ray.data.from_items(rows, override_num_blocks=tasks).map_batches(
        ShardWorker,
        fn_constructor_args=(import_name, prepared.job, pool.settings),
        batch_size=None,
        batch_format="numpy",
        num_cpus=pool.cpus,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, tasks), max_tasks_in_flight_per_actor=2),
    )
    for row in found.iter_rows():
        yield Report(**json.loads(row["report"]))


def _measure_alone(import_name: str, prepared: Prepared, pool: Pool) -> float:
    """Return the inputs a second of one core where one process is alone on its machine."""
    measured = (
        ray.remote(_alone)
        .options(num_cpus=pool.cpus)
        .remote(import_name, prepared.job, pool.settings, prepared.left, pool.cpus)
    )
    found: float = ray.get(measured)
    return found


def _alone(import_name: str, job: Job, settings: dict[str, Setting], shards: Sequence[Shard], cpus: int) -> float:
    allowed = os.sched_getaffinity(0)
    # Ray keeps no process to its CPUs, and alone this one would have those of the other actors, too.
    os.sched_setaffinity(0, sorted(allowed)[:cpus])
    try:
        return _rate_of(import_name, job, settings, shards)
    finally:
        os.sched_setaffinity(0, allowed)  # Ray uses the process again


def _rate_of(import_name: str, job: Job, settings: dict[str, Setting], shards: Sequence[Shard]) -> float:
    with open_runner(import_name, job, settings) as runner:
        stream = Stream(runner, job.run.top_k)
        begin_s = time.monotonic()
        count = 0
        for _ in stream.outcomes(item for shard in shards for item in items_of(runner, job, shard)):
            count += 1
            if time.monotonic() - begin_s > _ALONE_S:
                break
        took_s = time.monotonic() - begin_s
        stream.close()
        return count / took_s / (runner.plan.threads * runner.plan.instances)


def open_runner(import_name: str, job: Job, settings: dict[str, Setting]) -> Runner:
    """Open the package that is installed on this node, with the setting of this node.

    A node that has joined later has no setting, and its plan decides with the CPUs that Ray gave this worker. Raises
    IntegrityError where it is another build than the driver's.
    """
    package_dir = package_of(import_name)
    if root_hash(read_manifest(package_dir)) != job.run.package_digest:
        raise IntegrityError(f"another build of {import_name} is installed on a node; install the same wheel on all")
    own = settings.get(node_id())
    if own is None:
        return Runner(package_dir)
    return Runner(package_dir, threads=own.threads, instances=own.instances, batch_size=own.batch_size)


class ShardWorker:
    """An actor of the pool: takes shards, writes their files, gives reports."""

    def __init__(self, import_name: str, job: Job, settings: dict[str, Setting]) -> None:
        self._job = job
        self._runner = open_runner(import_name, job, settings)
        self._stream = Stream(self._runner, job.run.top_k)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a report for each shard. One whose file is there, because this task was begun before, is kept."""
        shards = [shard_of(str(each)) for each in batch["shard"]]
        left = self._job.store.missing(shards)
        done = [_report_of(self._job, shard) for shard in shards if shard not in left]
        for report in (*done, *work(self._runner, self._stream, self._job, left)):
            yield {"report": np.array([json.dumps(asdict(report))])}


def shard_of(text: str) -> Shard:
    """Return a shard from the JSON of its fields."""
    found = json.loads(text)
    return Shard(**{**found, "names": tuple(found["names"]), "row_groups": tuple(found["row_groups"])})


def _report_of(job: Job, shard: Shard) -> Report:
    errors = pq.read_table(job.store.path(shard), columns=[ERROR]).column(ERROR)
    now_s = time.time()
    return Report(shard.number, shard.rows, shard.rows - errors.null_count, (), now_s, now_s, "")
