"""Recurrent layers in torch.export: the shapes of their results, and none of their steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cpupack.stages.capture.export import export
from cpupack.stages.capture.quick_recurrences import quick_recurrences


class Counted(TorchDispatchMode):
    """Counts the calls of ATen."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 6), nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True), nn.LSTM(4, 6, proj_size=3),
        nn.GRU(4, 6, 3, bidirectional=True), nn.GRU(4, 6, batch_first=True), nn.RNN(4, 6), nn.RNN(4, 6, 2, "relu"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("shape", [(5, 7, 4), (7, 4)], ids=["batch", "one"])
def test_results_have_the_shapes_of_those_that_are_computed(layer: nn.RNNBase, shape: tuple[int, ...]) -> None:
    layer = layer.eval()
    with torch.no_grad():
        expected = layer(torch.zeros(shape))
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, quick_recurrences():
            found = layer(fake.from_tensor(torch.zeros(shape)))
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert (tuple(one.shape), one.dtype) == (tuple(other.shape), other.dtype)


def flat(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else [each for part in results for each in flat(part)]


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)[0]
        return result


def test_no_step_is_gone_through() -> None:
    counts = []
    for length in (4, 64):
        with Counted() as counted:
            export(Read().eval(), torch.zeros(2, length, 4))
        counts.append(counted.count)
    assert counts[0] == counts[1]


def test_values_are_computed_as_ever() -> None:
    layer = nn.GRU(4, 6).eval()
    values = torch.randn(5, 2, 4)
    before = layer(values)[0]
    with quick_recurrences():
        assert torch.equal(layer(values)[0], before)
    assert torch.equal(layer(values)[0], before)
