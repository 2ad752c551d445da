"""Which sizes several inputs with named dimensions may have, found by running the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.one_row import OneRow, blank
from cpupack.model.open_sizes import LEAST_SIDE, check_multiples, output_shapes, step_of
from cpupack.recipe.tables.signature import NamedSizes
from cpupack.runtime.open_inputs import inputs_with_names
from cpupack.runtime.open_sizes import OpenSizes, Size, Terms
from cpupack.runtime.signature import Signature
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.size_terms import Fit, probes


def sizes_of_inputs(module: nn.Module, signature: Signature, table: NamedSizes) -> OpenSizes:
    """Return the sizes of names of several inputs: each has a multiple of its own, whatever inputs have it."""
    assert isinstance(module, OneRow)  # what takes rows is wrapped
    blank_first = 2 - len(table.names) if len(table.names) < 2 else 0
    least, steps = list(table.min), [1] * blank_first
    typical = dict(zip(table.names, table.typical[blank_first:], strict=True))
    for side, name in enumerate(table.names, blank_first):
        sizes = {"min": table.min[side] or min(typical[name], LEAST_SIDE), "typical": typical[name]}
        sizes["max"] = table.max[side]
        if sizes["min"] == sizes["max"]:
            steps.append(sizes["max"])
            continue
        step = step_of(partial(_with_name, module, signature.inputs, typical, name), name, sizes)
        if not table.min[side]:
            least[side] = sizes["min"] = min(typical[name], -(-LEAST_SIDE // step) * step)
        check_multiples(name, sizes, step)
        steps.append(step)
    found = OpenSizes(
        tuple(least), tuple(table.max), tuple(steps), names=table.names, axes=(),
        inputs=inputs_with_names(signature.inputs),
    )  # fmt: skip
    if not signature.gives_rows:
        return found

    def shapes_at(size: Size) -> list[tuple[int, ...]]:
        inputs = inputs_at(signature.inputs, dict(zip(table.names, size[blank_first:], strict=True)))
        return output_shapes(module.with_inputs(inputs), blank(inputs, 1))

    return dataclasses.replace(found, outputs=_terms_of_outputs(found, tuple(table.typical), shapes_at))


def _with_name(
    module: OneRow, inputs: Sequence[TensorSpec], typical: dict[str, int], name: str, size: int
) -> tuple[nn.Module, torch.Tensor]:
    own = inputs_at(inputs, typical | {name: size})
    return module.with_inputs(own), blank(own, 1)


def inputs_at(inputs: Sequence[TensorSpec], sides: dict[str, int]) -> tuple[TensorSpec, ...]:
    """Return inputs with these sizes of their names."""
    return tuple(
        dataclasses.replace(
            each, shape=tuple(sides.get(name, size) for name, size in zip(each.names, each.shape, strict=True))
        )
        if each.names
        else each
        for each in inputs
    )


def _terms_of_outputs(
    sizes: OpenSizes, typical: Size, shapes_at: Callable[[Size], list[tuple[int, ...]]]
) -> tuple[tuple[Terms, ...], ...]:
    """Return how the shape of each output changes with the size. Raises ModelError where it has no terms."""
    asked = probes(typical, sizes)
    shapes = [shapes_at(size) for size in asked]
    counts = [[side // step for side, step in zip(size, sizes.multiple, strict=True)] for size in asked]
    fit = Fit(np.array(counts, np.int64), sizes.products)
    if any(len({len(shape) for shape in each}) > 1 for each in zip(*shapes, strict=True)):
        raise ModelError("[sizes]: the outputs of the model have other dimensions at other sizes")
    return tuple(
        tuple(fit.terms(np.array(side), "the shape of an output") for side in zip(*each, strict=True))
        for each in zip(*shapes, strict=True)
    )
