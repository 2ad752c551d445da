"""Packs recurrent layers for the engine (``Op.RECURRENT``): INT8 weights, their scales, biases and sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales

COLUMN = 16
"""``CPUPACK_COLUMN``: units that stand side by side in packed weights."""
LARGEST_WORD = 32767
"""``CPUPACK_LARGEST_WORD``: the largest code of a value that a layer with 16 bits multiplies."""
_LARGEST_SUM = 2**31 - 1
_MOST_WORDS = 2048
_SCRATCH_BYTES = 1280 * 1024
RECURRENT = np.dtype(
    [
        (name, "<i4")
        for name in (
            "kind", "directions", "steps", "inputs", "units", "outputs", "in_first", "in_step", "out_first",
            "out_step", "cells_first", "in2_first",
        )
    ]
    + [("words", "<i4"), ("lengths", "<i4"), ("last_first", "<i4"), ("unused", "<i4", 1)]
)  # fmt: skip


class Kind(IntEnum):
    """``enum cpupack_recurrent_kind``."""

    LSTM = 0
    GRU = 1
    TANH = 2
    RELU = 3


class Words(IntFlag):
    """``enum cpupack_recurrent_words``: what has 16 bits, values and the weights that multiply them.

    ``HIDDEN`` are hidden values and what a projection takes.
    """

    NONE = 0
    INPUTS = 1
    HIDDEN = 2
    ALL = 3


GATES = {Kind.LSTM: 4, Kind.GRU: 3, Kind.TANH: 1, Kind.RELU: 1}


@dataclass(frozen=True)
class Direction:
    """The FP32 weights of a recurrent layer in one direction, as ``torch.nn`` has them.

    ``inputs`` is ``(gates * units, inputs)``, ``hidden`` ``(gates * units, outputs)``, ``projection`` ``(outputs,
    units)`` or None; biases are ``(gates * units,)``.
    """

    inputs: torch.Tensor
    hidden: torch.Tensor
    input_bias: torch.Tensor
    hidden_bias: torch.Tensor
    projection: torch.Tensor | None = None

    @property
    def outputs(self) -> int:
        """Hidden values of one step."""
        return self.hidden.shape[1]


def fits(kind: Kind, direction: Direction, words: Words = Words.NONE) -> bool:
    """Whether one sequence and one step of it fit into a worker's memory (kernels.h: ``SCRATCH_BYTES``)."""
    gates = GATES[kind]
    units, inputs = len(direction.inputs) // gates, direction.inputs.shape[1]
    together = COLUMN if gates > 1 else 4 * COLUMN
    whole = math.ceil(units / together) * together
    projected = direction.projection is not None
    hidden = direction.outputs + (units if projected else 0)
    codes = inputs * (2 if Words.INPUTS in words else 1) + hidden * (2 if Words.HIDDEN in words else 1)
    values = 4 * whole * ((kind is Kind.LSTM) + projected + max(gates, 1))
    return values + codes + 512 <= _SCRATCH_BYTES


def can_have_words(direction: Direction, words: Words) -> bool:
    """Whether sums of a row with codes of 16 bits leave its weights more than 8: not where a row is very long."""
    matrices = [direction.inputs] if Words.INPUTS in words else []
    matrices += [direction.hidden, direction.projection] if Words.HIDDEN in words else []  # type: ignore[list-item]
    return all(each is None or each.shape[1] <= _MOST_WORDS for each in matrices)


@dataclass(frozen=True)
class Matrix:
    """A matrix as the engine has it: ``weights`` ``(blocks, fours, columns, 16, 4)`` int8 or ``(blocks, pairs, columns,
    16, 2)`` int16, and of each column the factor of its sums and the sum of its weights."""

    weights: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    factors: npt.NDArray[np.float32]
    sums: npt.NDArray[np.int32]


def rounded(weight: torch.Tensor, *, words: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of ``(rows, inputs)``, int64, and the scales of rows ``(rows, 1)``, float32.

    With ``words`` a code has up to 16 bits: as large as the sum of its row allows, which meets codes up to
    ``LARGEST_WORD``.
    """
    if not words:
        scales = weight_scales(weight, 0)
        return torch.clamp(torch.round(weight / scales), -LARGEST_CODE, LARGEST_CODE).long(), scales
    exact = weight.double().abs()
    room = _LARGEST_SUM // LARGEST_WORD - weight.shape[1]  # rounding may add one to each code
    scales = torch.maximum(exact.amax(1, keepdim=True) / 32767, exact.sum(1, keepdim=True) / room)
    scales = torch.where(scales > 0, scales, 1.0).float()
    return torch.clamp(torch.round(weight.double() / scales.double()), -32767, 32767).long(), scales


def packed(weight: torch.Tensor, gates: int, *, words: bool = False) -> Matrix:
    """Return ``(gates * units, inputs)`` packed: blocks of 16 units with their gates, or of 64 units of one gate."""
    codes, scales = rounded(weight, words=words)
    together, dtype = (2, np.int16) if words else (4, np.int8)
    inputs, units = weight.shape[1], len(weight) // gates
    wide = gates if gates > 1 else 4
    blocks, fours = math.ceil(units / (COLUMN if gates > 1 else 4 * COLUMN)), math.ceil(inputs / together)
    whole = np.zeros((gates, blocks * (COLUMN if gates > 1 else 4 * COLUMN), together * fours), dtype)
    whole[:, :units, :inputs] = codes.reshape(gates, units, inputs).numpy()
    by_block = _by_block(whole, wide)
    factors = _by_block(_spread(scales.reshape(gates, units), whole.shape[1]), wide)
    split = by_block.reshape(blocks, wide, COLUMN, fours, together).transpose(0, 3, 1, 2, 4)
    return Matrix(np.ascontiguousarray(split), factors.reshape(-1), by_block.sum(-1, dtype=np.int32).reshape(-1))


def by_column(values: torch.Tensor, gates: int) -> npt.NDArray[np.float32]:
    """Return a value for each gate and unit in the order of packed columns, zeros where a column has no unit."""
    units = len(values) // gates
    together = COLUMN if gates > 1 else 4 * COLUMN
    whole = _spread(values.reshape(gates, units), math.ceil(units / together) * together)
    return _by_block(whole, gates if gates > 1 else 4).reshape(-1)


def constants_of(
    kind: Kind, directions: list[Direction], fields: dict[str, int], words: Words = Words.NONE
) -> tuple[dict[str, npt.NDArray[Any]], float]:
    """Return what a layer has at its offsets, and the SQNR of its weights in dB. ``fields`` are the walk's numbers."""
    gates, first = GATES[kind], directions[0]
    net = np.zeros(1, RECURRENT)
    units = len(first.inputs) // gates
    for name, value in {
        "kind": kind, "directions": len(directions), "inputs": first.inputs.shape[1], "units": units,
        "outputs": first.outputs, "words": words, **fields,
    }.items():  # fmt: skip
        net[name] = value
    weights: list[npt.NDArray[Any]] = [np.frombuffer(net.tobytes(), np.int8)]
    factors: list[npt.NDArray[Any]] = []
    sums: list[npt.NDArray[Any]] = []
    signal = noise = 0.0
    for each in directions:
        hidden_words = Words.HIDDEN in words
        matrices = [(each.inputs, gates, Words.INPUTS in words), (each.hidden, gates, hidden_words)]
        matrices += [(each.projection, 1, hidden_words)] if each.projection is not None else []
        for weight, count, wide in matrices:
            matrix = packed(weight.float(), count, words=wide)
            weights.append(matrix.weights.reshape(-1).view(np.int8))
            factors.append(matrix.factors)
            sums.append(matrix.sums)
            own, lost = _energies(weight.float(), words=wide)
            signal, noise = signal + own, noise + lost
        hidden = each.hidden_bias.double().clone()
        last = hidden[2 * units :].clone() if kind is Kind.GRU else None
        if last is not None:
            hidden[2 * units :] = 0.0  # it is multiplied by the reset gate, so it is added apart
        factors.append(by_column((each.input_bias.double() + hidden).float(), gates))
        if last is not None:
            factors.append(_spread(last.float()[None], math.ceil(units / COLUMN) * COLUMN).reshape(-1))
    sqnr_db = 10 * math.log10(signal / noise) if noise > 0 < signal else math.inf
    return {
        "weights": np.concatenate(weights), "scales": np.concatenate(factors), "biases": np.concatenate(sums),
    }, sqnr_db  # fmt: skip


def _energies(weight: torch.Tensor, *, words: bool) -> tuple[float, float]:
    codes, scales = rounded(weight, words=words)
    return float((weight.double() ** 2).sum()), float(((weight.double() - codes * scales.double()) ** 2).sum())


def _spread(values: torch.Tensor, units: int) -> npt.NDArray[np.float32]:
    whole = np.zeros((len(values), units), np.float32)
    whole[:, : values.shape[1]] = values.detach().numpy()
    return whole


def _by_block(whole: npt.NDArray[Any], wide: int) -> npt.NDArray[Any]:
    """Return ``(gates, units, ...)`` as ``(blocks, wide, 16, ...)``."""
    gates, units = whole.shape[:2]
    rest = whole.shape[2:]
    if gates > 1:
        return whole.reshape(gates, units // COLUMN, COLUMN, *rest).swapaxes(0, 1)
    return whole.reshape(units // (wide * COLUMN), wide, COLUMN, *rest)
