"""Sources that are saved programs: TorchScript files and exported programs, with their own weights."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence

from cpupack.errors import ModelError
from cpupack.model.exported_sizes import ExportedSizeError, any_range
from cpupack.model.saved import load_exported
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.rows import pack
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from helpers.tiny_models import Recorder

INPUTS: list[dict[str, Any]] = [
    {"name": "ids", "shape": [5], "dtype": "int64"},
    {"name": "image", "shape": [3, 6, 6]},
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(8, 3)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.relu(self.norm(self.conv(image)))
        return self.head(torch.cat([maps.mean((2, 3)), self.words(ids).mean(1)], 1)), maps


@dataclass
class Batch:
    x: torch.Tensor


torch.export.register_dataclass(Batch, serialized_type_name="test_load_saved.Batch")


class OfBatch(nn.Module):
    def forward(self, batch: Batch) -> torch.Tensor:
        return batch.x + 1


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 3, batch_first=True)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(image, ids, batch_first=True, enforce_sorted=False)
        return self.cells(packed)[1][0][0]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.norm.running_mean.uniform_()
    return net


def recipe(directory: Path, source: str, inputs: list[dict[str, Any]] = INPUTS) -> LoadedRecipe:
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": source, "weights": "factory"},
        "input": inputs,
        "calibration": {"source": "synthetic"},
    }
    return LoadedRecipe(recipe=Recipe.model_validate(raw), path=directory / "recipe.toml", text="")


def save(net: Net, directory: Path, how: str) -> str:
    """Save the net and return the source that names the file."""
    image, ids = torch.randn(2, 3, 6, 6), torch.randint(0, 9, (2, 5))
    shapes = {"image": {0: Dim.AUTO}, "ids": {0: Dim.AUTO}}
    match how:
        case "exported":
            torch.export.save(torch.export.export(net, (image, ids), dynamic_shapes=shapes), directory / "net.pt2")
        case "exported with keywords":
            program = torch.export.export(net, (image,), {"ids": ids}, dynamic_shapes=shapes)
            torch.export.save(program, directory / "net.pt2")
        case "scripted":
            torch.jit.script(net).save(directory / "net.pt")
        case "traced":
            torch.jit.trace(net, (image, ids)).save(directory / "net.pt")
        case "optimized":
            torch.jit.optimize_for_inference(torch.jit.script(net)).save(directory / "net.pt")
        case "quantized":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that it will go away
                torch.jit.script(quantize_dynamic(net, {nn.Linear})).save(directory / "net.pt")
    return "export:net.pt2" if how.startswith("exported") else "torchscript:net.pt"


@pytest.mark.parametrize("how", ["exported", "exported with keywords", "scripted", "traced"])
def test_a_saved_program_is_the_model(net: Net, tmp_path: Path, how: str) -> None:
    spec = recipe(tmp_path, save(net, tmp_path, how))
    model = load(spec, Recorder())
    random = np.random.default_rng(0)
    given = {"ids": random.integers(0, 9, (3, 5)), "image": random.standard_normal((3, 3, 6, 6)).astype(np.float32)}
    rows = torch.from_numpy(pack(model.signature, given))
    graph = capture(model, None, spec.recipe, Recorder()).module
    scores, maps = net(torch.from_numpy(given["image"]), torch.from_numpy(given["ids"]))
    for module in (model.module, graph):
        found = model.signature.split(module(rows).detach().numpy())
        np.testing.assert_allclose(found["output_0"], scores.detach().numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["output_1"], maps.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert not model.random_weights
    assert model.signature.inputs[0].vocabulary == 9
    assert {"conv", "words", "head"} <= {str(node.target) for node in graph.graph.nodes}  # type: ignore[union-attr, operator]  # a graph


@pytest.mark.parametrize(
    ("name", "source", "words", "hint"),
    [
        ("fixed", "export:net.pt2", "was exported for one batch size", "dynamic_shapes"),
        ("traced", "export:net.pt", "cannot be read as an exported program", "torch.export.save"),
        ("exported", "torchscript:net.pt2", "cannot be read as TorchScript", 'source = "export:net.pt2"'),
        ("text", "export:net.pt2", "is no archive that torch has saved", ""),
        ("damaged", "torchscript:net.pt", "cannot be read as TorchScript", "the archive is damaged"),
        ("short", "torchscript:net.pt", "/data/0 has 4 bytes, and ", "python:FILE.py:factory"),
        ("optimized", "torchscript:net.pt", "leaves the weights out of the file", "save the program before that call"),
        (
            "quantized",
            "torchscript:net.pt",
            "is already quantized (quantized::linear_dynamic)",
            "before it is quantized",
        ),
        ("packed", "torchscript:net.pt", "packs its sequences (pack_padded_sequence)", "a Python module may pack"),
        ("own class", "export:net.pt2", "it holds an object of Python, ", "and no test_load_saved.Batch"),
        ("nothing", "torchscript:net.pt", "net.pt does not exist", "relative to the recipe"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    net: Net, tmp_path: Path, name: str, source: str, words: str, hint: str
) -> None:
    if name == "fixed":
        example = (torch.randn(2, 3, 6, 6), torch.randint(0, 9, (2, 5)))
        torch.export.save(torch.export.export(net, example), tmp_path / "net.pt2")
    elif name == "text":
        (tmp_path / "net.pt2").write_text("no archive")
    elif name == "packed":
        torch.jit.script(Packs()).save(tmp_path / "net.pt")
    elif name == "own class":
        program = torch.export.export(OfBatch(), (Batch(torch.ones(2, 3)),), dynamic_shapes=([{0: Dim.AUTO}],))
        torch.export.save(program, tmp_path / "net.pt2")
    elif name == "damaged":
        save(net, tmp_path, "traced")
        data = (tmp_path / "net.pt").read_bytes()
        (tmp_path / "net.pt").write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x03"))
    elif name == "short":  # torch reads beyond the end of such a tensor
        save(net, tmp_path, "scripted")
        with zipfile.ZipFile(tmp_path / "net.pt") as archive:
            found = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
            for member, data in found.items():
                archive.writestr(member, data[:4] if member.endswith("/data/0") else data)
    elif name != "nothing":
        save(net, tmp_path, name)
    with pytest.raises(ModelError) as caught:
        load(recipe(tmp_path, source), Recorder())
    assert words in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_program_of_training_mode_is_told_to_be_made_in_eval_mode(net: Net, tmp_path: Path) -> None:
    spec = recipe(tmp_path, save(net.train(), tmp_path, "exported"))
    with pytest.raises(ModelError, match="the batch norm norm is in training mode") as caught:
        capture(load(spec, Recorder()), None, spec.recipe, Recorder())
    assert "call eval() on the module before it is exported, traced or scripted" in (caught.value.hint or "")


class OfSizes(nn.Module):
    """Divides by the size of its map, and does something else with large ones. Both are settled when it is exported."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        maps = batch["maps"] * batch["factor"][:, None, None]
        height, width = maps.shape[-2:]
        mean = maps.sum((1, 2)) / (height * width)
        return torch.stack([mean, 2 * mean if height > 48 else mean], 1)


def test_a_program_is_not_run_beyond_the_sizes_of_its_export(tmp_path: Path) -> None:
    """torch compares them in a hook of its own, which is of no use for several ways to call: answers were wrong."""
    half, batch = Dim("half", min=4, max=24), Dim("batch", max=64)
    example = {"maps": torch.ones(2, 8, 6), "factor": torch.ones(2)}
    shapes = {"batch": {"maps": {0: batch, 1: 2 * half}, "factor": {0: batch}}}
    torch.export.save(torch.export.export(OfSizes(), (example,), dynamic_shapes=shapes), tmp_path / "net.pt2")
    module = load_exported(tmp_path / "net.pt2", "export:net.pt2")

    def mean(height: int, width: int = 6, samples: int = 3) -> float:
        given = {"factor": torch.ones(samples), "maps": torch.ones(samples, height, width)}
        return float(module(given).mean())

    assert [mean(height) for height in (8, 10, 48)] == [1.0] * 3
    assert mean(8, samples=100) == 1.0  # samples are computed each by itself
    for height, width, words in (
        (8, 7, "dimension 2 of the input batch_maps is 7, and it was exported for 6"),
        (50, 6, r"dimension 1 of the input batch_maps is 50, and it was exported for 2\*s\d+ with s\d+ from 4 to 24"),
        (9, 6, r"is 9, and it was exported for sizes of the form 2\*s\d+"),
    ):
        with pytest.raises(ExportedSizeError, match=words):
            mean(height, width)
    with any_range():
        assert mean(50) == 1.0
    inputs = [{"name": "batch.factor", "shape": []}, {"name": "batch.maps", "shape": [8, 7]}]
    with pytest.raises(ModelError, match=r"does not run on inputs .*dimension 2 of the input batch_maps is 7"):
        load(recipe(tmp_path, "export:net.pt2", inputs), Recorder())
