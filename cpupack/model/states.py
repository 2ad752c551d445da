"""Where a model has the batch of its inputs, and which output is the next value of each input that is a state."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import nn

from cpupack.errors import RecipeError
from cpupack.model.arguments import Argument
from cpupack.model.one_row import OneRow, Taken, blank
from cpupack.runtime.signature import OutputSpec
from cpupack.runtime.tensor_spec import TensorSpec

_BATCHES = (1, 2, 3)
"""A state whose first dimension has this size by chance fails with the others."""
_MOST_TRIED = 256
"""Orders of dimensions: those of eight states."""


def batch_axes(
    module: nn.Module, inputs: Sequence[TensorSpec], names: Sequence[Argument], given: Sequence[int]
) -> tuple[int, ...]:
    """Return the dimension of the batch of each input in ``forward``: that of the recipe, ``given``.

    For states without one it is 0 or 1, with which the model runs: torch's recurrent layers have it second, ``(layers,
    n, values)``. It is 0 where the model runs with neither.
    """
    nowhere = tuple(given)
    if all(each.state is None for each in inputs):
        return nowhere
    places = [
        (0, 1) if each.state is not None and len(each.shape) > 1 and not axis else (axis,)
        for each, axis in zip(inputs, given, strict=True)
    ]
    tried = itertools.islice(sorted(itertools.product(*places), key=sum), _MOST_TRIED)
    runs = (axes for axes in tried if runs_blank(OneRow(module, inputs, names, axes=axes), inputs))
    return next(runs, nowhere)


def runs_blank(module: nn.Module, inputs: Sequence[TensorSpec]) -> bool:
    """Return whether a model runs on one to three samples of zeros, or what ``blank`` gives in their place."""
    try:
        with torch.no_grad():
            for batch in _BATCHES:
                module(blank(inputs, batch))
    except Exception:  # noqa: BLE001 - user code; where it runs with no order of dimensions, the trial run says why
        return False
    return True


def check_states(inputs: Sequence[TensorSpec], outputs: Mapping[str, torch.Tensor], dropped: Collection[str]) -> None:
    """Raise RecipeError for a state whose output the model does not have, or is dropped, or has another shape.

    ``outputs`` are those for one sample.
    """
    for each in inputs:
        name = each.state
        if name is None:
            continue
        if name in dropped:
            raise RecipeError(f'[[output]] "{name}" is dropped, and an [[input]] has it as its state')
        if name not in outputs:
            near = get_close_matches(name, outputs, n=1)
            meant = f'; did you mean "{near[0]}"?' if near else ""
            raise RecipeError(
                f'[[input]] state = "{name}": the model returns {", ".join(outputs) or "nothing"}{meant}',
                hint="entries of a tuple are output_0, output_1, those of a tuple in it output_1_0; those of a dict "
                "have their keys",
            )
        shape = tuple(outputs[name].shape)
        if shape not in {(*each.shape[:axis], 1, *each.shape[axis:]) for axis in range(len(each.shape) + 1)}:
            raise RecipeError(
                f'[[input]] "{each.name}": its state "{name}" is {shape} for one sample, and the input {each.shape} '
                "without the batch",
                hint="a state goes in as it comes out: give the input the shape of the output, without the batch",
            )


def with_state_outputs(
    inputs: Sequence[TensorSpec], kept: Sequence[tuple[Taken, OutputSpec]]
) -> tuple[TensorSpec, ...]:
    """Return the inputs whose states have the wheel's name of their output. ``kept`` are the outputs of the wheel."""
    own = {taken.name: output.name for taken, output in kept}
    return tuple(each if each.state is None else dataclasses.replace(each, state=own[each.state]) for each in inputs)
