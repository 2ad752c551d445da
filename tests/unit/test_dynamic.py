"""Dynamic quantization of linear and recurrent models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.errors import ModelError, QuantizationError
from cpupack.graph.native_model import NativeModel
from cpupack.recipe import Recipe
from cpupack.runtime.engine.pool import InstancePool
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.script import script
from cpupack.workers.client import run_worker
from helpers.lowered import needs_kernels
from helpers.tiny_models import ENGINES, Recorder, float_model, fuse_model, quantized, recipe, run, samples


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(6, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))


def dynamic(shape: tuple[int, ...], **quantize: object) -> Recipe:
    return recipe(shape, quantize={"mode": "dynamic", **quantize})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("module", "shape"), [(mlp(), (6,)), (Recurrent(), (5, 6)), (Recurrent(nn.GRU), (5, 6))], ids=["mlp", "lstm", "gru"]
)
def test_int8_is_close_to_fp32(module: nn.Module, shape: tuple[int, ...], engine: str) -> None:
    spec, data = dynamic(shape), samples(shape)
    model, int8 = quantized(module, engine, spec=spec, data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0
    assert int8.notes == ()
    kinds = [type(child).__module__ for child in int8.module.modules()]
    assert any("quantized.dynamic" in kind for kind in kinds)


def test_nothing_is_fused_or_calibrated() -> None:
    model = float_model(mlp(), (6,))
    fused = fuse_model(model, dynamic((6,)), Recorder())
    assert (fused.style, fused.chains, fused.module) == ("dynamic", (), model.module)
    assert calibrate(fused, samples((6,)), 4, Recorder()).stats == {}


def test_skipped_modules_stay_fp32_and_are_named() -> None:
    _, int8 = quantized(Recurrent(), spec=dynamic((5, 6), skip=["head"]), data=samples((5, 6)))
    assert type(int8.module.head) is nn.Linear
    assert int8.notes == ("head (Linear) stayed FP32: listed in skip",)


@pytest.mark.parametrize(
    ("module", "skip", "shape"), [(nn.Sequential(nn.Conv2d(3, 4, 3)), [], (3, 8, 8)), (mlp(), ["0", "2"], (6,))]
)
def test_nothing_to_quantize_is_an_error(module: nn.Module, skip: list[str], shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match="has none to quantize") as caught:
        quantized(module, spec=dynamic(shape, skip=skip), data=samples(shape))
    assert caught.value.exit_code == 5


def test_the_saved_lstm_answers_as_the_module_for_any_batch(tmp_path: Path) -> None:
    data = samples((5, 6), count=7)
    _, int8 = quantized(Recurrent(), spec=dynamic((5, 6)), data=data)
    saved = script(int8, (5, 6), tmp_path / "lstm.pt")
    assert saved.int8_operators >= 2
    np.save(tmp_path / "in.npy", data.data)
    spec = {
        "model": str(saved.path),
        "engine": "onednn",
        "inputs": str(tmp_path / "in.npy"),
        "jobs": [{"outputs": str(tmp_path / "out.npy"), "rows": 7, "batch_size": 16, "floats": False}],
        "preprocess": None,
        "pixel_input": False,
        "threads": 1,
    }
    run_worker("replay", spec, tmp_path / "spec.json")
    assert np.array_equal(np.load(tmp_path / "out.npy"), run(int8, data))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def encoder() -> nn.Module:
    """One whose layers torch runs on a fast path that reads the FP32 weights of its linear layers itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("build", [SelfAttention, encoder], ids=["attention", "encoder"])
def test_a_model_with_attention_is_quantized_but_for_what_attention_reads_itself(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    data = samples((5, 16))
    model, int8 = quantized(build().eval(), spec=dynamic((5, 16)), data=data)
    saved = script(int8, (5, 16), tmp_path / "attention.pt")
    with InstancePool(saved.path, int8.target.engine, threads=1, instances=1) as pool:
        answers = pool.run(data.tensor(slice(None))).numpy()
    assert accuracy.sqnr_db(run(model, data), answers) > 25.0
    assert saved.int8_operators >= 1


class Convolving(nn.Module):
    """A convolution before a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.tail = Recurrent()
        self.tail.rnn = nn.GRU(8, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))


@needs_kernels
@pytest.mark.parametrize(
    ("module", "shape", "layers"),
    [
        (mlp(), (6,), {"0": "cpupack::linear", "2": "cpupack::linear"}),
        (Recurrent(), (5, 6), {"rnn": "cpupack::recurrent", "head": "cpupack::linear"}),
        (Recurrent(nn.GRU), (5, 6), {"rnn": "cpupack::recurrent with inputs of 16 bits", "head": "cpupack::linear"}),
        (
            Convolving(),
            (5, 6),
            {"tail.rnn": "cpupack::recurrent with inputs of 16 bits", "tail.head": "cpupack::linear"},
        ),
    ],
    ids=["mlp", "lstm", "gru", "conv"],
)
def test_the_native_engine_runs_all_of_it_without_calibration(
    module: nn.Module, shape: tuple[int, ...], layers: dict[str, str]
) -> None:
    spec, data = dynamic(shape), samples(shape)
    model, int8 = quantized(module, "native", spec=spec, data=data)
    assert isinstance(int8.module, NativeModel)
    assert {each.name: each.kernel for each in int8.layers if each.precision == "int8"} == layers
    assert not any(each.kernel == "aten" for each in int8.layers)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0


@needs_kernels
def test_other_layers_stay_fp32_and_say_why() -> None:
    _, int8 = quantized(Convolving(), "native", spec=dynamic((5, 6)), data=samples((5, 6)))
    (conv,) = [each for each in int8.layers if each.name == "conv"]
    assert (conv.precision, conv.reason) == ("fp32", 'mode = "dynamic" takes linear and recurrent layers only')


@needs_kernels
def test_a_model_of_convolutions_alone_is_told_what_dynamic_takes() -> None:
    with pytest.raises(QuantizationError, match='mode = "dynamic" takes linear and recurrent layers only'):
        quantized(nn.Sequential(nn.Conv1d(5, 8, 3), nn.ReLU()), "native", spec=dynamic((5, 6)), data=samples((5, 6)))


@needs_kernels
def test_a_skipped_layer_stays_fp32_natively() -> None:
    _, int8 = quantized(Recurrent(), "native", spec=dynamic((5, 6), skip=["head"]), data=samples((5, 6)))
    assert {each.name: each.precision for each in int8.layers}["head"] == "fp32"


class Unexportable(nn.Module):
    """Its way depends on values, so it cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)


def test_a_model_that_cannot_be_captured_is_left_to_torchs_engines_and_the_build_says_so() -> None:
    progress = Recorder()
    captured = capture(float_model(Unexportable(), (6,)), None, dynamic((6,)), progress)
    assert captured.graph is None
    (warning,) = progress.warnings
    assert warning.startswith("the native engine is out, since the model cannot be captured: ")


def test_the_same_is_an_error_where_the_recipe_wants_the_native_engine() -> None:
    spec = recipe((6,), quantize={"mode": "dynamic"}, target={"x86_64": {"engine": "native"}})
    with pytest.raises(ModelError):
        capture(float_model(Unexportable(), (6,)), None, spec, Recorder())


def test_nothing_is_captured_for_torchs_engines_alone() -> None:
    spec = recipe((6,), quantize={"mode": "dynamic"}, target={"x86_64": {"engine": "fbgemm"}})
    assert capture(float_model(Unexportable(), (6,)), None, spec, Recorder()).graph is None
