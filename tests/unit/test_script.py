"""Scripting: the file on disk, its operator counts, and batch sizes other than the traced one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.artifacts import QuantizedModel, Samples
from cpupack.errors import QuantizationError
from cpupack.runtime.engine.pool import InstancePool
from cpupack.stages.script import count_operators, script, script_float
from helpers.tiny_models import ENGINES, SHAPE, float_model, quantized, recipe, run, samples


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))


def test_operators_are_counted_by_what_they_compute_in() -> None:
    example = torch.zeros(1, *SHAPE)
    _, int8, fp32 = count_operators(float_model(net()).module, example)
    assert (int8, fp32) == (0, 4)  # conv, relu, pool, linear; the reshape computes nothing
    _, converted = quantized(net(), "fbgemm")
    calls, int8, fp32 = count_operators(converted.module, example)
    assert (int8, fp32) == (3, 2)  # the ends of the range before the last layer, whose results are FP32
    assert calls["quantized::conv2d_relu"] == calls["quantized::linear_dynamic"] == 1
    assert "aten::quantize_per_tensor" in calls


@pytest.mark.parametrize("engine", ENGINES)
def test_the_saved_file_answers_as_the_module_for_any_batch(engine: str, tmp_path: Path) -> None:
    _, int8 = quantized(net(), engine)
    path = tmp_path / "model.pt"
    scripted = script(int8, SHAPE, path)
    assert (scripted.path, scripted.size_bytes, scripted.target) == (path, path.stat().st_size, int8.target)
    assert (scripted.int8_operators, scripted.fp32_operators) == (3, 2)
    with InstancePool(path, engine, threads=1, instances=1) as pool:
        for count in (1, 2, 7):
            data = samples(count=count)
            assert np.array_equal(pool.run(data.tensor(slice(None))).numpy(), run(int8, data))


def test_the_fp32_model_is_saved_for_comparison(tmp_path: Path) -> None:
    model = float_model(net())
    path = script_float(model, tmp_path / "float.pt")
    data = samples(count=5)
    with InstancePool(path, "fbgemm", threads=1, instances=1) as pool:
        np.testing.assert_allclose(pool.run(data.tensor(slice(None))).numpy(), run(model, data), rtol=1e-5, atol=1e-6)


class Deprecated(nn.Conv2d):
    @property
    def old_name(self) -> int:
        """Warns, as properties of transformers' models do, and logs."""
        logging.getLogger("transformers.modeling_utils").warning("not for users of cpupack")
        warnings.warn("old_name will be removed", FutureWarning, stacklevel=2)
        return 0


def test_the_tracer_reads_properties_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are errors here."""
    script_float(float_model(Deprecated(3, 4, 3)), tmp_path / "float.pt")
    assert not caplog.records


@pytest.mark.parametrize("name", ["class", "in", "None", "größe", "Ellipsis", 'a"b', "a\\b"])
def test_names_that_torchscript_cannot_read_again_are_not_saved(name: str, tmp_path: Path) -> None:
    """torch 2.13 saves them without a word and fails at loading: this test is to say when that ends."""
    own = nn.Sequential()
    own.add_module(name, nn.Sequential(*net()))
    torch.jit.save(torch.jit.trace(own, torch.zeros(1, *SHAPE)), str(tmp_path / "own.pt"))
    with pytest.raises(RuntimeError):
        torch.jit.load(str(tmp_path / "own.pt"))
    model, int8 = quantized(own, "fbgemm")
    script_float(model, tmp_path / "float.pt")
    script(int8, SHAPE, tmp_path / "int8.pt")
    data = samples(count=5)
    for saved, path in ((model, tmp_path / "float.pt"), (int8, tmp_path / "int8.pt")):
        with InstancePool(path, "fbgemm", threads=1, instances=1) as pool:
            found = pool.run(data.tensor(slice(None))).numpy()
        np.testing.assert_allclose(found, run(saved, data), rtol=1e-5, atol=1e-6)


def test_a_model_of_token_ids_is_traced_on_a_sample(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.table(x.long()).mean(1))
            return result

    ids = Samples(np.arange(36, dtype=np.float32).reshape(9, 4) % 9, "ids", tuple("abcdefghi"))
    model, int8 = quantized(Tokens(), "fbgemm", spec=recipe((4,)), data=ids)
    sample = ids.spread(1).tensor(slice(None))
    script_float(model, tmp_path / "float.pt", sample)
    script(int8, (4,), tmp_path / "int8.pt", sample)
    for saved, path in ((model, tmp_path / "float.pt"), (int8, tmp_path / "int8.pt")):
        loaded = torch.jit.load(str(path))
        np.testing.assert_allclose(loaded(ids.tensor(slice(None))).numpy(), run(saved, ids), rtol=1e-5, atol=1e-6)


def test_a_model_that_does_not_run_in_int8_is_an_error_that_names_the_reason(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.quantize_per_tensor(x, 1.0, 0, torch.quint8) @ x  # no such operator

    _, int8 = quantized(net(), "fbgemm")
    with pytest.raises(QuantizationError, match="the fbgemm model does not run: ") as caught:
        script(QuantizedModel(Broken(), int8.target), SHAPE, tmp_path / "model.pt")
    assert caught.value.exit_code == 5
    assert "no such operator" in str(caught.value)


def test_a_module_that_reads_weights_as_attributes_is_an_error_too(tmp_path: Path) -> None:
    """INT8 layers have a method ``weight``: a module around them that reads ``layer.weight.device`` fails in Python."""

    class Reads(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(self.forward.device)

    _, int8 = quantized(net(), "fbgemm")
    with pytest.raises(QuantizationError, match=r"the fbgemm model does not run: .*device"):
        script(QuantizedModel(Reads(), int8.target), SHAPE, tmp_path / "model.pt")
