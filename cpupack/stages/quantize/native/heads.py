"""Appends attention over heads as one layer (``OP_FLOAT_ATTENTION``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.stages.quantize.native.choices import Choices, Way
from cpupack.stages.quantize.native.floats import Floats, Operand
from cpupack.stages.quantize.native.program import Flag, Layer, Op
from cpupack.stages.quantize.native.walks import WIDEST, Fixed, Function, Instruction, View, dense_steps, merged

OUTER = 3
_OPERANDS = ("out", "queries", "keys", "values", "mask")
_INTEGERS = ("rows", "columns", "length", "width", "causal")
ATTENTION = np.dtype(
    [("outer", "<i4", OUTER), *((name, "<i4") for name in _INTEGERS)]
    + [
        (f"{of}_{name}", *kind)
        for of in _OPERANDS
        for name, kind in (("first", ("<i4",)), ("outer", ("<i4", OUTER)), ("step", ("<i4",)))
    ]
    + [("mask_column", "<i4"), ("unseen_is_nan", "<i4")]
)
"""``struct cpupack_attention``."""
SCRATCH_VALUES = 1280 * 1024 // 4
"""``SCRATCH_BYTES`` of kernels/engine/kernels.h: float32 values of a thread's own memory."""
SCORE_ROWS = 12
"""``CPUPACK_SCORE_ROWS`` of kernels/engine/kernels.h."""
_LANES = 32


@dataclass(frozen=True)
class Heads:
    """Queries ``(*outer, rows, length)``, keys ``(*outer, columns, length)``, values ``(*outer, columns, width)``.

    ``masks`` are added to the scores ``(*outer, rows, columns)``, which are multiplied with ``scale`` first. With
    ``causal`` row i sees the columns up to i alone. A row that sees nothing is zeros, or with ``unseen_is_nan`` no
    number. The last ``joined`` dimensions of ``outer`` count heads. With ``words`` the products are of 16-bit codes,
    each row with a scale of its own.
    """

    queries: View
    keys: View
    values: View
    scale: float
    masks: tuple[Operand, ...] = ()
    causal: bool = False
    unseen_is_nan: bool = False
    joined: int = 1
    words: bool = False

    def in_groups(self, groups: int) -> Heads:
        """Have ``groups`` heads of queries in a row share one of keys and values, which has so many heads less."""
        masks = tuple(
            _split_constants(each, groups) if isinstance(each, Fixed) else _split_heads(each, groups)
            for each in self.masks
        )
        queries = _split_heads(self.queries, groups)
        keys, values = (_split_heads(each, 1) for each in (self.keys, self.values))
        return replace(self, queries=queries, keys=keys, values=values, masks=masks, joined=2)


def _split_constants(operand: Fixed, groups: int) -> Fixed:
    values = operand.values
    heads = values.shape[-3] if values.ndim > 2 else 1
    return Fixed(values.reshape(*values.shape[:-3], *_counts(heads, groups), *values.shape[-2:]))


def _split_heads(operand: View, groups: int) -> View:
    """Return ``(*lead, heads, rows, columns)`` as ``(*lead, heads / groups, groups, rows, columns)``."""
    first, second = _counts(operand.shape[-3], groups)
    step = operand.steps[-3]
    return View(
        operand.buffer, (*operand.shape[:-3], first, second, *operand.shape[-2:]),
        (*operand.steps[:-3], step * second, step, *operand.steps[-2:]), operand.first,
    )  # fmt: skip


def _counts(heads: int, groups: int) -> tuple[int, int]:
    return (1, 1) if heads == 1 else (heads // groups, groups)


def one_layer(choices: Choices, shape: Sequence[int], columns: int, width: int) -> bool:
    """Whether attention of queries ``(*outer, rows, length)`` is one layer, which keeps no scores."""
    chosen = _fits(shape, columns, width) and choices.given(Way.HEADS) != 0
    return bool(choices.keep(Way.HEADS, int(chosen)))


def _fits(shape: Sequence[int], columns: int, width: int) -> bool:
    """Whether the keys and values of a head of queries ``(*outer, rows, length)`` have room in a thread's memory."""
    pitch, length = -(-columns // _LANES) * _LANES + _LANES, shape[-1]
    as_floats = pitch * (length + SCORE_ROWS) + columns * (width + _LANES)
    as_words = (
        pitch * (-(-length // 2) + SCORE_ROWS + SCORE_ROWS // 2 + 2)
        + -(-columns // 2) * (width + _LANES)
        + SCORE_ROWS // 2 * (length + _LANES)
    )
    return len(shape) <= OUTER + 2 and max(as_floats, as_words) <= SCRATCH_VALUES


def append_heads(floats: Floats, heads: Heads) -> View:
    """Append attention and return its values ``(*outer, rows, width)``.

    In memory the heads of a row lie side by side, as a linear layer after them reads them.
    """
    *lead, rows, length = heads.queries.shape
    columns, width = heads.keys.shape[-2], heads.values.shape[-1]
    outer = tuple(lead)
    sizes_of = outer or (1,)
    joined = min(heads.joined, len(sizes_of))
    operands = [heads.queries, heads.keys, heads.values]
    queries, keys, values = _in_one_buffer(floats, operands, math.prod(sizes_of[-joined:]))
    front, last = sizes_of[:-joined], sizes_of[-joined:]
    # (*front, rows, *heads, width): a dense tensor in which the heads of a row are the channels of a token.
    memory = dense_steps((*front, rows, *last, width))
    steps = (*memory[: len(front)], *memory[len(front) + 1 : -1], memory[len(front)], 1)
    shape = (*front, *last, rows, width)
    whole = floats.new(shape, steps)
    out = View(whole.buffer, (*outer, rows, width), steps if outer else steps[1:])
    mask = _joined(floats, heads.masks, (*outer, rows, columns))
    constants: dict[str, npt.NDArray[Any]] = {}
    flags, number, added = Flag.WORDS if heads.words else Flag(0), -1, None
    if isinstance(mask, Fixed):
        flags |= Flag.CONSTANT
        tiles = _tiles(mask.values, outer) if floats.grid is None else None
        if tiles is None:
            constants["scales"], added = mask.stored((*outer, rows, columns), floats.grid)
        else:
            flags |= Flag.PLACES
            constants["scales"], constants["table"] = tiles
            added = View(None, tuple(tiles[0].shape[1:]), dense_steps(tiles[0].shape[1:])).expanded(
                (*outer, rows, columns)
            )
    elif mask is not None:
        added = mask.expanded((*outer, rows, columns))
        assert added.buffer is not None
        number = added.buffer
    each = [out, queries.expanded((*outer, rows, length)), keys.expanded((*outer, columns, length)),
            values.expanded((*outer, columns, width)), *([added] if added is not None else [])]  # fmt: skip
    sizes, steps_of = merged(outer, [view.steps[: len(outer)] for view in each])
    record = np.zeros(1, ATTENTION)
    record["outer"] = [*[1] * (OUTER - len(sizes)), *sizes]
    record["rows"], record["columns"], record["length"], record["width"] = rows, columns, length, width
    record["causal"], record["unseen_is_nan"] = heads.causal, heads.unseen_is_nan
    for name, view, own in zip(_OPERANDS, each, steps_of, strict=False):
        record[f"{name}_first"], record[f"{name}_step"] = view.first, view.steps[-2]
        record[f"{name}_outer"] = [*[0] * (OUTER - len(sizes)), *own]
    if added is not None:
        record["mask_column"] = added.steps[-1]
    constants["weights"] = np.frombuffer(record.tobytes(), np.uint8)
    assert queries.buffer is not None
    assert out.buffer is not None
    fields: dict[str, float] = {"scale": heads.scale}
    floats.program.layers.append(
        Layer(Op.FLOAT_ATTENTION, flags, queries.buffer, number, out.buffer, fields, constants)
    )
    return out


def _tiles(masks: torch.Tensor, outer: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]] | None:
    """Return the masks that differ ``(n, rows, columns)``, and the first value of that of each head in them.

    None where all differ. In shifted windows of a map, four of them hide something else (``masks`` for each window).
    """
    values = masks.detach().float().reshape((1,) * (len(outer) + 2 - masks.ndim) + masks.shape)
    heads = np.ascontiguousarray(values.numpy()).reshape(-1, *values.shape[-2:])
    numbers = dict[bytes, int]()
    own = np.array([numbers.setdefault(each.tobytes(), len(numbers)) for each in heads], np.int32)
    if len(numbers) == len(heads):
        return None
    first = np.unique(own, return_index=True)[1]
    # Those that come first one after the other, as the heads of a window, get falling numbers: the next window's do not
    # go on where these end, and what repeats is plain to see (``move_lists.py``).
    groups = np.split(np.arange(len(first)), np.flatnonzero(np.diff(first) > 1) + 1)
    order = np.concatenate([each[::-1] for each in groups])
    own, first = np.argsort(order).astype(np.int32)[own], first[order]
    places = np.broadcast_to(own.reshape(values.shape[:-2]), outer).ravel() * heads[0].size
    return np.ascontiguousarray(heads[first]), places.astype(np.int32)


def _in_one_buffer(floats: Floats, views: list[View], heads: int) -> list[View]:
    """Return views of one buffer whose last dimension lies side by side; they are copied to one where necessary."""
    side_by_side = all(view.steps[-1] == 1 or view.shape[-1] == 1 for view in views)
    if side_by_side and len({view.buffer for view in views}) == 1:
        return views
    whole = floats.new(_room_for(views, heads))
    copies, first = [], 0
    for view in views:
        to = View(whole.buffer, view.shape, dense_steps(view.shape), first)
        copies.append(floats.map(to, view))
        first += view.size
    return copies


def _room_for(views: list[View], heads: int) -> tuple[int, int]:
    """Return the shape of a buffer for all values, with as many in a row at any number of positions (``forms.py``).

    And at any number of windows: those of a position are of its own heads alone, however many windows there are.
    """
    total, positions = sum(view.size for view in views), views[0].shape[-2]
    if any(view.shape[-2] != positions for view in views):
        width = math.gcd(*(view.shape[-1] for view in views))
    else:
        values = heads * sum(view.shape[-1] for view in views)
        width = next(each for each in range(min(values, WIDEST), 0, -1) if values % each == 0)
    return total // width, width


def _joined(floats: Floats, masks: Sequence[Operand], shape: tuple[int, ...]) -> Operand | None:
    """Return the sum of what is added to scores."""
    fixed = [each.values for each in masks if isinstance(each, Fixed)]
    total: Operand | None = None
    if fixed:
        values = fixed[0]
        for each in fixed[1:]:
            values = values + each
        total = Fixed(values.contiguous())
    for view in (each for each in masks if isinstance(each, View)):
        if total is None:
            total = view
            continue
        sizes = tuple(torch.broadcast_shapes(*(_shape(each) for each in (total, view))))
        total = floats.map(floats.new(sizes), total, view, [Instruction(Function.ADD)])
    return total


def _shape(operand: Operand) -> tuple[int, ...]:
    return operand.shape if isinstance(operand, View) else tuple(operand.values.shape)


def score_scale(length: int) -> float:
    """Return what scores are multiplied with unless a model says otherwise."""
    return 1.0 / math.sqrt(length)
