"""Models with several inputs and outputs at load: names, order, what is refused, and the graph that has their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from cpupack.artifacts import FloatModel
from cpupack.errors import CalibrationError, ModelError, RecipeError
from cpupack.graph.rows import laying_calls
from cpupack.model.leaves import leaves_of
from cpupack.model.trial_run import check_output
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.rows import pack
from cpupack.sources import open_source
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from helpers.tiny_models import Recorder

SOURCE = """
import dataclasses
import types
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


@dataclasses.dataclass
class Found:
    scores: torch.Tensor
    maps: list
    loss: torch.Tensor = None


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Net(nn.Module):
    def __init__(self, result="scores"):
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(9, 5)
        self.result = result

    def forward(self, image, ids, scale=None, *, flag):
        maps = self.conv(image)
        x = torch.cat([maps.mean((2, 3)), self.words(ids).mean(1), flag.float()[:, None]], 1)
        scores = self.head(x)
        return {
            "scores": lambda: scores,
            "tuple": lambda: (scores, [maps, x.sum(1)]),
            "dict": lambda: {"scores": scores, "aux": {"maps": maps}, "none": None, "number": 3},
            "dataclass": lambda: Found(scores, [maps]),
            "named": lambda: Point(scores, maps),
            "object": lambda: types.SimpleNamespace(scores=scores, maps=maps),
            "loss": lambda: {"scores": scores, "loss": scores.sum()},
            "constant": lambda: (scores, self.head.weight),
            "label": lambda: (scores, scores.argmax(1)),
            "double": lambda: (scores.double(), maps),
            "across": lambda: (scores, maps.transpose(0, 1)),
            "pairs": lambda: (scores, scores @ scores.T),
            "empty": lambda: scores[:, :0],
            "one": lambda: (scores[:, :1], maps),
            "last": lambda: scores.gather(1, ids[:, :1] - 1),
        }[self.result]()


def items():
    random = np.random.default_rng(0)
    for number in range(12):
        yield {"image": random.standard_normal((3, 6, 6)), "ids": random.integers(0, 20, 7), "flag": number % 2 == 0}


def pairs():
    return [(item, number % 5) for number, item in enumerate(items())]


def tuples():
    return [(item["flag"], item["image"], item["ids"], 3) for item in items()]


@dataclasses.dataclass
class Item:
    ids: np.ndarray
    image: np.ndarray
    flag: bool


class NamedItem(NamedTuple):
    ids: np.ndarray
    image: np.ndarray
    flag: bool


def fields():
    return [Item(**item) for item in items()]


def named_fields():
    return [NamedItem(**item) for item in items()]


def objects():
    return [types.SimpleNamespace(**item) for item in items()]


def ragged():
    yield {"image": np.zeros((3, 6, 6)), "ids": np.zeros(6, np.int64), "flag": True}


def without_flag():
    yield {"image": np.zeros((3, 6, 6)), "ids": np.zeros(7, np.int64)}
"""
ALL = ("output_0", "output_1_0", "output_1_1")
INPUTS: list[dict[str, Any]] = [
    {"name": "flag", "shape": [], "dtype": "bool"},
    {"name": "image", "shape": [3, 6, 6]},
    {"name": "ids", "shape": [7], "dtype": "int64"},
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(SOURCE)
    return tmp_path


def recipe(directory: Path, result: str = "scores", **tables: Any) -> LoadedRecipe:
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": "python:models.py:Net", "weights": "factory", "kwargs": {"result": result}},
        "input": INPUTS,
        "calibration": {"source": "synthetic", "samples": 12},
        **tables,
    }
    return LoadedRecipe(recipe=Recipe.model_validate(raw), path=directory / "recipe.toml", text="")


def loaded(directory: Path, result: str = "scores", **tables: Any) -> FloatModel:
    return load(recipe(directory, result, **tables), Recorder())


def test_a_number_that_cannot_be_0_is_told_as_that(directory: Path) -> None:
    """A length of which one is subtracted: the first run is on zeros."""
    with pytest.raises(ModelError, match="out of bounds") as caught:
        loaded(directory, "last")
    assert "the first run is on zeros: where ids cannot be 0" in (caught.value.hint or "")
    ones = [each | ({"default": 1} if each["name"] == "ids" else {}) for each in INPUTS]
    assert loaded(directory, "last", input=ones).signature.outputs[0].shape == (1,)


def arrays(count: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "image": random.standard_normal((count, 3, 6, 6)).astype(np.float32),
        "ids": random.integers(0, 20, (count, 7)),
        "flag": random.random(count) < 0.5,
    }


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ("tuple", ["output_0", "output_1_0", "output_1_1"]),
        ("dict", ["scores", "aux.maps"]),
        ("dataclass", ["scores", "maps_0"]),
        ("named", ["x", "y"]),
        ("object", ["scores", "maps"]),
        ("double", ["output_0", "output_1"]),
    ],
)
def test_outputs_have_names_and_the_models_values(directory: Path, result: str, names: list[str]) -> None:
    model = loaded(directory, result)
    assert [each.name for each in model.signature.outputs] == names
    given = arrays()
    found = model.signature.split(model.module(torch.from_numpy(pack(model.signature, given))).numpy())
    user = load_user(model)
    expected = leaves_of(user(**{name: torch.from_numpy(each) for name, each in given.items()})).tensors
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.float().detach().numpy(), rtol=1e-6)


def load_user(model: FloatModel) -> Any:
    return model.module._user[0]


def test_layers_and_weights_keep_the_users_names(directory: Path) -> None:
    model = loaded(directory, "tuple")
    assert [name for name, _ in model.module.named_modules()] == ["", "words", "conv", "head"]
    assert set(model.module.state_dict()) == set(load_user(model).state_dict())


def test_the_vocabulary_is_that_of_the_table(directory: Path) -> None:
    spec = next(each for each in loaded(directory).signature.inputs if each.name == "ids")
    assert spec.vocabulary == 20
    own = [*INPUTS[:2], {**INPUTS[2], "vocabulary": 12}]
    assert loaded(directory, input=own).signature.inputs[2].vocabulary == 12
    wrong = [*INPUTS[:2], {**INPUTS[2], "vocabulary": 30}]
    with pytest.raises(RecipeError, match="vocabulary = 30, and the model fails for ids from 20 on"):
        loaded(directory, input=wrong)


def test_outputs_are_renamed_dropped_and_finished(directory: Path) -> None:
    tables = [
        {"name": "scores", "rename": "p", "apply": "softmax"},
        {"name": "aux.maps", "apply": "argmax", "dim": 1},
    ]
    outputs = loaded(directory, "dict", output=tables).signature.outputs
    assert [(each.name, each.apply, each.result_shape) for each in outputs] == [
        ("p", "softmax", (5,)),
        ("aux.maps", "argmax", (4, 4)),
    ]
    only = loaded(directory, "loss", output=[{"name": "loss", "drop": True}]).signature
    assert not only.gives_rows
    assert only.outputs[0].name == "scores"


@pytest.mark.parametrize(
    ("result", "tables", "words"),
    [
        ("loss", {}, 'the output "loss" has the shape () for one sample and for two'),
        ("constant", {}, 'the output "output_1" has the shape (5, 9) for one sample and for two'),
        ("pairs", {}, 'the output "output_1" has the shape (1, 1) for one sample and (2, 2) for two'),
    ],
)
def test_an_output_that_a_wheel_cannot_have_is_named(
    directory: Path, result: str, tables: dict[str, Any], words: str
) -> None:
    with pytest.raises(ModelError) as caught:
        loaded(directory, result, **tables)
    assert words in caught.value.message
    assert "drop = true" in (caught.value.hint or "")


def test_an_output_whose_batch_is_another_dimension_comes_with_the_batch_first(directory: Path) -> None:
    progress = Recorder()
    model = load(recipe(directory, "across"), progress)
    assert "the output output_1 has the batch in dimension 1: the wheel gives it first" in progress.notes
    given = {name: torch.from_numpy(each) for name, each in arrays().items()}
    found = model.signature.split(model.module(torch.from_numpy(pack(model.signature, arrays()))).numpy())
    expected = load_user(model)(**given)[1].detach().transpose(0, 1).numpy()
    np.testing.assert_allclose(found["output_1"], expected, rtol=1e-6)


def test_an_output_without_values_is_refused(directory: Path) -> None:
    """Where it was the only one, the build divided by its size."""
    with pytest.raises(ModelError, match=r'the output "output" has no values: its shape is \(1, 0\)'):
        loaded(directory, "empty")
    with pytest.raises(ModelError, match=r"returns a tensor without values: its shape is \(1, 4, 0\)"):
        check_output(torch.zeros(1, 4, 0), "net", 1, None)


@pytest.mark.parametrize("apply", ["softmax", "argmax"])
@pytest.mark.parametrize("table", [{"name": "output_0"}, {"name": "output_1", "rename": "maps", "dim": 1}])
def test_a_choice_among_one_value_is_refused(directory: Path, apply: str, table: dict[str, Any]) -> None:
    """A softmax of one score is 1 whatever the model says."""
    if table["name"] == "output_1":
        assert loaded(directory, "one", output=[{**table, "apply": apply}]).signature.outputs[1].apply == apply
        return
    with pytest.raises(RecipeError, match=f"{apply} over dimension 1 has one value to choose from") as caught:
        loaded(directory, "one", output=[{**table, "apply": apply}])
    assert "sigmoid" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"input": [*INPUTS[:2], {**INPUTS[2], "name": "idss"}]}, 'takes image, ids, scale, flag; did you mean "ids"?'),
        ({"input": INPUTS[:2]}, 'needs "ids", and no input has that name'),
        ({"output": [{"name": "score", "drop": True}]}, 'the model returns output_0, output_1_0, output_1_1'),
        ({"output": [{"name": "output_0", "rename": "output_1_0"}]}, 'two outputs would have the name "output_1_0"'),
        ({"output": [{"name": "output_1_0", "apply": "argmax"}]}, "argmax goes over one dimension"),
        ({"output": [{"name": "output_0", "apply": "softmax", "dim": 2}]}, "it has no dimension 2"),
        ({"output": [{"name": name, "drop": True} for name in ALL]}, "drops every output"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_the_model_is_told(directory: Path, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        loaded(directory, "tuple", **tables)
    assert words in str(caught.value)


def test_what_is_no_tensor_is_left_out_with_a_note(directory: Path) -> None:
    progress = Recorder()
    load(recipe(directory, "dict"), progress)
    assert "the output number is an int, no tensor: it is left out" in progress.notes


@pytest.mark.parametrize("factory", ["items", "pairs", "tuples", "fields", "named_fields"])
def test_a_factory_gives_rows(directory: Path, factory: str) -> None:
    """By position where it says no names: fields of another order are no inputs of another order."""
    spec, labelled = recipe(directory), factory in {"pairs", "tuples"}
    options = {"seed": 0, "skip_corrupt": False, "progress": Recorder(), "required": labelled}
    found = open_source(f"python:models.py:{factory}", spec, samples=9, labelled=labelled, **options)
    assert found.data.shape == (9, 1 + 3 * 36 + 7)
    assert found.data.dtype == np.float32
    np.testing.assert_array_equal(found.data[:2, 0], [1, 0])
    if labelled:
        assert found.labels is not None


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("ragged", 'input "ids": got int64 (6,); expected int64 (7,)'),
        ("without_flag", "item 0 has no flag"),
        ("objects", "item 0 is a SimpleNamespace, and the model has 3 inputs"),
    ],
)
def test_an_item_that_does_not_fit_is_named(directory: Path, factory: str, words: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        open_source(
            f"python:models.py:{factory}", recipe(directory),
            samples=9, seed=0, skip_corrupt=False, labelled=False, progress=Recorder(),
        )  # fmt: skip
    assert words in caught.value.message


def test_arrays_are_read_by_the_names_of_inputs(directory: Path) -> None:
    given, spec = arrays(10), recipe(directory)
    options: dict[str, Any] = {"seed": 0, "skip_corrupt": False, "labelled": False, "progress": Recorder()}
    np.savez(directory / "data.npz", **given)
    found = open_source("arrays:data.npz", spec, samples=4, **options)
    rows = [int(name.removeprefix("row ")) for name in found.names]
    np.testing.assert_array_equal(found.data, pack(loaded(directory).signature, given)[rows])
    np.savez(directory / "data.npz", image=given["image"], ids=given["ids"])
    with pytest.raises(CalibrationError, match=r"has no array for flag bool \(n,\); it has image, ids"):
        open_source("arrays:data.npz", spec, samples=4, **options)
    np.savez(directory / "data.npz", **{**given, "ids": given["ids"][:3]})
    with pytest.raises(CalibrationError, match="different numbers of samples: flag 10, image 10, ids 3"):
        open_source("arrays:data.npz", spec, samples=4, **options)


def test_synthetic_ids_need_a_table_or_a_vocabulary(directory: Path) -> None:
    options: dict[str, Any] = {"samples": 40, "seed": 0, "skip_corrupt": False, "labelled": False}
    model = loaded(directory)
    found = open_source("synthetic", recipe(directory), inputs=model.signature.inputs, progress=Recorder(), **options)
    ids = found.data[:, 1 + 108 :]
    assert ids.min() == 0
    assert ids.max() == 19
    with pytest.raises(CalibrationError, match='the input "ids" is int64, and the model looks it up in no table'):
        open_source("synthetic", recipe(directory), progress=Recorder(), **options)


def test_rows_are_not_rounded_but_their_parts_are(directory: Path) -> None:
    spec = recipe(directory, "tuple")
    model = load(spec, Recorder())
    captured = capture(model, None, spec.recipe, Recorder())
    graph = captured.module
    assert isinstance(graph, fx.GraphModule)
    source = next(node for node in graph.graph.nodes if node.op == "placeholder")
    laid = laying_calls(graph)
    assert set(source.users) <= laid  # what takes parts out of a row
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    assert output.args[0] in laid  # what joins the outputs
    assert captured.output_places == tuple(model.signature.output_places())
    assert not any(node.op == "call_module" for node in laid)
