"""How far FP32 is asked of a model for inputs of any size: its time and memory are bounded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.errors import QuantizationError
from cpupack.model.cost import Cost, counted
from cpupack.pipeline import size_answers, size_proof
from cpupack.pipeline.size_answers import Answers, farthest
from cpupack.pipeline.size_proof import far_size
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.runtime.signature import Signature


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*self.all(x)[:, None].chunk(3, -1))[:, 0]


def test_what_a_call_takes_is_counted_for_a_sample() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    answer, cost = counted(net.eval(), torch.zeros(2, 3, 10, 12))
    assert cost == Cost(120 * 27 * 8, 120 * 8)
    assert torch.equal(answer, net(torch.zeros(2, 3, 10, 12)))
    _, cost = counted(Attention().eval(), torch.zeros(1, 64, 4))
    assert cost.macs == 64 * 4 * 12 + 2 * 64 * 64 * 4  # torch's own counter leaves this attention out


def test_a_model_that_cannot_be_counted_answers() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)).eval()
    with torch.inference_mode():
        answer, _ = counted(net, torch.ones(1, 4))
        assert torch.equal(answer, net(torch.ones(1, 4)))


@pytest.mark.parametrize(
    ("macs", "values", "reached"),
    [
        (1e3, 1e3, (512, 512)),
        (1e6, 1e3, (352, 352)),  # four times as many pixels may take sixteen times as long
        (1e3, 1e6, (352, 352)),
        (1e9, 1e3, (32, 32)),
    ],
)
def test_fp32_is_asked_as_far_as_its_time_and_memory_allow(
    macs: float, values: float, reached: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a convolution whose costs at 32 x 32 are given."""
    sizes = OpenSizes((32, 32), (512, 512), (32, 32))
    asked: list[Size] = []

    def answers_at(_: object, own: Size, size: Size, count: int) -> tuple[Answers, None, None]:
        assert (own, count) == (size, 1)
        asked.append(size)
        more = size[0] * size[1] / 1024
        cost = Cost(int(macs * more), int(values * more))
        return Answers(size, torch.zeros(1), torch.zeros(1).numpy(), Signature.plain((1,), (1,)), cost), None, None

    monkeypatch.setattr(size_answers, "answers_at", answers_at)
    monkeypatch.setattr(size_answers, "_MOST_MACS", 4e8)
    monkeypatch.setattr(size_answers, "_MOST_VALUES", 4e8)

    class Given:
        class model:
            input_shape = (3, 32, 32)

        @staticmethod
        def at_size(*size: int) -> Size:
            return size

    Given.model.sizes = sizes  # type: ignore[attr-defined]
    found = farthest(Given, Given, (512, 512))  # type: ignore[arg-type]
    assert found.size == reached
    assert asked == [(side, side) for side in (32, 64, 96, 160, 256, 352, 512) if (side, side) <= reached]


def test_the_far_size_is_on_the_way_to_the_largest() -> None:
    assert far_size(OpenSizes((32, 32), (64, 96), (32, 32)), (32, 32)) == (64, 96)
    assert far_size(OpenSizes((32, 32), (4096, 4096), (32, 32)), (64, 64)) == (160, 160)


class Refusing:
    """A session that takes no program for the largest images, which have more places than the kernels can count."""

    def __init__(self, *_: object) -> None:
        pass

    def make_ready(self, *, size: Size | None = None) -> None:
        if size == (64, 96):
            raise IntegrityError("the model cannot run: the program is damaged")

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        return batch

    def close(self) -> None:
        pass


def test_sizes_beyond_the_engine_are_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size_proof, "Session", Refusing)
    sizes = SimpleNamespace(range=OpenSizes((32, 32), (64, 96), (32, 32)))
    program = SimpleNamespace(sized=SimpleNamespace(sizes=sizes))
    one = torch.zeros(1, 1)
    answers = Answers((32, 32), one, one.numpy(), Signature.plain((1,), (1,)), Cost(1, 1))
    with pytest.raises(QuantizationError, match=r"\[sizes\] max: the native engine takes no inputs of 64 x 96"):
        size_proof.sqnr_db(program, answers)  # type: ignore[arg-type]
