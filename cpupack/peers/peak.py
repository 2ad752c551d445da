"""How fast this CPU multiplies INT8 numbers at all: the yardstick beside the engines, measured in the same rounds.

One thread a core multiplies matrices that fit its second-level cache, uint8 by int8, with oneDNN's kernels as torch
ships them. One sample is one multiplication, of ``MACS`` multiply-adds.
"""

from __future__ import annotations

import warnings
from typing import Any

from cpupack.peers.job import Job
from cpupack.peers.pools import Call, ThreadedPool

_ROWS, _DEPTH, _WIDTH = 512, 1024, 512
"""1.25 MB of weights, inputs and outputs a thread."""
MACS = _ROWS * _DEPTH * _WIDTH


def open_pool(job: Job) -> ThreadedPool:
    """Serve the multiplication; batches are ignored, each thread has its own matrices."""
    import torch  # here: who needs MACS alone does not need torch

    torch.backends.quantized.engine = "onednn"

    def load() -> Call:
        torch.set_num_threads(job.threads)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # quantized tensors announce their own deprecation
            generator = torch.Generator().manual_seed(0)
            weights = torch.quantize_per_tensor(torch.randn(_WIDTH, _DEPTH, generator=generator), 0.05, 0, torch.qint8)
            packed = torch.ops.quantized.linear_prepack(weights, None)
            inputs = torch.quantize_per_tensor(torch.rand(_ROWS, _DEPTH, generator=generator), 0.01, 0, torch.quint8)

        def call(_: Any) -> Any:
            with torch.inference_mode():
                return torch.ops.quantized.linear(inputs, packed, 10.0, 128)

        return call

    return ThreadedPool(job, load, lambda batch: batch)
