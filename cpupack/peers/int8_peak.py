"""Measures how fast this CPU can multiply INT8 numbers, in the same rounds as the engines, as a reference.

One thread on each core runs a 3x3 convolution from the middle of a ResNet with torch's oneDNN kernels, in buffers that
fit into the second-level cache. Of several matrix products and convolutions, this one came nearest to the limit of the
arithmetic (with AMX, 20 % faster than large matrix products). One sample is one call with ``MACS`` multiply-adds.
"""

from __future__ import annotations

import warnings
from typing import Any

from cpupack.peers.job import Job
from cpupack.peers.pools import Call, ThreadedPool

_IMAGES, _CHANNELS, _SIZE, _KERNEL = 4, 256, 14, 3
MACS = _IMAGES * _SIZE**2 * _CHANNELS**2 * _KERNEL**2


def open_pool(job: Job) -> ThreadedPool:
    """Serve the convolution. Batches are ignored; each thread has its own buffers."""
    import torch  # imported here, because a caller that only needs MACS does not need torch

    from cpupack.layout import batch_channels_last

    torch.backends.quantized.engine = "onednn"

    def load() -> Call:
        torch.set_num_threads(job.threads)
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(_CHANNELS, _CHANNELS, _KERNEL, _KERNEL, generator=generator)
        inputs = torch.rand(_IMAGES, _CHANNELS, _SIZE, _SIZE, generator=generator)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # torch warns that quantized tensors are deprecated
            packed = torch.ops.quantized.conv2d_prepack(
                torch.quantize_per_tensor(batch_channels_last(weights), 0.05, 0, torch.qint8),
                None,
                [1, 1],
                [_KERNEL // 2, _KERNEL // 2],
                [1, 1],
                1,
            )
            pixels = torch.quantize_per_tensor(batch_channels_last(inputs), 0.01, 0, torch.quint8)

        def call(_: Any) -> Any:
            with torch.inference_mode():
                return torch.ops.quantized.conv2d_relu(pixels, packed, 10.0, 0)

        return call

    return ThreadedPool(job, load, lambda batch: batch)
