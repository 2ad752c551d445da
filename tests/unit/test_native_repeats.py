"""Rows that are repeated in FP32, as graph attention pairs all nodes: copied row by row, not value by value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.stages.quantize.native.program import Op
from cpupack.stages.quantize.native.walks import nested_steps, steps_like
from helpers.captured import Net, captured
from helpers.lowered import BOUND_DB, kernels, lowered, needs_kernels, program_buffers, program_layers


@pytest.mark.parametrize(
    ("sizes", "steps"),
    [((16,), (1,)), ((3, 16), (0, 1)), ((5, 4, 8), (8, 0, 1)), ((2, 3, 2, 9), (5, 0, 40, 2)), ((8,), (0,))],
)
def test_regular_places_have_their_sizes_and_steps(sizes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    places = sum(
        np.arange(size).reshape(-1, *[1] * (len(sizes) - 1 - axis)) * step
        for axis, (size, step) in enumerate(zip(sizes, steps, strict=True))
    )
    found = nested_steps(7 + np.broadcast_to(places, sizes).ravel().astype(np.int64))
    assert found is not None
    again = sum(
        np.arange(size).reshape(-1, *[1] * (len(found[0]) - 1 - axis)) * step
        for axis, (size, step) in enumerate(zip(*found, strict=True))
    )
    np.testing.assert_array_equal(np.broadcast_to(again, found[0]).ravel(), np.broadcast_to(places, sizes).ravel())


@pytest.mark.parametrize(
    "places", [np.arange(9)[::-1], np.array([0, 1, 2, 3] * 4), np.array([*range(8), *range(9, 17), *range(20, 28)])]
)
def test_other_places_have_none(places: np.ndarray) -> None:
    assert nested_steps(places.astype(np.int64)) is None


@pytest.mark.parametrize(
    ("shape", "steps", "expected"),
    [
        ((8, 32, 320), (0, 1, 32), (32, 1, 256)),  # a copy for each cluster lies around the channels of a place
        ((5, 5, 4), (4, 0, 1), (20, 4, 1)),
        ((6, 3), (1, 0), (3, 1)),
        ((2, 3, 4), (0, 0, 1), (12, 4, 1)),
        ((4, 5, 6), (1, 24, 4), (1, 24, 4)),
    ],
)
def test_repeated_values_do_not_part_the_others(
    shape: tuple[int, ...], steps: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert steps_like(shape, steps) == expected


def test_an_expanded_constant_beside_a_whole_tensor_has_its_own_values_alone() -> None:
    """NetVLAD's centers, which are the same at each place."""
    centers = torch.arange(24.0).reshape(4, 6)
    graph = captured(
        Net(
            lambda net, x: (
                x.expand(4, -1, -1, -1).permute(1, 0, 2, 3)
                - net.centers.expand(10, -1, -1).permute(1, 2, 0).unsqueeze(0)
            ),
            centers=centers,
        ),
        (6, 10),
    )
    assert [tuple(each.shape) for each in graph.buffers()] == [(1, 4, 6, 1)]


class Attention(nn.Module):
    """Graph attention: each node beside each other one."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.pairs, self.last = nn.Linear(6, 8), nn.Linear(16, 1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, count = self.nodes(x), x.shape[1]
        pairs = torch.cat([x.repeat_interleave(count, dim=1), x.repeat(1, count, 1)], -1)
        scores = torch.relu(self.pairs(pairs)).view(x.shape[0], count, count)
        return self.last((scores.softmax(-1) @ x).mean(1))


@needs_kernels
@pytest.mark.parametrize("net", [Attention(), Net(lambda net, x: net.attend(x.softmax(-1)), attend=Attention())])
def test_repeated_rows_are_copied_as_rows(net: nn.Module) -> None:
    db, int8, _ = lowered(net, (5, 6))
    assert db > BOUND_DB
    assert "aten" not in kernels(int8)
    assert Op.FLOAT_GATHER not in {int(each["op"]) for each in program_layers(int8)}


class Frames(nn.Module):
    """A token of its own for each frame of a video, which are in the batch."""

    def __init__(self, lay_out: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.first, self.last, self.lay_out = nn.Linear(6, 8), nn.Linear(8, 3), lay_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x.flatten(0, 1))
        y = torch.cat([self.lay_out(self.token, y.size(0)), y], 1) + self.places
        y = torch.nn.functional.scaled_dot_product_attention(y, y, y)
        result: torch.Tensor = self.last(y[:, 0]).unflatten(0, (-1, x.shape[1])).mean(1)
        return result


@needs_kernels
@pytest.mark.parametrize(
    "lay_out", [lambda token, frames: token.expand(frames, -1, -1), lambda token, frames: token.repeat(frames, 1, 1)]
)
def test_a_token_of_each_frame_is_laid_out_natively(lay_out: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    db, int8, _ = lowered(Frames(lay_out), (3, 4, 6))
    assert db > BOUND_DB
    assert "aten" not in kernels(int8)


class Sampled(nn.Module):
    """Informer's scores: each query beside some keys, which are picked from keys that are repeated for each query."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(20, 3)
        self.picked = torch.randint(20, (20, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.query(x), self.key(x)
        keys = k.unsqueeze(1).expand(-1, 20, -1, -1)[:, torch.arange(20)[:, None], self.picked]
        result: torch.Tensor = self.last((q.unsqueeze(2) @ keys.transpose(2, 3)).squeeze(2).amax(-1))
        return result


@needs_kernels
def test_picked_values_are_read_where_they_are_not_from_a_copy_of_all_that_repeat() -> None:
    """20 x 4 picked keys of 8 values are 640; a copy of the repeated ones has 20 x 20 x 8 = 3200."""
    db, int8, _ = lowered(Sampled(), (20, 6))
    assert db > BOUND_DB
    assert "aten" not in kernels(int8)
    assert max(int(each["sample_bytes"]) for each in program_buffers(int8)) // 4 == 640
