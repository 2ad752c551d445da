"""Loading: sources of modules, what they must return, and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cpupack.artifacts import FloatModel
from cpupack.errors import ModelError
from cpupack.model.sources import build_module
from cpupack.model.vision import import_torchvision
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.stages.load import load
from helpers.tiny_models import Recorder, loaded

SOURCE = """
import torch
from torch import nn
import neighbour


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, neighbour.CHANNELS, 3)
        self.norm = nn.BatchNorm2d(neighbour.CHANNELS)
        self.head = nn.Linear(neighbour.CHANNELS, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean([2, 3]))


def make(classes=5):
    return Net(classes)


def broken():
    table = {}
    return table["missing"]  # the line to be named


def number():
    return 42


class Returns(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return {
            "pair": (x, x),
            "dict": {"logits": x},
            "no batch": x.sum(),
            "integers": x.flatten(1).argmax(1),
        }[self.what]
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(SOURCE)
    (tmp_path / "neighbour.py").write_text("CHANNELS = 4\n")
    return tmp_path


def build(directory: Path, factory: str, progress: Recorder | None = None, **model: Any) -> FloatModel:
    spec = {"source": f"python:models.py:{factory}", **model}
    return load(loaded(directory, model=spec), progress or Recorder())


def test_a_users_file_makes_a_model_in_eval_mode_with_its_facts(directory: Path) -> None:
    model = build(directory, "make")
    assert not any(module.training for module in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert (model.input_shape, model.output_shape) == ((3, 8, 8), (5,))
    conv, norm, head = 4 * 3 * 9 + 4, 2 * 4, 4 * 5 + 5
    assert model.parameters == conv + norm + head
    assert model.macs == 4 * 3 * 9 * 6 * 6 + 4 * 5
    # Running mean and variance in float32, the batch counter in int64.
    assert model.fp32_bytes == 4 * (conv + norm + head + 2 * 4) + 8
    assert model.random_weights


def test_kwargs_reach_the_factory(directory: Path) -> None:
    assert build(directory, "make", kwargs={"classes": 3}).output_shape == (3,)


def test_the_seed_decides_random_weights(directory: Path) -> None:
    one, same, other = (build(directory, "make", seed=seed).module.conv.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_failing_factory_names_the_file_and_line(directory: Path) -> None:
    line = SOURCE.splitlines().index('    return table["missing"]  # the line to be named') + 1
    with pytest.raises(ModelError, match="KeyError: 'missing'") as caught:
        build(directory, "broken")
    assert f"{directory}/models.py:{line}: " in str(caught.value)
    with pytest.raises(ModelError, match="unexpected keyword argument 'colour'"):
        build(directory, "make", kwargs={"colour": 1})


def test_a_file_that_cannot_be_imported_names_the_line(directory: Path) -> None:
    (directory / "models.py").write_text("import torch\n\nx = 1 / 0\n")
    with pytest.raises(ModelError, match=r"importing .*models\.py failed: ZeroDivisionError.*models\.py:3: x = 1 / 0"):
        build(directory, "make")
    (directory / "models.py").write_text("def make(:\n")
    with pytest.raises(ModelError, match=r"models\.py failed: SyntaxError"):
        build(directory, "make")


@pytest.mark.parametrize(
    ("source", "words", "hint"),
    [
        ("python:models.py:mak", "has no function or class 'mak'", "did you mean make?"),
        ("python:gone.py:make", "gone.py does not exist", "relative to the recipe"),
        ("python:no_such_package_here.models:make", "no module named 'no_such_package_here'", "install it"),
        ("python:models.py", "must be python:FILE.py:factory", ""),
        ("python:models.py:number", "returned int, not a torch.nn.Module", ""),
        ("keras:resnet", "is not one of torchvision:NAME", ""),
        ("torchvision:resnet81", "torchvision has no model 'resnet81'", "did you mean resnet"),
    ],
)
def test_a_source_that_does_not_exist_is_named(directory: Path, source: str, words: str, hint: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        build_module(loaded(directory, model={"source": source}), Recorder())
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 3


def test_a_module_of_an_installed_package(directory: Path) -> None:
    spec = {"source": "python:torch.nn:Linear", "kwargs": {"in_features": 4, "out_features": 2}, "input_shape": [4]}
    assert load(loaded(directory, model=spec), Recorder()).output_shape == (2,)


def test_torchvision_imports_here_and_builds_models(directory: Path) -> None:
    assert import_torchvision() is import_torchvision()
    module = build_module(
        loaded(directory, model={"source": "torchvision:squeezenet1_1", "kwargs": {"num_classes": 7}}), Recorder()
    )
    with torch.inference_mode():
        assert module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    with pytest.raises(ModelError, match=r"chosen by .model. weights, not by kwargs"):
        build_module(
            loaded(directory, model={"source": "torchvision:squeezenet1_1", "kwargs": {"weights": "DEFAULT"}}),
            Recorder(),
        )


@pytest.mark.parametrize("weights", ["random", "factory"])
def test_an_input_shape_that_does_not_fit_is_an_error(directory: Path, weights: str) -> None:
    with pytest.raises(ModelError, match=r"does not run on an input of shape \(1, 4, 8, 8\)") as caught:
        build(directory, "make", input_shape=[4, 8, 8], weights=weights)
    assert "input_shape" in (caught.value.hint or "")


def test_a_shape_of_a_table_that_does_not_fit_is_said_of_the_table(directory: Path) -> None:
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": "python:models.py:make", "weights": "random"},
        "input": [{"name": "photo", "shape": [4, 8, 8]}],
        "calibration": {"source": "synthetic"},
    }
    spec = LoadedRecipe(recipe=Recipe.model_validate(raw), path=directory / "recipe.toml", text="")
    with pytest.raises(ModelError, match=r"does not run on an input of shape \(1, 4, 8, 8\)") as caught:
        load(spec, Recorder())
    assert "[[input]]" in (caught.value.hint or "")
    assert "input_shape" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no batch", "the first dimension of a float output must be the batch"),
    ],
)
def test_a_model_that_does_not_return_one_float_tensor_is_an_error(directory: Path, what: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(directory, "Returns", kwargs={"what": what})


def test_labels_come_from_a_list_or_a_file(directory: Path) -> None:
    names = ["cat", "dog", "hen", "cow", "pig"]
    (directory / "labels.txt").write_text("\n".join(names) + "\n")
    progress = Recorder()
    assert build(directory, "make", progress, labels=names).labels == tuple(names)
    assert build(directory, "make", labels="labels.txt").labels == tuple(names)
    assert build(directory, "make").labels is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "b"], "the list has 2 names"),
        ("gone.txt", r"gone\.txt cannot be read"),
        ("imagenet", "has 1000 names"),
    ],
)
def test_labels_that_do_not_fit_are_an_error(directory: Path, labels: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(directory, "make", labels=labels)


def test_a_model_without_batch_norms_is_fine(directory: Path) -> None:
    spec = {"source": "python:torch.nn:Identity", "input_shape": [4]}
    assert isinstance(load(loaded(directory, model=spec), Recorder()).module, nn.Identity)
