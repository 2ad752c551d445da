"""TorchScript programs with branches, loops, lists, dicts and named tuples become modules that torch.export follows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from cpupack.errors import ModelError
from cpupack.model import script_calls
from cpupack.model.leaves import leaves_of
from cpupack.model.scripted import as_module
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from helpers.tiny_models import Recorder


class Answer(NamedTuple):
    score: Tensor
    more: dict[str, Tensor]


class Loops(nn.Module):
    """Has a loop over layers, a while, a branch on a shape, a list that grows, a dict and an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.cell, self.rounds = nn.GRUCell(6, 6), 3

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Answer:  # noqa: UP045 - TorchScript reads it
        if mask is not None:
            x = x * mask
        if x.dim() == 3:
            x = x * 2
        steps: list[Tensor] = []
        h = torch.zeros(x.size(0), 6)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
            steps.append(h)
        y = torch.stack(steps, 1)
        for number, layer in enumerate(self.layers):
            y = y + layer(y).relu() / float(number + 1)
        n = 0
        while n < self.rounds:
            y = torch.tanh(y)
            n += 1
        return Answer(y, {"last": steps[-1], "mean": y.mean(1)})


class Recurrent(nn.Module):
    """nn.LSTM is full of branches when it is scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, _) = self.lstm(x)
        return y, h.transpose(0, 1)


class Zeros(nn.Module):
    """Its trace makes a tensor of the size of the batch, and a number of that."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, 0], torch.zeros(x.size(0), 6))


class Attention(nn.Module):
    """Its trace calculates the sizes of heads with tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, src_key_padding_mask=x[..., 0] > 1.5)[:, 0]


class Sequences(nn.Module):
    """Takes a list and gives a list; the convolution is traced as an operator that no one calls."""

    def __init__(self) -> None:
        super().__init__()
        self.same, self.up = nn.Conv1d(4, 6, 3, padding="same"), nn.ConvTranspose1d(6, 6, 2, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.up(self.same(x))
        return [y, y.to(torch.float64).float() * torch.tensor([2.0])]


def batch(count: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, 4, 6)).astype(np.float32))


FORMS = ("scripted", "frozen", "traced")


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (made, how)
        for made in (Loops, Recurrent, Zeros, Attention, Sequences)
        for how in FORMS
        if (made, how) != (Loops, "traced")
    ],
)  # a trace has no named tuples
def test_a_program_becomes_a_module_that_can_be_exported(made: type[nn.Module], how: str) -> None:
    torch.manual_seed(0)
    net = made().eval()
    wanted = net(batch(3))
    if how == "traced":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a trace cannot see, and that torch.jit is old
            script: Any = torch.jit.trace(net, (batch(),), check_trace=False)
    else:
        script = torch.jit.freeze(torch.jit.script(net)) if how == "frozen" else torch.jit.script(net)
    module = as_module(script)
    module.name_fields(wanted)
    with torch.no_grad():
        program = torch.export.export(module, (batch(),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    for found in (module(batch(3)), program.module()(batch(3))):
        expected, tensors = leaves_of(wanted).tensors, leaves_of(found).tensors
        assert list(tensors) == list(expected)
        for name, each in expected.items():
            torch.testing.assert_close(tensors[name], each, rtol=1e-4, atol=1e-5)
    if how == "scripted":
        assert dict(module.named_parameters()).keys() == dict(net.named_parameters()).keys()


def recipe(directory: Path, inputs: list[dict[str, Any]]) -> LoadedRecipe:
    raw = {
        "schema": 1,
        "package": {"name": "net"},
        "model": {"source": "torchscript:net.pt", "weights": "factory"},
        "input": inputs,
        "calibration": {"source": "synthetic"},
    }
    return LoadedRecipe(recipe=Recipe.model_validate(raw), path=directory / "recipe.toml", text="")


STEPS = {"name": "x", "shape": [4, 6]}


@pytest.mark.parametrize("inputs", [[STEPS], [STEPS, {"name": "mask", "shape": [4, 1]}]], ids=["default", "given"])
def test_a_scripted_file_keeps_the_names_of_its_outputs(tmp_path: Path, inputs: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    net = Loops().eval()
    torch.jit.script(net).save(tmp_path / "net.pt")
    spec = recipe(tmp_path, inputs)
    model = load(spec, Recorder())
    assert [each.name for each in model.signature.outputs] == ["score", "more.last", "more.mean"]
    graph = capture(model, None, spec.recipe, Recorder()).module
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((3, *model.input_shape)).astype(np.float32))
    parts = rows.reshape(3, -1).split([24, 4][: len(inputs)], 1)
    wanted = net(*(part.reshape(3, 4, -1) for part in parts))
    found = model.signature.split(graph(rows).detach().numpy())
    np.testing.assert_allclose(found["score"], wanted.score.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["more.mean"], wanted.more["mean"].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(Loops().eval()).save(tmp_path / "net.pt")
    plain = {**script_calls.PLAIN, "lt": lambda first, second: first + 1 < second}
    monkeypatch.setattr("cpupack.model.scripted.PLAIN", plain)
    with pytest.raises(ModelError, match="answers otherwise: its output score differs"):
        load(recipe(tmp_path, [STEPS]), Recorder())


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return x.mean(1)
        return -x.mean(1)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x.mean(1) * self.count


@pytest.mark.parametrize(
    ("net", "words"),
    [(ByValue, "a line depends on the values of a tensor"), (Unknown, "the operator prim::SetAttr of TorchScript is")],
)
def test_what_cannot_be_captured_says_so(tmp_path: Path, net: type[nn.Module], words: str) -> None:
    torch.jit.script(net().eval()).save(tmp_path / "net.pt")
    spec = recipe(tmp_path, [STEPS])
    with pytest.raises(ModelError, match=words) as caught:
        capture(load(spec, Recorder()), None, spec.recipe, Recorder())
    assert caught.value.hint
