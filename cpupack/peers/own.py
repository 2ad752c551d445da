"""The wheel's own package, called as its users call it: ``runner(batch)``, or with a dict of several inputs."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import warnings
from typing import Any

from cpupack.peers.job import Array, Batch, Job
from cpupack.peers.pools import Call, ThreadedPool

_CALLERS_PER_INSTANCE = 2
"""One call is prepared while another is computed, as in ``Runner.predict`` and in any server."""


def build(job: Job) -> str:
    """Do nothing: the package is already built."""
    return f"the package {job.package['import_name']} and its own runner"


def open_runner(job: Job) -> Any:
    """Return the package's Runner with the job's threads, instances and batch size."""
    sys.path.insert(0, job.package["source"])
    package = importlib.import_module(job.package["import_name"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the comparison itself warns about random weights
        return package.Runner(threads=job.threads, instances=job.instances, batch_size=job.batch_size)


def open_pool(job: Job) -> ThreadedPool:
    """Call the runner from several threads. The runner computes in its own threads."""
    runner = open_runner(job)

    def load() -> Call:
        def call(batch: Array) -> Any:
            return runner(batch)

        return call

    callers = job if job.single else dataclasses.replace(job, instances=_CALLERS_PER_INSTANCE * job.instances)

    def adapt(batch: Batch) -> Any:
        if job.named is None or not job.takes_rows:
            return batch  # normalized pixels have the strides of channels_last
        names = [each.name for each in job.named.inputs]
        return dict(zip(names, job.arguments(batch), strict=True))

    return ThreadedPool(callers, load, adapt)
