"""What torch says of its own internals stays off the screen; what the user's code makes it say does not."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from torch import fx, nn

from cpupack.torch_noise import quiet_internals


def said_of(name: str, text: str) -> list[str]:
    """Return what reaches the user of a warning at a line of a module of this name."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with quiet_internals():
            warnings.warn_explicit(text, UserWarning, f"{name}.py", 1, module=name)
    return [str(each.message) for each in found]


@pytest.fixture(autouse=True)
def without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])


INSIDE = "An output was resized. (Triggered internally at /torch/Resize.cpp:38.)"


@pytest.mark.parametrize(
    ("module", "text", "stays"),
    [
        ("torch.fx.interpreter", INSIDE, False),
        ("torch", "deprecated", False),
        ("torchmodel", "deprecated", True),
        ("cpupack.stages.verify.outputs", INSIDE, False),
        ("cpupack.progress", "RANDOM WEIGHTS", True),
        ("model", INSIDE, True),
    ],
)
def test_only_warnings_of_internals_are_left_out(module: str, text: str, stays: bool) -> None:
    assert said_of(module, text) == [text] * stays


class Uneven(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = torch.quantize_per_tensor(x, 0.1, 0, torch.quint8)
        high = torch.quantize_per_tensor(x, 0.5, 3, torch.quint8)
        joined: torch.Tensor = torch.cat([low, high]).dequantize()
        return joined


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_graph_that_torch_wrote_says_nothing() -> None:
    """torch warns of a join of codes of two scales, at a line of code that has no file."""
    graph = fx.symbolic_trace(Uneven())
    torch.set_warn_always(True)
    try:
        for quiet in (False, True):
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                with quiet_internals() if quiet else warnings.catch_warnings():
                    graph(torch.ones(3))
            assert any("must share the same quantization parameters" in str(each.message) for each in found) != quiet
    finally:
        torch.set_warn_always(False)


def test_options_of_python_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    assert said_of("torch.fx.interpreter", INSIDE) == [INSIDE]


@pytest.mark.parametrize("logs", [None, "+dynamo"])
def test_what_torch_logs_below_an_error_is_left_out(logs: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_LOGS", raising=False)
    if logs:
        monkeypatch.setenv("TORCH_LOGS", logs)
    log, own = logging.getLogger("torch.utils._pytree"), logging.getLogger("model")
    before = log.getEffectiveLevel()
    with quiet_internals():
        assert log.isEnabledFor(logging.ERROR)
        assert log.isEnabledFor(logging.WARNING) == (logs is not None)
        assert own.isEnabledFor(logging.WARNING)
    assert log.getEffectiveLevel() == before
