"""Inverses, determinants and systems of small matrices of each sample, and diagonals: written out, exact, native."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.artifacts import Samples
from helpers.captured import Net, captured, kinds
from helpers.lowered import needs_kernels
from helpers.tiny_models import quantized, recipe, run

Function = Callable[[torch.Tensor], torch.Tensor]


def _matrices(x: torch.Tensor, size: int) -> torch.Tensor:
    """Return matrices ``(n, 2, size, size)`` that are far from singular."""
    made: torch.Tensor = x[:, : 2 * size * size].reshape(-1, 2, size, size) + 4.0 * torch.eye(size)
    return made


CALLS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "inverse": lambda x, n: torch.inverse(_matrices(x, n)),
    "inverse of a turned batch": lambda x, n: torch.linalg.inv(_matrices(x, n).transpose(0, 1)).transpose(0, 1),
    "determinant": lambda x, n: torch.linalg.det(_matrices(x, n)),
    "logarithm of it": lambda x, n: torch.logdet(_matrices(x, n)),
    "system": lambda x, n: torch.linalg.solve(_matrices(x, n), _matrices(x, n).flip(3)),
    "system of a vector": lambda x, n: torch.linalg.solve(_matrices(x, n)[:, 0], x[:, :n]),
}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_made_of_small_matrices_is_written_out(name: str, size: int) -> None:
    graph = captured(Net(lambda net, x: CALLS[name](x, size)), (32,))
    assert not [each for each in kinds(graph) if "inv" in each or "det" in each or "solve" in each]


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_no_product_leaves_the_range_of_float32(scale: float) -> None:
    """The products of four values of 1e15 are 1e60, and those of 1e-15 are 1e-60: the determinant would be 0."""
    module = Net(lambda net, x: torch.inverse(_matrices(x, 4) * scale) * scale)
    captured(module, (32,))


def test_larger_matrices_and_right_sides_of_another_kind_stay_as_they_are() -> None:
    net = Net(lambda net, x: torch.inverse(x[:, :25].reshape(-1, 5, 5) + 9.0 * torch.eye(5)))
    assert "inverse.default" in kinds(captured(net, (32,)))
    net = Net(lambda net, x: torch.linalg.solve(_matrices(x, 2), torch.ones(2, 1)))
    assert "linalg_solve.default" in kinds(captured(net, (32,)))


class Filter(nn.Module):
    """A Kalman filter whose noise a layer gives: two steps of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.noise, self.out = nn.Linear(2, 2), nn.Linear(4, 3)
        self.step, self.seen = torch.eye(4) + torch.diag(torch.ones(2), 2), torch.eye(2, 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x, p = torch.cat([z[:, 0], z[:, 0] * 0], 1), torch.eye(4).repeat(z.shape[0], 1, 1)
        for t in range(1, z.shape[1]):
            x, p = x @ self.step.t(), self.step @ p @ self.step.t() + 0.1 * torch.eye(4)
            noise = torch.diag_embed(nn.functional.softplus(self.noise(z[:, t])) + 0.1)
            gain = p @ self.seen.t() @ torch.inverse(self.seen @ p @ self.seen.t() + noise)
            x = x + (gain @ (z[:, t] - x @ self.seen.t())[..., None])[..., 0]
            p = (torch.eye(4) - gain @ self.seen) @ p
        result: torch.Tensor = self.out(x)
        return result


@needs_kernels
def test_a_kalman_filter_is_native() -> None:
    """The noise and the last layer are INT8, and what is between them is not: INT8 products there give 20 dB."""
    values = np.random.default_rng(0).standard_normal((16, 3, 2)).astype(np.float32)
    data = Samples(values, "noise", tuple(map(str, range(16))))
    model, int8 = quantized(Filter(), "native", spec=recipe((3, 2)), data=data)
    assert not [each for each in int8.layers if each.kernel == "aten"]
    wanted, found = run(model, data), run(int8, data)
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 30.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.diag_embed(x),
        lambda x: torch.diag_embed(x.reshape(-1, 4, 8), dim1=-2, dim2=-1),
        lambda x: torch.diag_embed(x[:, :3] / 0.0),  # infinities stay on the diagonal alone
        lambda x: torch.heaviside(x, torch.tensor(0.25)),
        lambda x: torch.heaviside(x.round(), x.roll(1, 1)),
    ],
)
def test_diagonals_and_steps_are_choices(function: Function) -> None:
    found = kinds(captured(Net(lambda net, x: function(x)), (32,)))
    assert not [each for each in found if "diag" in each or "heaviside" in each]
