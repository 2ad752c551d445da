"""The wheel's own package, as it ships: its Runner with the setting given, and the pool in it."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import numpy as np

from cpupack.peers.job import Array, Job
from cpupack.peers.pools import Call, ThreadedPool


def build(job: Job) -> str:
    """Nothing to make; the package is already there."""
    return f"the package {job.package['import_name']} and its own runner"


def open_runner(job: Job) -> Any:
    """Return the package's Runner with the job's threads, instances and batch size."""
    sys.path.insert(0, job.package["source"])
    package = importlib.import_module(job.package["import_name"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights: the comparison says so itself
        return package.Runner(threads=job.threads, instances=job.instances, batch_size=job.batch_size)


def open_pool(job: Job) -> OwnPool | ThreadedPool:
    """Serve floats through the runner's pool, pixels through the runner itself, which normalizes them."""
    runner = open_runner(job)
    if job.input_kind == "uint8":

        def load() -> Call:
            return lambda batch: runner(batch)

        return ThreadedPool(job, load, np.ascontiguousarray)
    return OwnPool(runner)


class OwnPool:
    """``runtime.pool.InstancePool`` of the wheel, which takes float32 tensors."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.instances: int = runner.plan.instances

    def submit(self, batch: Any, instance: int | None = None) -> Any:
        return self._runner.pool.submit(batch, instance)

    def adapt(self, batch: Array) -> Any:
        import torch

        return torch.from_numpy(batch)

    def close(self) -> None:
        self._runner.close()
