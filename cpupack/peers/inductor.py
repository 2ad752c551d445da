"""INT8 by PT2E and torch.compile: torchao's X86InductorQuantizer with its default configuration, frozen weights.

https://docs.pytorch.org/ao (PyTorch 2 Export Quantization with X86 Backend through Inductor).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

from cpupack.layout import batch_channels_last, weights_channels_last
from cpupack.peers.job import Job, PeerError
from cpupack.peers.pools import ThreadedPool
from cpupack.peers.torch_pool import keep_out_of_openmp, torch_pool

_MODEL = "model.pt2"


def build(job: Job) -> str:
    """Export, quantize, export again, save. Raises PeerError for a recipe that quantizes dynamically."""
    if job.dynamic:
        raise PeerError("the X86InductorQuantizer is compared for static quantization only")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torchao and torch.export comment on their own internals
        _build(job)
    return "PT2E with X86InductorQuantizer defaults, torch.compile, freezing, channels_last"


def _build(job: Job) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    example = tuple(batch_channels_last(each) for each in job.examples(2))
    batch_size = torch.export.Dim("batch", max=4096)
    free_batch = tuple({0: batch_size} for _ in example)
    # strict: otherwise a ReLU module that is called twice becomes one partition, which the quantizer refuses.
    exported = torch.export.export(
        weights_channels_last(job.model()), example, dynamic_shapes=free_batch, strict=True
    ).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for batch in job.calibration_batches():
        prepared(*(batch_channels_last(torch.from_numpy(each)) for each in job.arguments(batch)))
    converted = convert_pt2e(prepared)
    torch.export.save(torch.export.export(converted, example, dynamic_shapes=free_batch), str(job.work / _MODEL))


def open_pool(job: Job) -> ThreadedPool:
    """Compile for the batch size and thread count of the job. The instances share the compiled code."""
    # Set in the environment, because torch._inductor.config only applies to the thread that sets it, and each instance
    # compiles in its own thread. Without freezing, the kernels are ten times slower.
    os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # otherwise a pool of compiler processes stays alive
    import torch._inductor.config as config
    import torchao.quantization.pt2e  # noqa: F401 - registers the operators that the saved graph calls

    if not config.freezing:
        raise PeerError("torch._inductor was imported before its environment was set, so it would not freeze weights")
    keep_out_of_openmp(job)
    loaded = torch.export.load(str(job.work / _MODEL)).module()
    compiled: Callable[..., Any] = torch.compile(loaded, dynamic=False)

    def run(*batch: torch.Tensor) -> Any:
        with torch.no_grad():
            return compiled(*batch)

    return torch_pool(job, lambda: run, channels_last=True)
