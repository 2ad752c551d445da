"""Models and factories as people write them: each loads, or says what is wrong and what to do. None is a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.scripted import as_module
from cpupack.model.trial_run import try_forward
from cpupack.model.user_code import describe_failure
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.stages.load import load
from helpers.odd_models import SOURCE
from helpers.tiny_models import Recorder, loaded

LINES = SOURCE.splitlines()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "odd.py").write_text(SOURCE)
    return tmp_path


def build(directory: Path, factory: str, progress: Recorder | None = None, **model: Any) -> FloatModel:
    spec = {"source": f"python:odd.py:{factory}", "weights": "factory", **model}
    return load(loaded(directory, model=spec), progress or Recorder())


LOADS = {
    "optional_arguments": "",
    "prints": "",
    "half": "weights of float16 are converted to float32",
    "bfloat16": "weights of bfloat16 are converted",
    "double": "weights of float64 are converted",
    "mixed": "weights of float16 are converted",
    "default_double": "weights of float64 are converted",
    "no_grad_for_good": "",
    "shared": "",
    "lazy": "",
    "training_with_dropout": "",
    "compiled": "wrapped by torch.compile",
    "compiled_in_place": "wrapped by torch.compile",
    "compiled_forward": "",
    "compiled_part": "wrapped by torch.compile",
    "data_parallel": "wrapped by DataParallel",
    "compiled_data_parallel": "wrapped by DataParallel and torch.compile",
    "averaged": "wrapped by AveragedModel",
    "inference_parameters": "",
    "weight_normed": "",
    "marked_parameters": "",
    "batch_from_shape": "",
    "instance": "",
    "token_ids_cast_inside": "",
    "scripted": "run as Python in place of TorchScript: the model itself",
    "traced_part": "run as Python in place of TorchScript: conv",
    "traced_by_fx": "",
    "exported_program": "",
    "scripted_activation": "run as Python in place of TorchScript: act",
}


@pytest.mark.parametrize("factory", LOADS)
@pytest.mark.filterwarnings("ignore:.*LazyModule")
def test_what_can_be_packaged_loads(directory: Path, factory: str) -> None:
    progress = Recorder()
    model = build(directory, factory, progress)
    assert LOADS[factory] in " ".join(progress.notes)
    assert len(model.output_shape) == 1
    assert not any(each.training for each in model.module.modules())
    tensors = [*model.module.parameters(), *model.module.buffers()]
    assert all(value.dtype in {torch.float32, torch.int64} and not value.is_inference() for value in tensors)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        x = torch.randn(4, 3, 8, 8).abs()
        assert torch.allclose(model.module(x)[:1], model.module(x[:1]), atol=1e-6)


def test_wrappers_leave_the_names_that_the_model_has_without_them(directory: Path) -> None:
    for factory in ("compiled", "compiled_part", "compiled_data_parallel", "averaged"):
        assert set(build(directory, factory).module.state_dict()) == {
            "conv.weight",
            "conv.bias",
            "head.weight",
            "head.bias",
        }


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_scripted_part_has_the_weights_and_the_answers_of_its_script(directory: Path) -> None:
    torch.manual_seed(0)
    net = build(directory, "scripted_activation").module
    weights = {name: torch.randn_like(each) for name, each in net.state_dict().items()}
    assert "act.slope" in weights
    torch.save(weights, directory / "w.pt")
    module = build(directory, "scripted_activation", weights="w.pt").module
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        y = F.conv2d(x, weights["conv.weight"], weights["conv.bias"]).relu().mean((2, 3))
        y = F.linear(y, weights["head.weight"], weights["head.bias"])
        torch.testing.assert_close(module(x), torch.where(y > 0, y, y * weights["act.slope"]))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_scripted_part_that_answers_otherwise_as_python_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    double = as_module(torch.jit.script(Doubled()))
    monkeypatch.setattr("cpupack.model.script_parts.as_module", lambda _: double)
    with pytest.raises(ModelError, match="act is a TorchScript module, of which the graph answers otherwise: its out"):
        build(directory, "scripted_activation")


@pytest.mark.filterwarnings("ignore:.*LazyModule")
def test_lazy_layers_without_weights_of_their_own_are_loud(directory: Path) -> None:
    progress = Recorder()
    build(directory, "lazy", progress)
    assert any("RANDOM WEIGHTS in lazy layers" in text for text in progress.warnings)


@pytest.mark.filterwarnings("ignore:.*LazyModule")
def test_lazy_layers_take_weights_of_a_file(directory: Path) -> None:
    trained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    torch.save(trained.state_dict(), directory / "w.pt")
    module = build(directory, "lazy", weights="w.pt").module
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(x), trained.eval()(x))


@pytest.mark.parametrize("form", ["parts.py", "parts/__init__.py", "parts/blocks.py"])
def test_each_model_imports_the_files_beside_it(tmp_path: Path, form: str) -> None:
    """Two models of one process with a file of the same name beside each, as networks.py and utils.py often are."""
    name = "parts.blocks" if "blocks" in form else "parts"
    found = []
    for classes in (5, 7, 5):
        directory = tmp_path / f"of{classes}"
        (directory / form).parent.mkdir(parents=True, exist_ok=True)
        (directory / form).write_text(f"CLASSES = {classes}\n")
        (directory / "odd.py").write_text(f"{SOURCE}\nfrom {name} import CLASSES\ndef sized(): return Net(CLASSES)\n")
        found.append(build(directory, "sized").output_shape)
    assert found == [(5,), (7,), (5,)]


def test_macs_of_attention_are_counted() -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = x.unflatten(2, (2, 4)).transpose(1, 2)
            y: torch.Tensor = F.scaled_dot_product_attention(heads, heads, heads).flatten(1)
            return y

    inputs = (TensorSpec("x", (64, 8)),)
    assert try_forward(Attention().eval(), "net", inputs) == 2 * 2 * 64 * 64 * 4  # two products, two heads


def test_macs_of_parametrized_layers_are_counted(directory: Path) -> None:
    model = build(directory, "weight_normed")
    assert model.macs == 4 * 3 * 9 * 6 * 6 + 4 * 5


def test_random_weights_of_a_model_of_token_ids_need_no_noise(directory: Path) -> None:
    progress = Recorder()
    build(directory, "token_ids_cast_inside", progress, weights="random")
    assert any("BatchNorm keeps mean 0" in text for text in progress.warnings)


TELLS = [
    ("needs_arguments", "missing 1 required positional argument: 'classes'", "[model] kwargs"),
    ("the_class", "returned the class Net, not an instance", "return Net(...)"),
    ("nothing", "returned NoneType, not a torch.nn.Module", "the factory must return only the model"),
    ("state_dict", "returned OrderedDict, not a torch.nn.Module", ""),
    ("exits", "SystemExit: usage: train.py", ""),
    ("raises_in_factory", "ZeroDivisionError", ""),
    ("a_function", "returned function, not a torch.nn.Module", ""),
    ("an_empty_list", "returns an empty list", ""),
    ("returns_numpy", "returns a numpy ndarray of shape (1, 5)", "leave out .numpy()"),
    ("returns_none", "returns None", "return y"),
    ("returns_float", "returns a float", ""),
    ("zero_dim", "returns torch.float32 of shape () for a batch of 1", "mean(dim=...)"),
    (
        "one_mean",
        "has the shape (5,) for one sample and for two: the batch is not its first dimension",
        "mean(dim=...)",
    ),
    ("complex_output", "returns torch.complex64 of shape (1, 5)", "view_as_real"),
    ("double_output", "returns torch.float64 of shape (1, 5)", ".float()"),
    ("half_output", "returns torch.float16 of shape (1, 5)", ".float()"),
    ("raises", "NameError: name 'undefined_name' is not defined", "input_shape"),
    ("raises_without_words", "ValueError: no message", ""),
    ("exits_in_forward", "SystemExit: 3", ""),
    ("needs_two_inputs", "missing 1 required positional argument: 'other'", "[[input]]"),
    ("no_forward", "missing the required", "forward method"),
    ("half_inside", "in conv (Conv2d): RuntimeError", ".half()"),
    ("wrong_channels", "in body.1 (Conv2d): RuntimeError", "input_shape"),
    ("token_ids", "in embed (Embedding): RuntimeError", 'dtype = "int64"'),
    ("functional_token_ids", "RuntimeError", 'dtype = "int64"'),
    (
        "fixed_batch",
        "runs on one sample but fails on a batch of 2, so its code fixes the batch",
        "x.shape[0]",
    ),
    ("fixed_batch_result", "shape (1, 10) for a batch of 2, and (1, 5) for one sample: its code fixes", "x.shape[0]"),
    ("fixed_batch_of_eight", "shape '[8, 5]' is invalid", "input_shape"),
    ("grows_with_batch", "shape of a sample's output depends on the batch", "in the same way"),
    ("script_that_forks", "conv is a TorchScript module, which cannot be turned into a graph", "Python module"),
    ("quantized", "is already quantized or prepared for quantization", "FP32"),
    ("observed", "post (MinMaxObserver) is already quantized", "FP32"),
    ("meta", "conv.weight, conv.bias, head.weight, head.bias are on the meta device", "CPU"),
    ("meta_part", "head.weight, head.bias are on the meta device", "CPU"),
    ("nan_weights", "NaN or infinity in head.weight", "diverged"),
    ("infinite_weights", "NaN or infinity in head.weight", "diverged"),
    ("packed_weights", "the weights head.weight are of the class Packed, not plain numbers", "FP32 model"),
    ("sparse_weights", "head.mask have the layout torch.sparse_coo", "to_dense"),
]


@pytest.mark.parametrize(("factory", "words", "hint"), TELLS, ids=[row[0] for row in TELLS])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_what_cannot_be_packaged_says_why_and_what_to_do(directory: Path, factory: str, words: str, hint: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(directory, factory)
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("factory", ["cuda_factory", "moves_to_cuda", "makes_on_cuda"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a GPU, on which the code runs")
def test_code_for_a_gpu_is_told_to_stay_on_the_cpu(directory: Path, factory: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(directory, factory)
    assert "leave out .cuda()" in (caught.value.hint or "")


def test_kwargs_for_a_module_are_an_error(directory: Path) -> None:
    with pytest.raises(ModelError, match="is a module, not a factory"):
        build(directory, "instance", kwargs={"classes": 3})


@pytest.mark.parametrize("factory", ["raises", "fixed_batch", "wrong_channels"])
def test_the_users_own_line_is_told(directory: Path, factory: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(directory, factory)
    if factory != "wrong_channels":  # whose failing module is torch's own
        line = next(number for number, text in enumerate(LINES, 1) if text.startswith(f"def {factory}("))
        assert f"odd.py:{line}: def {factory}(" in caught.value.message


def test_a_failure_without_a_layer_has_none_in_its_words() -> None:
    assert describe_failure(ValueError("no")) == "ValueError: no"
    assert describe_failure(ValueError("no"), "a.b (Linear)") == "in a.b (Linear): ValueError: no"
