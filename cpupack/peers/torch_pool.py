"""Shared by the engines that run in torch: threads of each instance, layouts, and conversion of pixels to floats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cpupack.layout import batch_channels_last
from cpupack.peers.job import Batch, Job
from cpupack.peers.pools import Call, ThreadedPool


def keep_out_of_openmp(job: Job) -> None:
    """Prevent the loading thread from starting OpenMP workers, unless it also serves.

    Once libgomp has more threads than there are CPUs, its threads never spin again, and the instances would be slower.
    """
    torch.set_num_threads(job.threads if job.single else 1)


def torch_pool(job: Job, load: Callable[[], Callable[..., Any]], *, channels_last: bool = False) -> ThreadedPool:
    """Serve a torch callable from several threads, each with ``job.threads`` OpenMP threads.

    It gets the model's arguments, and returns one tensor or a tuple of them.
    """

    def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
        found = tuple(torch.from_numpy(each) for each in job.arguments(batch))
        return tuple(batch_channels_last(each) for each in found) if channels_last else found

    def load_in_thread() -> Call:
        torch.set_num_threads(job.threads)  # for the calling thread: each OpenMP master has its own setting
        module = load()

        def call(batch: tuple[torch.Tensor, ...]) -> Any:
            with torch.inference_mode():
                return module(*batch)

        def call_pixels(batch: Batch) -> Any:
            return call(tensors(batch))

        return call_pixels if job.input_kind == "uint8" else call

    return ThreadedPool(job, load_in_thread, np.ascontiguousarray if job.input_kind == "uint8" else tensors)
