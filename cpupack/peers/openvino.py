"""OpenVINO INT8: NNCF's post-training quantization with its defaults, served by OpenVINO's own streams.

See https://docs.openvino.ai (Basic Quantization Flow; High-level Performance Hints). Each stream has one infer request,
as in an AsyncInferQueue. A single request at a time uses one stream with all threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cpupack.peers.job import Array, Job, PeerError
from cpupack.peers.pools import Call, ThreadedPool

_MODEL = "model.xml"


def build(job: Job) -> str:
    """Convert from torch, quantize with NNCF, save."""
    import nncf
    import openvino as ov
    import torch

    if job.dynamic:
        raise PeerError("NNCF's quantization needs calibration data, but the recipe quantizes dynamically")
    sample = torch.from_numpy(next(iter(job.calibration_batches(1))))
    model = ov.convert_model(job.model(), example_input=sample, input=[-1, *job.input_shape])
    # One sample in each item, as in NNCF's own examples. NNCF's default subset of 300 samples is for larger data sets
    # than the calibration data that all engines get.
    assert job.calibration is not None
    samples = nncf.Dataset(list(range(job.calibration.count)), lambda row: _sample(job, row))
    quantized = nncf.quantize(model, samples, subset_size=job.calibration.count)
    ov.save_model(quantized, str(job.work / _MODEL))
    return "convert_model, nncf.quantize with defaults (performance preset)"


def _sample(job: Job, row: int) -> Array:
    assert job.calibration is not None
    return np.ascontiguousarray(job.calibration.floats(slice(row, row + 1)))


def open_pool(job: Job) -> ThreadedPool:
    """Compile for the batch size, with a stream and an infer request for each instance."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(job.work / _MODEL))
    model.reshape([job.batch_size, *job.input_shape])
    if job.input_kind == "uint8":
        model = _with_pixels(model, job)
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY" if job.single else "THROUGHPUT",
            "NUM_STREAMS": job.instances,
            "INFERENCE_NUM_THREADS": job.threads * job.instances,
        },
    )

    def load() -> Call:
        request = compiled.create_infer_request()

        def wait(batch: Array) -> Any:
            request.start_async(batch, share_inputs=True)
            request.wait()
            return request.get_output_tensor(0).data

        def infer(batch: Array) -> Any:
            return request.infer(batch, share_inputs=True, share_outputs=True)[0]

        return infer if job.single else wait

    return ThreadedPool(job, load, np.ascontiguousarray)


def _with_pixels(model: Any, job: Job) -> Any:
    """Add the normalization to the graph with OpenVINO's preprocessing API, as its documentation recommends."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    preprocess = job.evaluation.preprocess
    assert preprocess is not None
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    channels = job.input_shape[0]
    scaled = {name: [value * 255.0 for value in (preprocess[name] * channels)[:channels]] for name in ("mean", "std")}
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(scaled["mean"]).scale(scaled["std"])
    return steps.build()
