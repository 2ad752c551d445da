"""Comparing models of several inputs and outputs: what the other engines get, and how close each output is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.comparison.closeness import closeness
from cpupack.model.one_row import OneRow, Taken
from cpupack.peers.named import arrays_of, with_named_inputs
from cpupack.peers.process import EngineFailedError
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.rows import pack
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec

SIZE = 4
SIGNATURE = Signature(
    (
        TensorSpec("image", (3, SIZE, SIZE), preprocess=PreprocessSpec(resize=SIZE, crop=SIZE)),
        TensorSpec("ids", (5,), "int64", vocabulary=7),
        TensorSpec("flag", (), "bool"),
    ),
    (OutputSpec("kind", (4,), "softmax"), OutputSpec("maps", (2, SIZE, SIZE))),
)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.words, self.head = nn.Conv2d(3, 2, 3, padding=1), nn.Embedding(7, 3), nn.Linear(6, 4)

    def forward(self, image: torch.Tensor, ids: torch.Tensor, *, flag: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.conv(image)
        x = torch.cat([maps.mean((2, 3)), self.words(ids).mean(1), flag[:, None].float()], 1)
        return {"kind": self.head(x), "maps": maps}


@pytest.fixture
def rows_model() -> OneRow:
    torch.manual_seed(0)
    taken = [Taken("kind", (4,)), Taken("maps", (2, SIZE, SIZE))]
    return OneRow(Mixed().eval(), SIGNATURE.inputs, ("image", "ids", "flag"), taken)


@pytest.fixture
def given() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "image": random.normal(size=(3, 3, SIZE, SIZE)).astype(np.float32),
        "ids": random.integers(0, 7, (3, 5)),
        "flag": np.array([True, False, True]),
    }


def test_rows_are_taken_apart_to_the_inputs_that_a_caller_gave(given: dict[str, np.ndarray]) -> None:
    found = arrays_of(SIGNATURE, pack(SIGNATURE, given))
    for array, (name, wanted) in zip(found, given.items(), strict=True):
        assert array.dtype == wanted.dtype, name
        assert array.flags.c_contiguous
        assert np.array_equal(array, wanted), name


def test_the_named_model_gives_what_the_runner_makes_of_rows(rows_model: OneRow, given: dict[str, np.ndarray]) -> None:
    named = with_named_inputs(rows_model, SIGNATURE, ("image", "ids", "flag"))
    with torch.inference_mode():
        found = named(**{name: torch.from_numpy(array) for name, array in given.items()})
        wanted = SIGNATURE.unpack(rows_model(torch.from_numpy(pack(SIGNATURE, given))).numpy())
    assert isinstance(found, tuple)
    for tensor, (name, array) in zip(found, wanted.items(), strict=True):
        assert np.allclose(tensor.numpy(), array, atol=1e-6), name


def test_fx_traces_the_named_model_down_to_the_users_layers(rows_model: OneRow) -> None:
    traced = torch.fx.symbolic_trace(with_named_inputs(rows_model, SIGNATURE, ("image", "ids", "flag")))
    assert [node.target for node in traced.graph.nodes if node.op == "placeholder"] == ["image", "ids", "flag"]
    layers = [type(traced.get_submodule(str(node.target))) for node in traced.graph.nodes if node.op == "call_module"]
    assert layers == [nn.Conv2d, nn.Embedding, nn.Linear]


def test_one_float_input_and_one_output_need_no_names() -> None:
    module = nn.Linear(3, 2)
    assert with_named_inputs(module, Signature.plain((3,), (2,)), ("input",)) is module


def test_each_output_has_its_own_closeness() -> None:
    """Noise of a tenth is 20 dB. The softmax of the reference is that of the wheel's caller."""
    reference = np.concatenate([np.zeros((2, 4), np.float32), np.ones((2, 2 * SIZE * SIZE), np.float32)], axis=1)
    maps = np.full((2, 2, SIZE, SIZE), 1.1, np.float32)
    found = closeness(SIGNATURE, reference, [np.full((2, 4), 0.25, np.float32), maps])
    assert found.by_output["kind"] == math.inf
    assert found.by_output["maps"] == pytest.approx(20.0, abs=1e-4)
    assert found.sqnr_db == found.by_output["maps"]
    assert found.agreement == 1.0


def test_classes_that_an_argmax_chose_agree_or_do_not() -> None:
    signature = Signature(SIGNATURE.inputs, (OutputSpec("kind", (3,), "argmax"), OutputSpec("age", (1,))))
    reference = np.array([[0, 9, 0, 1], [9, 0, 0, 1]], np.float32)
    found = closeness(signature, reference, [np.array([1, 2], np.float32), np.ones((2, 1), np.float32)])
    assert found.by_output == {"kind": None, "age": math.inf}
    assert found.agreement == 0.5


def test_embeddings_have_no_classes_to_agree_on() -> None:
    reference = np.array([[3, 1, 2], [1, 2, 3]], np.float32)
    signature = Signature.plain((3,), (3,))
    assert closeness(signature, reference, [reference], "embedding").agreement is None
    assert closeness(signature, reference, [reference], "classification").agreement == 1.0


def test_an_output_of_another_shape_puts_an_engine_out() -> None:
    with pytest.raises(EngineFailedError, match=r"its output has shape \(2, 4\), that of the FP32 model \(2, 3\)"):
        closeness(Signature.plain((3,), (3,)), np.zeros((2, 3), np.float32), [np.zeros((2, 4), np.float32)])


class Attends(nn.Module):
    """Attention as its formula says, by torch's function, or the softmax of a formula alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.queries, self.keys, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys = self.queries(x), self.keys(x)
        if self.how == "function":
            return nn.functional.scaled_dot_product_attention(queries, keys, x)
        weights = (queries @ keys.transpose(1, 2)).softmax(-1)
        return weights @ x if self.how == "formula" else weights


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Attends("formula"), True),
        (Attends("function"), True),
        (Attends("softmax"), False),
        (nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1)), False),
    ],
    ids=["formula", "function", "softmax", "classifier"],
)
def test_openvino_is_told_which_models_are_transformers(module: nn.Module, expected: bool) -> None:
    openvino = pytest.importorskip("openvino", reason="the peers' packages are the extra compare")
    from cpupack.peers.openvino import _has_attention

    model = openvino.convert_model(module.eval(), example_input=torch.zeros(1, 6, 8), input=[-1, 6, 8])
    assert _has_attention(model) is expected
