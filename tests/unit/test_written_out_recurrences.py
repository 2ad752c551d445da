"""Recurrences that torch has written out, and states with the batch second: wholly native, and on torch's engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from cpupack import accuracy
from cpupack.artifacts import CapturedModel
from cpupack.graph.native_model import NativeModel
from cpupack.lock.facts import graph_hash
from cpupack.model.saved import load_exported
from helpers.captured import Net, captured, kinds, random
from helpers.lowered import kernels, lowered, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

BOUND_DB = 33.0
"""Three layers of 8 bits, each with an error of 44 dB in values and in weights (test_native_recurrent.py)."""


class Layer(nn.Module):
    def __init__(self, kind: Any, **how: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.r = kind(8, 20, batch_first=True, **how)
        self.fc = nn.Linear(40 if how.get("bidirectional") else 20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.r(x)[0])


@needs_kernels
@pytest.mark.filterwarnings("ignore:The tensor attributes", "ignore:`isinstance")  # torch.export's own
@pytest.mark.parametrize(
    ("kind", "how"),
    [(nn.LSTM, {}), (nn.GRU, {"bidirectional": True}), (nn.RNN, {"bias": False}), (nn.LSTM, {"num_layers": 2})],
)
def test_a_layer_that_the_export_has_decomposed_is_native(kind: Any, how: dict[str, Any], tmp_path: Path) -> None:
    """``run_decompositions()`` writes each step out, with states ``(1, batch, values)``; linear layers are ``bmm``."""
    module = Layer(kind, **how).eval()
    program = torch.export.export(module, (torch.randn(2, 5, 8),), dynamic_shapes={"x": {0: Dim.AUTO}})
    torch.export.save(program.run_decompositions(), tmp_path / "net.pt2")
    db, int8, model = lowered(load_exported(tmp_path / "net.pt2", "export:net.pt2"), (5, 8))
    assert isinstance(model, NativeModel)
    assert model.head is model.tail is None
    assert "aten" not in kernels(int8)
    assert db > BOUND_DB, db


class Gated(nn.Module):
    """A GRU by hand, with states ``(1, batch, values)``."""

    def __init__(self, first: Callable[[Gated, int], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.x, self.h, self.fc, self.first = nn.Linear(8, 60), nn.Linear(20, 60), nn.Linear(20, 5), first
        self.start = nn.Parameter(torch.randn(1, 1, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(self, len(x))
        for step in range(x.shape[1]):
            parts = zip(self.x(x[:, step]).unsqueeze(0).chunk(3, -1), self.h(h).chunk(3, -1), strict=True)
            (xr, hr), (xz, hz), (xn, hn) = parts
            z = torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h
        return self.fc(h[0])


FIRST: dict[str, Callable[[Gated, int], torch.Tensor]] = {
    "zeros": lambda _, count: torch.zeros(1, count, 20),
    "a number": lambda _, count: torch.full((1, count, 20), 0.5),
    "expanded": lambda net, count: net.start.expand(1, count, 20),
    "expanded by a dimension": lambda net, count: net.start[0, 0].expand(1, count, 20),
    "repeated": lambda net, count: net.start.repeat(1, count, 1),
}


@needs_kernels
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("engine", ["native", "x86"])
def test_states_with_the_batch_second_run_on_every_engine(engine: str, first: str) -> None:
    """torch's engines refused them: a size among numbers is no list of integers to ``aten::zeros``."""
    data = samples((4, 8))
    model, int8 = quantized(Gated(FIRST[first]), engine, spec=recipe((4, 8)), data=data)
    # Ten layers of 8 bits in a chain, four of them through the state: 41 dB each leave 31.
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25


class FirstToken(nn.Module):
    """The decoder of torch's tutorial on translation, whose first token is ``(1, batch)``."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.words, self.decoder = nn.GRU(8, 20), nn.Embedding(6, 12), nn.GRU(12, 20)
        self.last = nn.Linear(20, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, h = self.encoder(x.transpose(0, 1))
        word = torch.ones(1, len(x), dtype=torch.long)
        y, h = self.decoder(torch.relu(self.words(word)), h)
        return self.last(y[0])


@needs_kernels
def test_a_first_token_with_the_batch_second_is_native() -> None:
    db, int8, model = lowered(FirstToken(), (6, 8))
    assert isinstance(model, NativeModel)
    assert "aten" not in kernels(int8)
    assert db > BOUND_DB, db


@pytest.mark.parametrize(
    ("product", "calls"),
    [
        (lambda net, x: torch.bmm(x, net.w.expand(len(x), -1, -1)), ["Linear"]),
        (lambda net, x: torch.bmm(x.transpose(0, 1), net.w.expand(4, -1, -1)), ["permute", "Linear"]),
        # Another matrix for each step, and one row that meets several.
        (lambda net, x: torch.bmm(x.transpose(0, 1), net.others), ["reshape", "Conv1d"]),
        (lambda net, x: torch.matmul(x[:, :1].transpose(0, 1), net.w.expand(4, -1, -1)), []),
    ],
)
def test_a_product_with_one_matrix_for_all_is_a_linear_layer(
    product: Callable[[Net, torch.Tensor], torch.Tensor], calls: list[str]
) -> None:
    """``captured`` compares the values."""
    first = calls == ["Linear"]  # the batch, else it is the second dimension
    weights = {"w": random(1, 8, 3), "others": random(4, 8, 3)}
    net = Net(lambda net, x: product(net, x) if first else product(net, x).movedim(1, 0), **weights)
    found = kinds(captured(net, (4, 8)))
    assert found[: len(calls)] == calls


def test_a_group_norm_that_is_written_out_is_one() -> None:
    scale, shift = random(8), random(8, seed=4)

    def norm(net: Net, x: torch.Tensor) -> torch.Tensor:
        return torch.native_group_norm(x, net.scale, net.shift, len(x), 8, 30, 2, 1e-5)[0]

    assert kinds(captured(Net(norm, scale=scale, shift=shift), (8, 5, 6))) == ["GroupNorm"]


def test_one_value_with_strides_of_zero_has_a_hash() -> None:
    """A clone of an expanded tensor keeps them, and such has no view as bytes."""
    hashes = []
    assert torch.full((), 3).expand(1, 1).clone().stride() == (0, 0)
    for one in (torch.full((), 3).expand(1, 1).clone(), torch.full((1, 1), 3)):
        graph = torch.fx.symbolic_trace(Net(lambda net, x: x + net.one, one=one))
        graph.one = one
        hashes.append(graph_hash(CapturedModel(graph, "fx", torch.zeros(3, 1))))
    assert hashes[0] == hashes[1]
