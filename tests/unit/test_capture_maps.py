"""Functions of one sample that ``torch.vmap`` maps over the batch are captured as functions of the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from cpupack import accuracy
from cpupack.errors import ModelError
from helpers.lowered import BOUND_DB, Calls, needs_kernels
from helpers.tiny_models import quantized, recipe, run, samples


class Mixed(nn.Module):
    """A layer of the model inside the function, on a tensor to which the function adds a dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.vmap(lambda one: F.relu(self.mix(one[None]))[0])(x)


def compared(x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda one: one.flatten(1) @ one.flatten(1).T / 64 + one.mean())(x)


def over_channels(x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda channel: channel * torch.sigmoid(channel.amax((1, 2), keepdim=True)), in_dims=1)(x)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a layer": Mixed(), "a product": compared, "channels": lambda x: over_channels(x).transpose(0, 1),
}  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mapped_function_answers_as_the_model_does(name: str) -> None:
    torch.manual_seed(0)
    data = samples()
    model, int8 = quantized(Calls(FUNCTIONS[name]), "native", spec=recipe(quantize={"observer": "minmax"}), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB


def test_one_that_torch_cannot_write_out_is_refused_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> ExportedProgram:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", fails)
    with pytest.raises(ModelError, match=r"cannot write out torch\.vmap \(.*\.py:\d+: .*no batching"):
        quantized(Calls(compared), "native")
