"""INT8 as in PyTorch's tutorials on static quantization: FX, the default fbgemm qconfig, saved as TorchScript.

https://docs.pytorch.org/tutorials/prototype/fx_graph_mode_ptq_static.html. Otherwise only
``stages/quantize`` uses torch.ao.quantization. This module also does, because it must follow the tutorial.
"""

from __future__ import annotations

import warnings

import torch

from cpupack.peers.job import Job
from cpupack.peers.pools import ThreadedPool
from cpupack.peers.torch_pool import keep_out_of_openmp, torch_pool

_MODEL = "model.pt"


def build(job: Job) -> str:
    """Quantize with torch's defaults and save TorchScript."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tutorial's own functions are deprecated
        model = job.model()
        if job.dynamic:
            quantized: torch.nn.Module = quantize_dynamic(model, dtype=torch.qint8)
            description = "quantize_dynamic, int8 weights"
        else:
            prepared = prepare_fx(model, get_default_qconfig_mapping("fbgemm"), job.examples(2))
            for batch in job.calibration_batches():
                prepared(*(torch.from_numpy(each) for each in job.arguments(batch)))
            quantized = convert_fx(prepared)
            description = "prepare_fx/convert_fx, default fbgemm qconfig (7-bit activations, per channel), TorchScript"
        # Traced, because torch.jit.script fails on some annotations of torch.fx. The operators are the same.
        example = tuple(torch.from_numpy(each) for each in job.arguments(job.evaluation.floats(slice(0, 2))))
        (job.work / _MODEL).write_bytes(torch.jit.trace(quantized, example, check_trace=False).save_to_buffer())
    return description


def open_pool(job: Job) -> ThreadedPool:
    """Load the TorchScript model once. All instances share it."""
    keep_out_of_openmp(job)
    torch.backends.quantized.engine = "fbgemm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns about its own deprecation
        module = torch.jit.load(str(job.work / _MODEL)).eval()
    return torch_pool(job, lambda: module)
