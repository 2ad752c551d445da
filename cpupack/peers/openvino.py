"""OpenVINO INT8: NNCF's post-training quantization with its defaults, served by OpenVINO's own streams.

Models with attention are quantized with ``ModelType.TRANSFORMER``, as NNCF's documentation recommends for them.

See https://docs.openvino.ai (Basic Quantization Flow; High-level Performance Hints). Each stream has one infer request,
as in an AsyncInferQueue. A single request at a time uses one stream with all threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from cpupack.peers.job import Batch, Job, PeerError
from cpupack.peers.lengths import gets_cut
from cpupack.peers.pools import Call, ThreadedPool

LOGGER = logging.getLogger(__name__)
_MODEL = "model.xml"
_PASSES_ON = ("Reshape", "Transpose", "Convert", "Unsqueeze", "Squeeze")


def build(job: Job) -> str:
    """Convert from torch, quantize with NNCF, save."""
    import nncf
    import openvino as ov

    if job.dynamic:
        raise PeerError("NNCF's quantization needs calibration data, but the recipe quantizes dynamically")
    model = _converted(job)
    # One sample in each item, as in NNCF's own examples. NNCF's default subset of 300 samples is for larger data sets
    # than the calibration data that all engines get.
    assert job.calibration is not None
    samples = nncf.Dataset(list(range(job.calibration.count)), lambda row: _sample(job, row))
    attends = _has_attention(model)
    quantized = nncf.quantize(
        model,
        samples,
        subset_size=job.calibration.count,
        model_type=nncf.ModelType.TRANSFORMER if attends else None,
    )
    ov.save_model(quantized, str(job.work / _MODEL))
    chosen = "model_type TRANSFORMER" if attends else "performance preset"
    return f"convert_model, nncf.quantize with defaults ({chosen})"


def _converted(job: Job) -> Any:
    """Convert the model, with an open length of samples if that can be done."""
    import openvino as ov

    examples = job.examples(1)
    example = examples if len(examples) > 1 else examples[0]
    module = job.model()

    def convert(*, open_length: bool) -> Any:
        shapes = _shapes(job, -1, open_length=open_length)
        return ov.convert_model(module, example_input=example, input=shapes if len(shapes) > 1 else shapes[0])

    if job.open_inputs:
        try:
            return convert(open_length=True)
        except Exception as error:  # noqa: BLE001 - the converter raises many classes; the length is fixed then
            LOGGER.warning("the length of samples is fixed in OpenVINO's model: %s", error)
    return convert(open_length=False)


def _has_attention(model: Any) -> bool:
    """Whether a model of OpenVINO has attention: an operator of that name, or a product of a softmax."""
    for each in model.get_ops():
        kind = each.get_type_name()
        if kind == "ScaledDotProductAttention" or (kind == "Softmax" and _is_multiplied(each)):
            return True
    return False


def _is_multiplied(node: Any) -> bool:
    """Whether a matrix product reads what a node gives, perhaps in another shape or type."""
    for target in node.output(0).get_target_inputs():
        reader = target.get_node()
        kind = reader.get_type_name()
        if kind == "MatMul" or (kind in _PASSES_ON and _is_multiplied(reader)):
            return True
    return False


def _sample(job: Job, row: int) -> Any:
    assert job.calibration is not None
    arguments = job.arguments(job.calibration.floats(slice(row, row + 1)))
    return arguments if len(arguments) > 1 else arguments[0]


def open_pool(job: Job) -> ThreadedPool:
    """Compile for the batch size, with a stream and an infer request for each instance."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(job.work / _MODEL))
    model.reshape(dict(zip(model.inputs, _shapes(job, job.batch_size, open_length=gets_cut(job)), strict=True)))
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

        count = job.output_count

        def wait(batch: Any) -> Any:
            request.start_async(batch, share_inputs=True)
            request.wait()
            found = [request.get_output_tensor(number).data for number in range(count)]
            return found if count > 1 else found[0]

        def infer(batch: Any) -> Any:
            found = request.infer(batch, share_inputs=True, share_outputs=True)
            return [found[number] for number in range(count)] if count > 1 else found[0]

        return infer if job.single else wait

    return ThreadedPool(job, load, _adapted(job))


def _shapes(job: Job, batch_size: int, *, open_length: bool) -> list[list[int]]:
    """Return the shapes of the inputs, -1 for an open length."""
    opened = job.open_inputs if open_length else ()
    return [
        [batch_size, -1, *shape[1:]] if number in opened else [batch_size, *shape]
        for number, shape in enumerate(job.input_shapes)
    ]


def _adapted(job: Job) -> Callable[[Batch], Any]:
    """Return what makes of a batch what an infer request takes: one array, or a tuple of them."""

    def adapt(batch: Batch) -> Any:
        found = job.prepared(batch)
        return found[0] if isinstance(found, tuple) and len(found) == 1 else found

    return adapt


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
