"""Models that give one number for each sample, ``(n,)``, as regressions do: inside it is a column."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cpupack.progress import SilentProgress
from cpupack.stages.capture import capture
from cpupack.stages.load import load
from cpupack.stages.script import script, why_torch
from cpupack.stages.verify import compare, run_reference
from helpers.captured import Net, captured, kinds
from helpers.lowered import needs_kernels
from helpers.tiny_models import loaded, quantized, recipe, samples

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 1)

    def forward(self, x):
        return torch.sigmoid(self.head(torch.relu(self.conv(x)).mean((2, 3))).squeeze(1)) * 120 + 340
"""


@needs_kernels
def test_a_number_for_each_sample_comes_out_without_torch(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    model = load(loaded(tmp_path, model={"source": "python:net.py:Net", "weights": "factory"}), SilentProgress())
    data = samples(count=20)
    batch = data.tensor(slice(None))
    with torch.inference_mode():
        column = model.module(batch).numpy()
    assert column.shape == (20, 1)
    assert model.signature.result(column).shape == (20,)
    assert (model.signature.outputs[0].shape, model.output_shape) == ((), (1,))
    spec = recipe()
    captured = capture(model, data, spec, SilentProgress())
    assert captured.module is not None
    reference = run_reference(model, data, SilentProgress())
    _, int8 = quantized(model.module, "native", spec=spec, data=data)
    assert why_torch(int8) is None
    contender = compare(int8, script(int8, model.input_shape, tmp_path / "model.pt"), reference, tmp_path)
    assert contender.report.equal_to_quantized
    assert contender.report.sqnr_db > 40.0


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (lambda y: y * 120 + 340, ["Linear"]),
        (lambda y: torch.exp(y.sigmoid()), ["Linear", "Sigmoid", "exp"]),
        (lambda y: y + y.abs(), ["Linear", "reshape", "abs", "add", "reshape"]),
        (lambda y: (y[:, None] * torch.ones(3)).tanh(), None),
    ],
)
def test_functions_of_a_number_come_before_it_loses_its_column(after: object, expected: list[str] | None) -> None:
    net = Net(lambda net, x: after(net.head(x).squeeze(1))[:, None], head=nn.Linear(12, 1))  # type: ignore[operator]
    found = kinds(captured(net, (12,)))
    if expected is not None:
        assert found == expected
