"""FP32 in PyTorch: the module in eval mode under ``torch.inference_mode``, in the default layout."""

from __future__ import annotations

from cpupack.peers.job import Job
from cpupack.peers.pools import ThreadedPool
from cpupack.peers.torch_pool import keep_out_of_openmp, torch_pool


def build(job: Job) -> str:
    """Load the model to check that it is the same. There is nothing to build."""
    job.model()
    return "eval mode, inference_mode, FP32, contiguous (NCHW)"


def open_pool(job: Job) -> ThreadedPool:
    """Serve one module that all instances share."""
    keep_out_of_openmp(job)
    module = job.model()
    return torch_pool(job, lambda: module)
