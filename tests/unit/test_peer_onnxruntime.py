"""Which of ONNX Runtime's quantizers a graph gets: the one that its documentation recommends for such networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpupack.peers.onnxruntime import family_for_dynamic

ATTENTION = ["MatMul", "Softmax", "Reshape", "MatMul", "Gemm"]


def write_chain(path: Path, operators: list[str]) -> Path:
    """Write a graph of calls, each of which reads the result of the one before."""
    onnx: Any = pytest.importorskip("onnx")
    nodes = [
        onnx.helper.make_node(each, [f"x{number}"] + ["w"] * (each not in {"Softmax", "Relu"}), [f"x{number + 1}"])
        for number, each in enumerate(operators)
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x0", 1, [1])],
        [value(f"x{len(nodes)}", 1, [1])],
        [onnx.helper.make_tensor("w", 1, [1], [1.0])],
    )
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


@pytest.mark.parametrize(
    ("operators", "family"),
    [
        (ATTENTION, "transformers"),
        (["Conv", *ATTENTION], "transformers"),  # ViT
        (["Conv", "Relu", "Conv", "Relu", "Gemm", "Softmax"], None),
        (["Conv"] * 9 + ATTENTION, None),  # a convolutional network with a little attention
        (["Gemm", "Relu", "Gemm", "Softmax"], None),
        (["LSTM", "Gemm"], "recurrent networks"),
    ],
)
def test_transformers_and_recurrent_networks_are_quantized_at_run_time(
    tmp_path: Path, operators: list[str], family: str | None
) -> None:
    assert family_for_dynamic(write_chain(tmp_path / "m.onnx", operators)) == family
