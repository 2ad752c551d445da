"""Exported programs whose arguments hold values that are no tensors: numbers, texts, None."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from cpupack.errors import ModelError
from cpupack.model.saved import load_exported

BATCH = {0: Dim.AUTO}


class Scaled(nn.Module):
    """Every argument changes the answer, by its own power of ten."""

    def forward(
        self,
        x: dict[str, Any],
        scale: float = 1.0,
        *,
        more: list[Any] | None = None,
        bias: torch.Tensor | None = None,
        mode: str = "sum",
    ) -> torch.Tensor:
        y = (x["a"] + 10 * x["inner"][0]) * scale
        if more is not None:
            y = y + 100 * more[0] * more[1]
        if bias is not None:
            y = y + bias
        return y if mode == "sum" else -y


def exported(directory: Path, **kwargs: Any) -> nn.Module:
    """Return the program of Scaled with ``scale`` 3, as a file has it."""
    x = {"a": torch.randn(2, 3), "inner": (torch.randn(2, 3),)}
    shapes: dict[str, Any] = {"x": {"a": BATCH, "inner": (BATCH,)}, "scale": None}
    shapes |= {name: [BATCH, None] if name == "more" else None for name in kwargs}
    program = torch.export.export(Scaled(), (x, 3.0), kwargs, dynamic_shapes=shapes)
    torch.export.save(program, directory / "net.pt2")
    return load_exported(directory / "net.pt2", "export:net.pt2")


def given() -> dict[str, Any]:
    """Return arguments for a batch of 4, as ``with_arguments`` makes them."""
    return {"x": {"a": torch.full((4, 3), 1.0), "inner": (torch.full((4, 3), 2.0),)}}


def test_values_that_are_no_tensors_are_those_of_the_export(tmp_path: Path) -> None:
    program = exported(tmp_path, more=[torch.randn(2, 3), 5], bias=None, mode="mean")
    found = program(**given(), more=[torch.full((4, 3), 7.0)])
    # -((1 + 10 * 2) * 3 + 100 * 7 * 5)
    assert torch.equal(found, torch.full((4, 3), -3563.0))


def test_arguments_without_a_tensor_are_none_of_the_program(tmp_path: Path) -> None:
    program = exported(tmp_path, bias=None)
    assert torch.equal(program(given()["x"]), torch.full((4, 3), 63.0))
    for name in ("bias", "scale"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            program(**given(), **{name: torch.ones(4, 3)})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([torch.ones(4, 3), torch.ones(4)], r"more has 2 tensors, .* exported with 1 in it; fixed are more\[1\] = 5"),
        ([], r"exported with more\[0\], and a call has no such entry"),
    ],
)
def test_an_entry_that_the_program_does_not_have_is_told(tmp_path: Path, more: list[Any], words: str) -> None:
    program = exported(tmp_path, more=[torch.randn(2, 3), 5])
    with pytest.raises(TypeError, match=words):
        program(**given(), more=more)


def test_a_number_that_is_an_input_is_refused(tmp_path: Path) -> None:
    class Times(nn.Module):
        def forward(self, x: torch.Tensor, count: int) -> torch.Tensor:
            return x * count

    program = torch.export.export(Times(), (torch.randn(2, 3), 4), dynamic_shapes={"x": BATCH, "count": Dim.DYNAMIC})
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match="takes a number that is no tensor, count"):
        load_exported(tmp_path / "net.pt2", "export:net.pt2")
