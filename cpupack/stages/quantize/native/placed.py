"""Appends layers of computed places: the order of rows, values from places and into places, images between pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from cpupack.stages.quantize.native.floats import Floats, Operand
from cpupack.stages.quantize.native.program import NO_FLAGS, Flag, Layer, Op
from cpupack.stages.quantize.native.walks import (
    Fixed,
    Put,
    Sampling,
    Surroundings,
    View,
    merged,
    walk_of,
)

MOST_ORDERED = 1280 * 1024 // 8
"""How many values of a row have room in the scratch memory (``SCRATCH_BYTES`` of kernels/engine/kernels.h)."""
_DOWN, _OF_VALUES = 1, 2
"""Bits of ``enum cpupack_order``."""


def append_order(floats: Floats, operand: Operand, axis: int, count: int, *, down: bool, values: bool) -> View:
    """Append the first ``count`` along a dimension in their order: the values, or else their places."""
    view = floats.view(operand)
    shape = [count if place == axis else size for place, size in enumerate(view.shape)]
    out = floats.new(shape)
    sizes, (own, given) = _but(view.shape, axis, out, view)
    walk = walk_of(
        [(sizes, [own, given]), ([view.shape[axis]], [[out.steps[axis]], [view.steps[axis]]])],
        [out.first, view.first], kind=_DOWN * down + _OF_VALUES * values,
    )  # fmt: skip
    _append(floats, Op.FLOAT_ORDER, out, view, None, {"weights": walk}, {"runs": count})
    return out


def append_pick(floats: Floats, operand: Operand, numbers: Operand, axis: int) -> View:
    """Append the values at ``numbers`` along a dimension; the other dimensions of both go together."""
    view, at = floats.view(operand), floats.view(numbers)
    out = floats.new(at.shape)
    steps = tuple(0 if place == axis else step for place, step in enumerate(view.steps))
    sizes, every = merged(out.shape, [out.steps, steps, at.steps])
    walk = walk_of([(sizes or [1], every if sizes else [[0]] * 3)], [out.first, view.first, at.first])
    fields = {"runs": view.shape[axis], "channel_offset": view.steps[axis]}
    _append(floats, Op.FLOAT_PICK, out, view, at, {"weights": walk}, fields)
    return out


def append_put(floats: Floats, base: Operand, numbers: Operand, values: Operand, axis: int, kind: Put) -> View:
    """Append a copy of ``base`` into which ``values`` are put at ``numbers`` along a dimension.

    Numbers and values have one shape; values may be a constant that is expanded to it.
    """
    at = floats.view(numbers)
    base_shape = base.shape if isinstance(base, View) else tuple(base.values.shape)
    out = floats.new(base_shape)
    floats.map(out, base)
    flags, constants = NO_FLAGS, dict[str, npt.NDArray[Any]]()
    second: View | None = None
    if isinstance(values, Fixed):
        constants["scales"], given = values.stored(at.shape)
        flags = Flag.CONSTANT
    else:
        second = given = values.expanded(at.shape)
    others = [place for place in range(len(at.shape)) if place != axis]
    # Values that lie side by side, with a place in common, are put there together.
    last = others[-1] if others else axis
    together = last != axis and at.steps[last] == 0 and at.shape[last] > 1
    kept = [place for place in others if not (together and place == last)]
    views = [[0 if place == axis else step for place, step in enumerate(out.steps)], at.steps, given.steps]
    groups = [
        merged([at.shape[place] for place in own], [[each[place] for place in own] for each in views])
        for own in (kept, [axis])
    ]
    row = groups[1] if groups[1][0] else ([1], [[0]] * 3)
    inner = ([at.shape[last]], [[each[last]] for each in views]) if together else ([1], [[0]] * 3)
    walk = walk_of([groups[0], row, inner], [out.first, at.first, given.first], kind=kind, row=1)
    fields = {"runs": base_shape[axis], "channel_offset": out.steps[axis]}
    _append(floats, Op.FLOAT_PUT, out, at, second, {"weights": walk, **constants}, fields, flags)
    return out


def append_sample(
    floats: Floats, images: Operand, grids: Operand, how: Sampling, around: Surroundings, *, corners: bool
) -> View:
    """Append images ``(images, channels, height, width)`` read at places ``(images, rows, columns, 2)``."""
    view, at = floats.view(images), floats.view(grids)
    view = floats.channels_last(view.permuted((1, 0, 2, 3)))
    channels, count, *size = view.shape
    _, rows, columns, _ = at.shape
    if count > 1 and rows > 1 and at.steps[0] != rows * at.steps[1]:
        at = floats.map(floats.new(at.shape), at)
    row_step = at.steps[0] if rows == 1 else at.steps[1]
    out = floats.new((count, rows, columns, channels))
    sizes = [*size, channels, count * rows, columns, 2]
    steps = [[0] * 6, [*view.steps[2:], view.steps[0], view.steps[1], 0, 0], [0, 0, 0, row_step, *at.steps[2:]]]
    walk = walk_of([(sizes, steps)], [out.first, view.first, at.first])
    fields: dict[str, float] = {"kernel_h": how, "kernel_w": around, "stride_h": int(corners), "runs": count}
    _append(floats, Op.FLOAT_SAMPLE, out, view, at, {"weights": walk}, fields)
    return out.permuted((0, 3, 1, 2))


def append_sample_of_volume(
    floats: Floats, volume: Operand, grid: Operand, how: Sampling, around: Surroundings, *, corners: bool
) -> View:
    """Append a volume ``(channels, depth, height, width)`` read at places ``(frames, rows, columns, 3)``."""
    view, at = floats.view(volume), floats.view(grid)
    if view.steps[0] != 1 and view.shape[0] != 1:
        view = floats.side_by_side(view.permuted((1, 2, 3, 0))).permuted((3, 0, 1, 2))
    channels, depth, *size = view.shape
    frames, rows, columns, _ = at.shape
    if frames > 1 and rows > 1 and at.steps[0] != rows * at.steps[1]:
        at = floats.map(floats.new(at.shape), at)
    row_step = at.steps[0] if rows == 1 else at.steps[1]
    out = floats.new((frames, rows, columns, channels))
    sizes = [*size, channels, frames * rows, columns, 3]
    steps = [[0] * 6, [*view.steps[2:], view.steps[0], 0, 0, 0], [0, 0, 0, row_step, *at.steps[2:]]]
    walk = walk_of([(sizes, steps)], [out.first, view.first, at.first])
    fields: dict[str, float] = {
        "kernel_h": how, "kernel_w": around, "stride_h": int(corners), "kernel_d": depth,
        "stride_d": view.steps[1],
    }  # fmt: skip
    _append(floats, Op.FLOAT_SAMPLE, out, view, at, {"weights": walk}, fields)
    return out.permuted((3, 0, 1, 2))


def _but(shape: tuple[int, ...], axis: int, *views: View) -> tuple[list[int], list[list[int]]]:
    """Return sizes and steps of all dimensions but one."""
    kept = [place for place in range(len(shape)) if place != axis]
    return merged([shape[place] for place in kept], [[each.steps[place] for place in kept] for each in views])


def _append(
    floats: Floats, op: Op, out: View, one: View, two: View | None, constants: dict[str, npt.NDArray[Any]],
    fields: Mapping[str, float], flags: Flag = NO_FLAGS,
) -> None:  # fmt: skip
    assert one.buffer is not None
    assert out.buffer is not None
    second = -1 if two is None else two.buffer
    assert second is not None
    floats.program.layers.append(Layer(op, flags, one.buffer, second, out.buffer, dict(fields), constants))
