"""Inputs that are entries of a container, or passed by position: what the user's ``forward`` gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


@dataclass
class Batch:
    pair: Pair
    rows: list[torch.Tensor]
    name: str = "batch"


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


def called(forward: Callable[..., Any], *names: str) -> Any:
    """Return what a ``forward`` gives for tensors that hold the numbers of their inputs."""

    class Net(nn.Module):
        pass

    Net.forward = forward  # type: ignore[method-assign]
    arguments = argument_names(Net(), specs(*names), "it")
    ordered, named = with_arguments(arguments, [torch.tensor(float(number)) for number in range(len(names))])
    return Net()(*ordered, **named)


def test_annotations_say_what_an_argument_is() -> None:
    def forward(self: Any, batch: Batch | None = None, *, more: dict[str, tuple[torch.Tensor, ...]]) -> Any:
        assert batch is not None
        return batch, more

    names = ("batch.rows.0", "batch.pair.right", "more.a.1", "batch.pair.left", "more.a.0", "batch.rows.1")
    batch, more = called(forward, *names)
    assert batch == Batch(Pair(torch.tensor(3.0), torch.tensor(1.0)), [torch.tensor(0.0), torch.tensor(5.0)])
    assert more == {"a": (torch.tensor(4.0), torch.tensor(2.0))}


def test_annotations_that_nobody_can_resolve_are_left_alone() -> None:
    def forward(self: Any, batch: "Unknown") -> Any:  # type: ignore[name-defined]  # noqa: F821, UP037
        return batch

    assert called(forward, "batch.a") == {"a": torch.tensor(0.0)}


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        (lambda self, x, y, /: x - y, ("y", "x")),
        (lambda self, x, /, y: x - y, ("y", "x")),
        (lambda self, *xs: xs[0] - xs[1], ("xs_1", "xs_0")),
        (lambda self, *xs: xs[1] - xs[0], ("any", "other")),
        (lambda self, x, *ys: x - ys[1] - ys[0] + ys[0], ("ys_1", "x", "ys_0")),
        (lambda self, x, *, y: x - y, ("y", "x")),
        (lambda self, x, **more: x - more["y"], ("y", "x")),
    ],
)
def test_the_order_of_the_tables_is_not_that_of_the_arguments(forward: Any, names: tuple[str, ...]) -> None:
    assert called(forward, *names) == 1.0


def test_what_cannot_be_passed_by_position_is_told() -> None:
    def forward(self: Any, x: Any, scale: Any = None, *more: Any) -> Any:
        raise NotImplementedError

    with pytest.raises(RecipeError, match='takes "scale" before other inputs by position'):
        called(forward, "x", "more_0")
    with pytest.raises(RecipeError, match=r"takes x, scale, \*more; those of \*more are more_0") as caught:
        called(forward, "x", "other")
    assert "NAME.KEY.0" in (caught.value.hint or "")
    with pytest.raises(RecipeError, match="a tuple with the entry more_1, and no input is more_0"):
        called(forward, "x", "scale", "more_1")
