"""Inputs that are entries of a tuple or a dict: what the user's ``forward`` gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cpupack.errors import RecipeError
from cpupack.model.arguments import argument_names, with_arguments
from cpupack.model.one_row import OneRow
from cpupack.runtime.tensor_spec import TensorSpec


class Nested(nn.Module):
    def forward(self, x: Any, states: Any, batch_1: Any = None) -> Any:
        raise NotImplementedError


class OfABatch(nn.Module):
    def forward(self, batch: Any) -> Any:
        return batch["image"].mean((2, 3)) + batch["more"]["age"][:, None]


def specs(*names: str) -> list[TensorSpec]:
    return [TensorSpec(name, (2,)) for name in names]


def test_entries_of_tuples_and_dicts_are_inputs() -> None:
    inputs = specs("states_0_0", "x", "states_1.h", "states_0_1", "states_1.c", "batch_1")
    tensors = [torch.full((1, 2), float(number)) for number in range(6)]
    ordered, named = with_arguments(argument_names(Nested(), inputs, "it"), tensors)
    assert ordered == []
    assert named == {
        "x": tensors[1],
        "states": ((tensors[0], tensors[3]), {"h": tensors[2], "c": tensors[4]}),
        "batch_1": tensors[5],  # an argument of this name is no entry
    }


def test_the_only_argument_may_be_a_dict() -> None:
    inputs = [TensorSpec("batch.image", (3, 4, 4)), TensorSpec("batch.more.age", ())]
    model = OneRow(OfABatch(), inputs, argument_names(OfABatch(), inputs, "it"))
    x = torch.arange(2 * 49.0).reshape(2, 49)
    torch.testing.assert_close(model(x), x[:, :48].reshape(2, 3, 16).mean(2) + x[:, 48:])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("x", "states_0", "states_2"), "a tuple with the entry states_2, and no input is states_1"),
        (("x", "states_1_0", "states_1_1"), "a tuple with the entry states_1, and no input is states_0"),
        (("x", "states", "states_0"), '"states" of it cannot be an input and have entries'),
        (("x", "states_0", "states.h"), '"states" of it cannot be an input and have entries'),
        (("x", "state_0"), 'takes x, states, batch_1; did you mean "states"?'),
        (("x",), 'needs "states", and no input has that name'),
    ],
)
def test_a_tuple_has_all_its_entries(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        argument_names(Nested(), specs(*names), "it")
    assert words in str(caught.value)
