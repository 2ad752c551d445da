"""Models that capture refuses: the message has the cause, the user's line and what to do."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError, ModelError
from cpupack.progress import SilentProgress
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.capture.export import export
from cpupack.stages.capture.rewrites import REWRITES
from cpupack.stages.verify import run_reference
from helpers.captured import Net, captured, kinds
from helpers.tiny_models import SHAPE, Recorder, float_model, fuse_model, recipe, samples


def refusal(module: nn.Module, shape: tuple[int, ...] = SHAPE) -> ModelError:
    with pytest.raises(ModelError) as caught:
        capture(float_model(module, shape), samples(shape), recipe(shape), SilentProgress())
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # the line to be named
            return x.mean((2, 3))
        return -x.mean((2, 3))


class Counting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row.mean((1, 2)) for row in x])  # the line to be named


class Indexed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, : int(x.abs().max() > 0) + 1].mean((2, 3))  # the line to be named


class ForNumpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * 2.0).mean((2, 3))  # the line to be named


class Forces(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(x.pow(2).sum(), x)
        return found.mean((2, 3))


def test_a_gradient_in_forward_is_told_with_its_line() -> None:
    with pytest.raises(ModelError, match="forward computes a gradient") as caught:
        export(Forces(), torch.randn(3, *SHAPE))
    assert "torch.autograd.grad" in caught.value.message
    assert "compute it outside" in (caught.value.hint or "")
    x = torch.ones(1, requires_grad=True)
    assert torch.autograd.grad(x * 2.0, x)[0].item() == 2.0


class AboveTheFloor(nn.Module):
    """Decibels above a floor below the loudest value of a sample, or of all samples as torchaudio takes (n, f, t)."""

    def __init__(self, *, of_all: bool) -> None:
        super().__init__()
        self.conv, self.of_all = nn.Conv2d(3, 4, 3), of_all

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        decibels = 10.0 * torch.log10((x * x).clamp(min=1e-10))
        top = decibels.amax() if self.of_all else decibels.amax((1, 2, 3), keepdim=True)  # the line to be named
        found: torch.Tensor = self.conv(torch.maximum(decibels, top - 80.0)).mean((2, 3))
        return found


class FiltersBySample(nn.Module):
    """A mixture of two filters of volumes for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(3, 2)
        self.experts = nn.Parameter(torch.randn(2, 4 * 3 * 3 * 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        filters = (self.route(x.mean((2, 3))) @ self.experts).view(batch * 4, 3, 1, 3, 3)
        images = x.reshape(1, batch * 3, 1, height, width)
        found = F.conv3d(images, filters, groups=batch)  # the line to be named
        return found.view(batch, 4, height - 2, width - 2).mean((2, 3))


class Pairs(nn.Module):
    """Attention that takes the batch for the tokens. What the others add is too little to show in the answers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.mean(1).flatten(1)
        scores = q @ q.transpose(-1, -2)  # the line to be named
        return q + 1e-6 * scores.softmax(-1) @ q


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Pairs(), "samples meet each other"),
        (FiltersBySample(), "convolves each sample with filters of its own"),
        (Branching(), "a line depends on the values of a tensor"),
        (Counting(), "its code fixes the batch size"),
        (Indexed(), "a line depends on the values of a tensor"),
        (ForNumpy(), "the model cannot be captured"),
    ],
)
def test_the_line_that_stands_in_the_way_is_named(net: nn.Module, words: str) -> None:
    lines, start = inspect.getsourcelines(type(net))
    line = start + next(number for number, text in enumerate(lines) if "the line to be named" in text)
    error = refusal(net)
    assert words in error.message
    assert f"{Path(__file__).name}:{line}" in error.message
    for internal in ("GuardOnDataDependent", "Constraints violated", "TORCH_LOGS", "u0"):
        assert internal not in str(error)


def test_a_model_that_answers_differently_each_time_is_told_so() -> None:
    error = refusal(Net(lambda net, x: net.fc(F.dropout(x.mean((2, 3)), 0.5)), fc=nn.Linear(3, 4)))
    assert "answers differently each time" in error.message
    assert "F.dropout" in str(error.hint)
    noisy = refusal(Net(lambda net, x: x.mean((2, 3)) + torch.rand(x.shape[0], 3)))
    assert "answers differently each time" in noisy.message


def test_an_answer_that_depends_on_the_rest_of_the_batch_is_told_so() -> None:
    error = refusal(Net(lambda net, x: (x - x.mean(0, keepdim=True)).abs().mean((2, 3))))
    assert "depends on the other samples of its batch" in error.message
    whole = refusal(Net(lambda net, x: (x / x.max().item()).mean((2, 3))))
    assert "depends on the other samples of its batch" in whole.message


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_the_sample_with_the_largest_value_does_not_hide_that_the_others_depend_on_it(largest: int) -> None:
    data = torch.rand(3, *SHAPE) * 0.5
    data[largest, 0, 0, 0] = 1.0
    model = float_model(Net(lambda net, x: (x / x.abs().max()).mean((2, 3))))
    with pytest.raises(ModelError, match="depends on the other samples of its batch"):
        capture(model, Samples(data.numpy(), "made", ("one", "two", "three")), recipe(), SilentProgress())


def test_samples_on_which_the_model_fails_are_told_so() -> None:
    net = Net(lambda net, x: net.table(x.long()).mean(1), table=nn.Embedding(4, 3))
    ids = np.arange(12, dtype=np.float32).reshape(3, 4)  # the table has four
    data = Samples(ids, "ids.npz", ("one", "two", "three"))
    with pytest.raises(CalibrationError, match=r"runs on zeros and fails on samples .*index out of range") as caught:
        capture(float_model(net, (4,)), data, recipe((4,)), SilentProgress())
    assert "token ids" in str(caught.value.hint)
    fine = Samples(ids % 4, "ids.npz", ("one", "two", "three"))
    model = float_model(net, (4,))
    fused = fuse_model(model, recipe((4,)), SilentProgress(), fine)
    with pytest.raises(CalibrationError, match=r"fails on ids\.npz"):
        calibrate(fused, data, 2, SilentProgress())
    with pytest.raises(CalibrationError, match=r"fails on ids\.npz"):
        run_reference(model, data, SilentProgress())


def test_a_batch_norm_without_running_statistics_is_named() -> None:
    error = refusal(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert "the batch norm 1 normalizes by the statistics of each batch" in error.message
    functional = Net(lambda net, x: F.batch_norm(x, None, None, training=True))
    assert "statistics of each batch" in refusal(functional).message


def test_a_model_that_changes_its_own_buffer_is_told_so() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1.0
            return x.mean((2, 3)) * (1.0 + 0.0 * self.calls)

    assert "changes its own buffer calls" in refusal(Counter()).message


def test_a_buffer_that_is_changed_and_never_read_is_no_obstacle() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1.0
            return self.conv(x)

    assert kinds(captured(Counter())) == ["Conv2d"]


def halve_weights(graph: fx.GraphModule) -> bool:
    for node in graph.graph.nodes:
        if node.op == "call_module":
            layer = graph.get_submodule(str(node.target))
            layer.weight = nn.Parameter(layer.weight.detach() * 0.5)
    return True


def lose_a_layer(graph: fx.GraphModule) -> bool:
    raise IndexError("list index out of range")


def pad_too_much(graph: fx.GraphModule) -> bool:
    """Leave a graph that torch refuses to run."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            layer: Any = graph.get_submodule(str(node.target))
            layer.padding = (-9, -9)
    return True


@pytest.mark.parametrize(
    ("rewrite", "why"),
    [
        (halve_weights, "it changes the model's answer by"),
        (lose_a_layer, "it fails: IndexError: list index out of range"),
        (pad_too_much, "it fails: RuntimeError: negative padding is not supported"),
    ],
)
def test_a_rewrite_at_fault_is_named_and_left_out(
    rewrite: Callable[[fx.GraphModule], bool], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are applied, and the graph answers as the model does."""
    stage = sys.modules["cpupack.stages.capture.capture"]  # the package has the function under this name
    monkeypatch.setattr(stage, "REWRITES", (rewrite, *REWRITES))
    net = Net(lambda net, x: net.conv(x).flatten(2).unsqueeze(1).reshape(x.shape[0], -1), conv=nn.Conv2d(3, 4, 3))
    model, progress = float_model(net), Recorder()
    graph = capture(model, samples(count=4), recipe(), progress).module
    assert isinstance(graph, fx.GraphModule)
    assert kinds(graph) == ["Conv2d", "flatten"]  # reshapes in a row are one
    batch = samples(count=3, seed=5).tensor(slice(None))
    with torch.inference_mode():
        torch.testing.assert_close(graph(batch.clone()), model.module(batch.clone()), rtol=1e-4, atol=1e-5)
    (warning,) = progress.warnings
    assert f"the rewrite {rewrite.__name__} is left out" in warning
    assert why in warning


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        some = (x.abs().amax() > 0.0).float().item()  # the same for any sample
        return x.mean((2, 3)) * some


def test_a_number_taken_out_of_a_tensor_is_refused() -> None:
    error = refusal(Scaled())
    assert "a line depends on the values of a tensor" in error.message
    assert Path(__file__).name in error.message


def test_dependence_on_the_batch_shows_in_any_sample() -> None:
    def last(_: Net, x: torch.Tensor) -> torch.Tensor:
        largest = torch.cummax(x, 0)[0]  # of the samples so far: the first one has its own
        return (x * 0.5 + largest).mean((2, 3))

    assert "depends on the other samples of its batch" in refusal(Net(last)).message


def test_a_shape_that_depends_on_the_batch_is_told_by_its_sizes() -> None:
    message = refusal(Net(lambda _, x: x.mean((2, 3)).squeeze() if x.dim() else x)).message
    assert "3 samples alone give (9,), together (3, 3)" in message


def test_a_floor_that_the_loudest_sample_of_a_batch_sets_is_refused() -> None:
    error = refusal(AboveTheFloor(of_all=True))
    assert "depends on the other samples of its batch: beside one that is 1000 times as large" in error.message
    assert "# the line to be named" in error.message
    assert "keepdim=True" in str(error.hint)
    captured(AboveTheFloor(of_all=False))


def test_a_maximum_of_all_samples_that_changes_no_answer_is_taken() -> None:
    def soft(net: Net, x: torch.Tensor) -> torch.Tensor:
        weights = (x / 100.0 - x.amax() / 100.0).exp()  # which keeps exp from infinity
        return weights.mean((2, 3)) / weights.sum((1, 2, 3)).unsqueeze(1)

    captured(Net(soft))
