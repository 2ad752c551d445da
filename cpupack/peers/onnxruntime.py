"""ONNX Runtime INT8: its own preprocessing of the graph, then the quantizer that its documentation recommends.

That is ``quantize_dynamic`` for transformers and recurrent networks, and ``quantize_static``, QDQ, for others, both per
channel. Types as in the docstring of ``quantize_static`` (U8 activations, S8 weights on x86-64; 7-bit weights without
VNNI) and https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from cpupack.peers.job import Array, Job, PeerError
from cpupack.peers.pools import Call, ThreadedPool

_MODEL = "model.onnx"
_RECURRENT = ("LSTM", "GRU", "RNN")
_ATTENTION = ("Attention", "MultiHeadAttention")
_MOVES = ("Cast", "Dropout", "Identity", "IsNaN", "Reshape", "Where")
"""Between a softmax and the product with the values."""


def build(job: Job) -> str:
    """Export, preprocess and quantize."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    from cpupack.peers.onnx_export import export

    exported, prepared, made = (job.work / name for name in ("fp32.onnx", "prepared.onnx", _MODEL))
    export(job, exported)
    prepared_by = _prepare(exported, prepared)
    family = None if job.dynamic else family_for_dynamic(prepared)
    if job.dynamic or family:
        reduce = job.activation_bits < 8
        quantize_dynamic(prepared, made, per_channel=True, reduce_range=reduce, weight_type=QuantType.QInt8)
        weights = "7-bit weights (no VNNI)" if reduce else "S8 weights"
        why = f" (recommended for {family})" if family else ""
        return f"{prepared_by}, quantize_dynamic per channel, {weights}{why}"

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
        def __init__(self) -> None:
            self._batches = job.calibration_batches()

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._batches, None)
            return None if batch is None else dict(zip(job.input_names, job.arguments(batch), strict=True))

    reduce = job.activation_bits < 8
    quantize_static(
        prepared,
        made,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduce,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    weights = "7-bit weights (no VNNI)" if reduce else "S8 weights"
    return f"{prepared_by}, quantize_static QDQ per channel, U8 activations, {weights}, MinMax"


def family_for_dynamic(path: Path) -> str | None:
    """Return the family of a graph for which ``quantize_dynamic`` is recommended, None for another.

    A transformer has attention (a softmax whose result is multiplied), and more products of matrices than convolutions.
    """
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    count = Counter(each.op_type for each in nodes)
    if any(count[each] for each in _RECURRENT):
        return "recurrent networks"
    softmaxes = {name for each in nodes if each.op_type == "Softmax" for name in each.output}
    for each in nodes:
        if each.op_type in _MOVES and each.input[0] in softmaxes:
            softmaxes.update(each.output)
    attends = any(count[each] for each in _ATTENTION) or any(
        each.op_type == "MatMul" and softmaxes & set(each.input) for each in nodes
    )
    return "transformers" if attends and count["MatMul"] + count["Gemm"] > count["Conv"] else None


def _prepare(exported: Path, prepared: Path) -> str:
    """Preprocess the graph, and return how. Symbolic shapes are left out where ONNX Runtime cannot infer them.

    That is so with an interpolation in a network that takes batches of any size, and with shapes that are computed from
    a mask. It then raises whatever comes.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(exported), str(prepared))
    except Exception:  # noqa: BLE001 - onnxruntime raises no class of its own
        quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
        return "quant_pre_process without symbolic shapes"
    return "quant_pre_process"


def open_pool(job: Job) -> ThreadedPool:
    """Make one session for each instance, with ``job.threads`` intra-op threads and all graph optimizations."""
    import onnxruntime as ort

    def load() -> Call:
        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(job.work / _MODEL), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        if missing := set(names) - set(job.input_names):
            raise PeerError(f"its model has the inputs {', '.join(names)}; {', '.join(missing)} is not the recipe's")

        def call(batch: Any) -> Any:
            arguments = batch if job.takes_rows else job.arguments(batch)
            feeds = {name: each for name, each in zip(job.input_names, arguments, strict=True) if name in names}
            found = session.run(None, feeds)
            return found if len(found) > 1 else found[0]

        return call

    return ThreadedPool(job, load, job.prepared)
