"""Steps that a model computes in float64: in float32 where the answers are the same, else as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.stages.capture.export import export
from cpupack.stages.capture.single_precision import in_single_precision
from helpers.captured import Net, captured
from helpers.lowered import BOUND_DB, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples

_SHAPE = (6, 8)
_STEPS: dict[str, Callable[[Net, torch.Tensor], torch.Tensor]] = {
    "a norm": lambda net, x: (
        (x.double() - x.double().mean(-1, keepdim=True)) / (x.double().std(-1, keepdim=True) + 1e-8)
    ),
    "a running sum": lambda net, x: torch.cumsum(x.to(torch.float64), 1) / 8,
    "a softmax": lambda net, x: torch.softmax(x, -1, dtype=torch.float64),
    "a table": lambda net, x: x.double() * net.table,
}


def _net(step: Callable[[Net, torch.Tensor], torch.Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.last(step(net, net.first(x)).float()), first=nn.Linear(8, 8), last=nn.Linear(8, 4),
        table=torch.linspace(0.5, 1.5, 8, dtype=torch.float64),
    )  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", _STEPS)
def test_steps_in_float64_run_natively(name: str) -> None:
    captured(_net(_STEPS[name]), _SHAPE)
    data = samples(_SHAPE)
    spec = recipe(_SHAPE, quantize={"observer": "minmax"})
    model, int8 = quantized(_net(_STEPS[name]), "native", spec=spec, data=data)
    assert [each.kernel for each in int8.layers if each.kernel.startswith("aten")] == []
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_steps_that_float32_would_change_stay_in_float64() -> None:
    # Of a value near 1, 1e9 more leaves nothing in float32, whose steps are 64 there.
    graph = captured(_net(lambda net, x: (x.double() + 1e9) - 1e9), _SHAPE)
    assert any(torch.float64 in (*node.args, *node.kwargs.values()) for node in graph.graph.nodes)


def test_each_of_several_outputs_is_judged_by_its_own_values() -> None:
    """Beside values of a million, what float32 leaves of the others looked small enough."""

    def both(_: Net, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x * 1e6, ((x.double() + 1e7) - 1e7).float()], 1)  # in steps of 1 in float32

    net, batch = Net(both, first=nn.Linear(8, 8)).eval(), samples((8,)).tensor(slice(0, 4))
    exported = export(net, batch[:2])
    assert in_single_precision(exported, net, batch) is not exported
    assert in_single_precision(exported, net, batch, (slice(0, 8), slice(8, 16))) is exported
