"""Images of one column: convolutions along it, and what reads them, become layers of sequences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.captured import Net, captured, kinds, random

COLUMN = (3, 40, 1)


def test_convolutions_along_a_column_and_what_reads_them_go_along_a_row() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.norm(F.relu(net.first(F.pad(x, (0, 0, 2, 3)))))
        x = F.max_pool2d(x, (2, 1), (2, 1))
        return net.second(F.pad(x, (0, 0, 3, 1), value=0.5))

    net = Net(
        forward, first=nn.Conv2d(3, 8, (6, 1), stride=(2, 1)), norm=nn.BatchNorm2d(8), second=nn.Conv2d(8, 5, (5, 1))
    )
    nn.init.uniform_(net.norm.weight)
    net.norm.running_mean = random(8)
    graph = captured(net, COLUMN, ("read_columns_as_rows",))
    assert kinds(graph) == ["reshape", "Conv1d", "ReLU", "BatchNorm1d", "MaxPool1d", "pad", "Conv1d", "reshape"]


@pytest.mark.parametrize(
    ("forward", "layers"),
    [
        (lambda net, x: F.silu(net.a(x)) + net.b(x), ["Conv1d", "SiLU", "Conv1d", "add"]),
        (lambda net, x: net.c(net.a(x)), ["Conv1d", "PReLU"]),
        (lambda net, x: (y := net.a(x)) * y.mean((2, 3), keepdim=True), ["Conv1d", "AdaptiveAvgPool1d", "mul"]),
        (lambda net, x: torch.cat([net.a(x), net.b(x)], 1), ["Conv1d", "Conv1d", "cat"]),
        (lambda net, x: net.up(net.a(x)), ["Conv1d", "ConvTranspose1d"]),
        (lambda net, x: F.avg_pool2d(net.a(x), (3, 1), 1), ["Conv1d", "AvgPool1d"]),
        (lambda net, x: torch.sqrt(torch.clamp(net.a(x), 0.1, 3.0)), ["Conv1d", "Hardtanh", "sqrt"]),
        (lambda net, x: net.a(x) * net.table, ["Conv1d", "mul"]),
        (lambda net, x: F.softmax(net.a(x), 1), ["Conv1d", "Softmax"]),
        (lambda net, x: net.a(x).flatten(1), ["Conv1d", "flatten"]),
    ],
)
def test_other_calls_read_the_sequence_or_the_image_again(forward: object, layers: list[str]) -> None:
    net = Net(
        forward,  # type: ignore[arg-type]  # of the list above
        a=nn.Conv2d(3, 8, (3, 1), padding=(1, 0)), b=nn.Conv2d(3, 8, (5, 1), padding=(2, 0)), c=nn.PReLU(8),
        up=nn.ConvTranspose2d(8, 4, (4, 1), stride=(2, 3)), table=random(8, 40, 1),
    )  # fmt: skip
    found = kinds(captured(net, COLUMN))
    assert [each for each in found if each in layers] == layers, found
    assert "Conv2d" not in found


def test_images_of_more_columns_and_windows_of_one_row_stay_images() -> None:
    assert kinds(captured(nn.Conv2d(3, 4, (3, 1)), (3, 9, 2))) == ["Conv2d"]
    assert kinds(captured(nn.Conv2d(3, 4, (3, 3), padding=1), (3, 9, 1))) == ["Conv2d"]
    assert kinds(captured(nn.Conv2d(3, 4, 1), COLUMN)) == ["Conv2d"]
