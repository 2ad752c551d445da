"""Programs of FP32 layers that go through values in order: running sums, and values by a list of their places."""

from __future__ import annotations

import numpy as np
import torch

from cpupack.stages.quantize.native.walks import Norm, View
from helpers import float_reference as reference
from helpers.float_nets import EXTREMES, Net, normal

RUNNING = [kind for kind in Norm if kind >= Norm.RUNNING_SUM]


def running(rows: int) -> Net:
    """Rows side by side in two images, each in a pair of lines, with what is no number in some of them."""
    values = normal(2, 3, 2, 19, rows)
    values[1, 0, 1, 4:, : len(EXTREMES)] = np.resize(EXTREMES, (15, min(rows, len(EXTREMES))))
    net = Net(values.reshape(2, -1))
    view, x = net.view(values.shape[1:])
    for kind in RUNNING:
        with np.errstate(all="ignore"):
            one = reference.normalize(x.transpose(0, 1, 2, 4, 3), kind).transpose(0, 1, 2, 4, 3)
            both = reference.normalize(x.transpose(0, 1, 4, 2, 3).reshape(2, 3, rows, 38), kind)
        net.result(net.floats.normalize(view, (2,), kind), one)
        found = net.floats.normalize(view, (1, 2), kind)  # a row of two dimensions
        net.result(found, both.reshape(2, 3, rows, 2, 19).transpose(0, 1, 3, 4, 2))
    return net


def gathered_runs() -> Net:
    """Lists with long runs, short ones, one value in all, a number between them, and of repeated and turned values."""
    net = Net(normal(3, 5 * 12 * 33 + 4))
    view, x = net.view((5, 12, 33), 4)
    flat, numbers = x.reshape(3, -1), torch.arange(5 * 12 * 33).reshape(5, 12, 33)
    bordered = torch.nn.functional.pad(numbers, (2, 1, 1, 0), value=-1)
    for places in (
        numbers.flip(1), bordered, numbers[:, :, :3].flip(0), numbers[:, :, ::2], numbers.flatten()[7:8],
        torch.full((40,), -1), torch.cat([numbers.flatten()[90:120], torch.tensor([3, 3, -1, 2]), numbers.flatten()]),
    ):  # fmt: skip
        picked = np.where(places.numpy() < 0, np.float32(-7.25), flat[:, places.numpy()])
        net.result(net.floats.gather(view, places, fill=-7.25), picked)
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 12, 20))
    turned, repeated = view.permuted((1, 0, 2)), View(view.buffer, (4, *view.shape), (0, *view.steps), view.first)
    for operand, values in ((turned, x.transpose(0, 2, 1, 3)), (repeated, np.repeat(x[:, None], 4, 1))):
        own = torch.arange(operand.size).reshape(operand.shape)
        places = own[random] if operand is turned else own[:, :, random]
        found = net.floats.gather(operand, places)
        net.result(found, values.reshape(3, -1)[:, places.numpy()])
    return net
