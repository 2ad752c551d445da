"""What asks for the size of the batch: captured so that a trace of one batch works for all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.errors import ModelError
from cpupack.stages.script import save
from helpers.captured import Net, captured

SHAPE = (3, 8, 8)


def masked(net: Any, x: torch.Tensor) -> torch.Tensor:
    """A mask of truth values for each sample, written part by part."""
    mask = torch.ones(x.shape[0], 1, 8, 8, dtype=torch.bool)
    mask[:, :, 4:] = False
    return net.conv(x).masked_fill(mask, 0.25)


def counted(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Whole numbers, written over and used as an index."""
    place = torch.zeros(x.shape[0], 4, 1, dtype=torch.long)
    place[:, 2:].fill_(7)
    return net.conv(x).flatten(2).gather(2, place)


def net(forward: Any) -> Net:  # a lambda that reads the children of its net
    torch.manual_seed(0)
    return Net(
        forward,
        conv=nn.Conv2d(3, 4, 3, padding=1),
        single=nn.Conv2d(1, 1, 3, padding=1),
        recurrent=nn.LSTM(8, 8, batch_first=True),
        one=nn.Parameter(torch.randn(1, 4, 1, 1)),
        theta=nn.Parameter(torch.randn(1, 2, 3)),
        table=torch.randn(100),
        basis=torch.randn(1, 64, 5),
    ).eval()


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda n, x: torch.cat([n.conv(x), torch.zeros(x.shape[0], 2, 8, 8)], 1), id="zeros"),
        pytest.param(lambda n, x: torch.cat([n.conv(x), x.new_zeros(x.shape[0], 2, 8, 8)], 1), id="new_zeros"),
        pytest.param(lambda n, x: n.conv(x) * torch.full((x.shape[0], 1, 1, 1), 0.5), id="full"),
        pytest.param(lambda n, x: n.conv(x) + torch.empty(x.shape[0], 1, 1, 1).fill_(0.5), id="empty"),
        pytest.param(masked, id="a mask"),
        pytest.param(
            lambda n, x: n.conv(x).masked_fill(torch.full((x.shape[0], 1, 8, 8), True) & (n.conv(x) < 0), 0.1),
            id="a mask of truth in full",
        ),
        pytest.param(lambda n, x: torch.where(n.conv(x) > 0, True, False) * n.conv(x), id="truth by a condition"),
        pytest.param(counted, id="whole numbers"),
        pytest.param(lambda n, x: n.conv(x).expand(x.shape[0], 4, 8, 8), id="expand of what is computed"),
        pytest.param(lambda n, x: n.conv(x) + n.one.repeat(x.shape[0], 1, 8, 8), id="repeat"),
        pytest.param(lambda n, x: n.conv(x) + torch.tile(n.one, (x.shape[0], 1, 8, 8)), id="tile"),
        pytest.param(lambda n, x: n.conv(x) + n.one.repeat_interleave(x.shape[0], 0), id="repeat_interleave"),
        pytest.param(lambda n, x: n.conv(x)[torch.arange(x.shape[0])], id="arange as an index"),
        pytest.param(lambda n, x: n.conv(x) + (n.table[: x.shape[0]] * 0).view(-1, 1, 1, 1), id="slice"),
        pytest.param(lambda n, x: n.conv(x).flatten(0, 1).unflatten(0, (x.shape[0], 4)), id="unflatten"),
        pytest.param(
            lambda n, x: n.single(n.conv(x).reshape(x.shape[0] * 4, 1, 8, 8)).reshape(x.shape[0], 4, 8, 8),
            id="channels as samples",
        ),
        pytest.param(lambda n, x: n.conv(x).contiguous().as_strided((x.shape[0], 4, 8), (256, 64, 8)), id="as_strided"),
        pytest.param(lambda n, x: torch.bmm(n.conv(x).flatten(2), n.basis.expand(x.shape[0], 64, 5)), id="bmm"),
        pytest.param(
            lambda n, x: F.grid_sample(
                n.conv(x),
                F.affine_grid(n.theta.expand(x.shape[0], 2, 3), [x.shape[0], 4, 8, 8], align_corners=False),
                align_corners=False,
            ),
            id="affine_grid",
        ),
        pytest.param(
            lambda n, x: n.recurrent(n.conv(x).mean(1))[0].unsqueeze(1).expand(x.shape[0], 4, 8, 8), id="lstm"
        ),
    ],
)
def test_a_model_that_is_saved_with_one_sample_gives_the_answers_of_any_batch(forward: Any, tmp_path: Path) -> None:
    module = net(forward)
    graph = captured(module, SHAPE)
    save(graph, torch.randn(1, *SHAPE), tmp_path / "model.pt")
    traced = torch.jit.load(tmp_path / "model.pt")
    with torch.inference_mode():
        for count in (1, 3, 8):
            batch = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(count))
            torch.testing.assert_close(traced(batch), module(batch), rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(graph(batch), module(batch), rtol=1e-4, atol=2e-5)


def test_parts_of_the_batchs_size_are_refused_with_the_line() -> None:
    module = net(lambda n, x: torch.cat([n.conv(x), n.conv(x)]).split(x.shape[0] * 2)[0])
    with pytest.raises(
        ModelError, match=r"aten\.split\.Tensor in the model takes the size of the batch as a number"
    ) as e:
        captured(module, SHAPE)
    assert "the saved model would keep that of one batch" in str(e.value)
    assert "forward" in str(e.value)
