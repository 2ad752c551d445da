"""Appends linear layers whose activations get a scale for each row while the program runs.

A row (a token) becomes codes with a scale and a zero point of its own, so no range has to be known before. The layer's
result is float32, and functions of it, or of it and another tensor, are computed while it is in the first cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.stages.quantize.native.floats import Floats, Operand
from cpupack.stages.quantize.native.pack import BLOCK, chunks_of, pad_channels
from cpupack.stages.quantize.native.program import NO_FLAGS, Buffer, Flag, Layer, Op
from cpupack.stages.quantize.native.values import LONGEST_SIDE
from cpupack.stages.quantize.native.walks import (
    Fixed,
    Instruction,
    Norm,
    View,
    dense_steps,
    instruction_rows,
    merged,
    walk_of,
)
from cpupack.stages.quantize.native.weights import dense_parts

LONGEST_ROW = 65536
"""``CPUPACK_LONGEST_ROW`` of kernels/engine/program.h: codes of a row, whose sums fit into 32 bits."""
_SCALE_BYTES = 8
_LINE = 64
LINEAR = np.dtype([("instructions", "<i4"), ("second_first", "<i4"), ("second_step", "<i4")])
"""``struct cpupack_linear``."""


@dataclass(frozen=True)
class RowNorm:
    """A norm of each row that comes before its codes."""

    kind: Norm
    epsilon: float
    weight: Fixed | None
    bias: Fixed | None


@dataclass(frozen=True)
class Listed:
    """Rows ``(*lead, length)`` of float32 values of a buffer, by a list of their first values; -1 for a row of zeros.

    A roll, a window's partition of rolled rows and their padding have no steps, but each row is whole.
    """

    buffer: int
    places: torch.Tensor
    length: int
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of a sample."""
        return (*self.places.shape, self.length)


@dataclass(frozen=True)
class RowCodes:
    """Codes of the rows of a tensor ``(*lead, length)`` in buffer ``number``, each row with a scale of its own."""

    number: int
    lead: tuple[int, ...]
    length: int


def fits_rows(shape: Sequence[int]) -> bool:
    """Whether a tensor ``(*lead, length)`` can become rows of codes."""
    return len(shape) >= 1 and shape[-1] <= LONGEST_ROW and math.prod(shape[:-1]) <= LONGEST_SIDE


def append_codes(
    floats: Floats, operand: Operand | Listed, norm: RowNorm | None = None, factors: torch.Tensor | None = None
) -> RowCodes:
    """Append a layer that turns each row of float32 values ``(*lead, length)`` into codes.

    The values are first multiplied with ``factors``, float32 ``(length,)``.
    """
    if factors is not None:
        norm = _times(norm, factors)
    places = operand.places if isinstance(operand, Listed) else None
    view = (
        View(operand.buffer, operand.shape, (*[0] * operand.places.ndim, operand.step))
        if isinstance(operand, Listed)
        else floats.view(operand)
    )
    lead, length = view.shape[:-1], view.shape[-1]
    rows = math.prod(lead)
    channels = -(-(math.prod(chunks_of(length)) + _SCALE_BYTES) // _LINE) * _LINE
    number = floats.program.add_buffer(Buffer(1, rows, channels, 1.0, 0))
    flags, constants, views, kind = NO_FLAGS, dict[str, npt.NDArray[Any]](), [view], -1
    fields: dict[str, float] = {}
    if norm is not None:
        kind, fields["scale"] = int(norm.kind), norm.epsilon
        if norm.weight is not None or norm.bias is not None:
            flags = Flag.CONSTANT
            one = np.ones(length, np.float32) if norm.weight is None else _row(norm.weight)
            zero = np.zeros(length, np.float32) if norm.bias is None else _row(norm.bias)
            constants |= {"scales": one, "biases": zero}
    if places is not None:
        flags |= Flag.PLACES
        constants["table"] = places.flatten().to(torch.int32).numpy()
    sizes, (steps,) = merged(lead, [each.steps[:-1] for each in views])
    outer = sizes, [[0] * len(sizes), steps, [0] * len(sizes)]
    row = [length], [[1], [view.steps[-1]], [1]]
    walk = walk_of([outer, row], [0, view.first, 0], kind=kind)
    constants["weights"] = walk
    assert view.buffer is not None
    floats.program.layers.append(
        Layer(Op.FLOAT_CODES, flags, view.buffer, output=number, fields=fields, constants=constants)
    )
    return RowCodes(number, lead, length)


def _times(norm: RowNorm | None, factors: torch.Tensor) -> RowNorm:
    """Return a norm whose results are multiplied with factors."""
    if norm is None:
        return RowNorm(Norm.FACTORS, 0.0, Fixed(factors), None)
    weight = factors if norm.weight is None else norm.weight.values.detach().reshape(-1) * factors
    bias = None if norm.bias is None else Fixed(norm.bias.values.detach().reshape(-1) * factors)
    return RowNorm(norm.kind, norm.epsilon, Fixed(weight), bias)


def append_linear(
    floats: Floats,
    codes: RowCodes,
    weights: npt.NDArray[np.int8],
    scales: npt.NDArray[np.float64],
    bias: npt.NDArray[np.float64],
    *,
    instructions: Sequence[Instruction] = (),
    second: View | None = None,
    places: torch.Tensor | None = None,
) -> View:
    """Append a linear layer with int8 ``weights (out, in)`` and float64 ``scales (out,)``; return its values.

    ``instructions`` are functions of the results (register 0) and of ``second`` (register 1), which has their shape and
    the values of each row side by side (``row_step`` says whether it has). ``places`` is the row of results of each row
    of ``codes``, int64 ``(rows,)``, where their order is another one.
    """
    outputs = len(weights)
    _, fields, parts = dense_parts(weights[:, :, None, None], scales, bias, groups=1, dilated=False)
    sums = np.zeros(-(-outputs // BLOCK) * BLOCK, np.int32)
    sums[:outputs] = weights.sum(axis=1, dtype=np.int32)
    biases = np.concatenate([pad_channels(bias, BLOCK).view(np.uint8), sums.view(np.uint8)])
    flags, step, first = Flag.FLOAT_OUT | Flag.ROWS, 0, 0
    if second is not None:
        flags |= Flag.RESIDUAL
        found = row_step(second)
        assert found is not None
        step, first = found, second.first
    header = np.array([(len(instructions), first, step)], LINEAR)
    order = b""
    if places is not None:
        flags |= Flag.PLACES
        order = places.to(torch.int32).numpy().tobytes()
    rows = math.prod(codes.lead)
    number = floats.program.add_buffer(Buffer(1, rows, 4 * outputs, 1.0, 0, floats=True))
    constants = {**parts, "biases": biases, "table": np.frombuffer(
        header.tobytes() + instruction_rows(instructions).tobytes() + order, np.uint8
    )}  # fmt: skip
    fields |= {"channels_out": outputs}
    other = -1 if second is None or second.buffer is None else second.buffer
    floats.program.layers.append(Layer(Op.CONV, flags, codes.number, other, number, fields, constants))
    shape = (*codes.lead, outputs)
    return View(number, shape, dense_steps(shape))


def row_step(view: View) -> int | None:
    """Return the distance from row to row of ``(*lead, length)``; None where rows have none or are not side by side."""
    if view.buffer is None or (view.steps[-1] != 1 and view.shape[-1] != 1):
        return None
    sizes, (steps,) = merged(view.shape[:-1], [view.steps[:-1]])
    if not sizes:
        return 0
    return steps[0] if len(sizes) == 1 and steps[0] >= 0 else None


def _row(fixed: Fixed) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = np.ascontiguousarray(fixed.values.detach().float().numpy()).reshape(-1)
    return found
