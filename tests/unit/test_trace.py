"""Tracing: the user's line that stands in the way is named, and what does nothing in inference is gone."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.errors import ModelError
from cpupack.graph.trace import remove_inference_noops, trace
from cpupack.model.vision import import_torchvision
from cpupack.progress import SilentProgress
from cpupack.stages.fuse import fuse
from helpers.tiny_models import SHAPE, float_model, recipe


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line to be named
            return self.conv(x)
        return self.conv(-x)


class Counting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        for row in x:  # a loop over the batch
            total = total + row
        return total


@pytest.mark.parametrize(("module", "mark"), [(Branching(), "the line to be named"), (Counting(), "a loop over")])
def test_the_line_that_depends_on_values_is_named(module: nn.Module, mark: str) -> None:
    lines, start = inspect.getsourcelines(type(module))
    line = start + next(number for number, text in enumerate(lines) if mark in text)
    with pytest.raises(ModelError, match="the model cannot be traced") as caught:
        fuse(float_model(module), recipe(), SilentProgress())
    assert f"{Path(__file__).name}:{line}: {lines[line - start].strip()}" in str(caught.value)
    assert "QuantStub" in (caught.value.hint or "")
    assert caught.value.exit_code == 3


class Noisy(nn.Module):
    """Every kind of call that returns its input in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.identity, self.drop = nn.Identity(), nn.Dropout(0.5)
        self.drop2d, self.alpha, self.feature = nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)
        self.depth = import_torchvision().ops.StochasticDepth(0.5, "row")
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.feature(self.alpha(self.drop2d(self.drop(self.identity(x)))))
        x = F.dropout(self.depth(self.conv(x)), 0.5, self.training)
        return F.dropout2d(x, training=self.training)


def test_dropouts_identities_and_stochastic_depth_are_removed() -> None:
    module = Noisy().eval()
    graph = trace(module)
    remove_inference_noops(graph)
    assert [node.target for node in graph.graph.nodes if node.op.startswith("call")] == ["conv"]
    batch = torch.randn(2, *SHAPE)
    assert torch.equal(graph(batch), module(batch))


def test_a_dropout_that_always_drops_is_kept() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.5, True)

    graph = trace(Always().eval())
    remove_inference_noops(graph)
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [F.dropout]


def test_an_identity_between_two_links_does_not_break_a_chain() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    assert fuse(float_model(layers), recipe(), SilentProgress()).chains == (("0", "2", "4"),)


def test_the_traced_model_shares_the_parameters() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert trace(module).get_parameter("0.weight") is module[0].weight
