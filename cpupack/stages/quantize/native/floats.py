"""Appends layers in FP32 to a program: copies, functions, reductions, norms, products of matrices, windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from cpupack.errors import QuantizationError
from cpupack.stages.quantize.native.choices import Choices, Way
from cpupack.stages.quantize.native.program import NO_FLAGS, Flag, Layer, Op, Program
from cpupack.stages.quantize.native.recurrence import GATES, Direction, Kind, Words, constants_of
from cpupack.stages.quantize.native.walks import (
    Fixed,
    Function,
    Grid,
    Instruction,
    Norm,
    Reduction,
    View,
    Windows,
    dense_steps,
    float_buffer,
    merged,
    nested_steps,
    steps_like,
    walk_of,
)

Operand = View | Fixed
_LANES = 8
"""From this many values side by side on, rows are reduced side by side."""
_SHORT_ROW, _LONGER = 16, 8
"""Rows of functions that are shorter are taken along another dimension, if that is so many times as long."""


class Floats:
    """The float32 values of a program: ``values`` has a view, or constants, for each call in FP32.

    With a ``grid`` the constants of pairs of positions are stored so that all lengths can share them.
    """

    def __init__(self, program: Program, grid: Grid | None = None, choices: Choices | None = None) -> None:
        self.program, self.grid = program, grid
        self.choices = choices or Choices(program)
        self.values: dict[fx.Node, Operand] = {}

    # ---- values ----

    def new(self, shape: Sequence[int], steps: tuple[int, ...] | None = None) -> View:
        """Add a buffer for a sample's values and return the view of all of them."""
        buffer = float_buffer(shape)
        if buffer is None:
            raise QuantizationError(f"the native engine has no float32 buffer for {tuple(shape)}: it is too large")
        return View(self.program.add_buffer(buffer), tuple(shape), steps or dense_steps(shape))

    def like(self, view: View) -> View:
        """Add a buffer for as many values, laid out in memory as those of another view."""
        return self.new(view.shape, steps_like(view.shape, view.steps))

    def beside(self, shape: tuple[int, ...], *operands: Operand) -> View:
        """Add a buffer for what is computed of operands, laid out as the largest one of them."""
        views = [each for each in operands if isinstance(each, View) and len(each.shape) == len(shape)]
        largest = max(views, key=lambda each: each.size, default=None)
        return self.new(shape, None if largest is None else steps_like(shape, largest.expanded(shape).steps))

    def view(self, operand: Operand) -> View:
        """Return an operand as a view of a buffer: constants are copied to one."""
        return operand if isinstance(operand, View) else self.map(self.new(tuple(operand.values.shape)), operand)

    def side_by_side(self, operand: Operand) -> View:
        """Return an operand whose values lie side by side in the order of its dimensions; it is copied if necessary."""
        view = self.view(operand)
        sizes, (steps,) = merged(view.shape, [view.steps])
        return view if steps in ([], [1]) and len(sizes) <= 1 else self.map(self.new(view.shape), view)

    def channels_last(self, operand: Operand) -> View:
        """Return an operand ``(channels, ...)`` with a place's channels side by side; it is copied if necessary."""
        view = self.view(operand)
        if view.steps[0] == 1 or view.shape[0] == 1:
            return view
        order = (*range(1, len(view.shape)), 0)
        copy = self.map(self.new([view.shape[axis] for axis in order]), view.permuted(order))
        return copy.permuted((len(order) - 1, *range(len(order) - 1)))

    # ---- layers ----

    def map(
        self, out: View, one: Operand, two: Operand | None = None, instructions: Sequence[Instruction] = ()
    ) -> View:
        """Append a function of one or two operands, which are expanded to the shape of ``out``, and return ``out``."""
        flags, constants, second = NO_FLAGS, dict[str, npt.NDArray[Any]](), two
        first = one
        if isinstance(one, Fixed):
            if isinstance(two, View):
                instructions, first, second = [*_SWAP, *instructions], two, one
            elif two is None:
                instructions, second = [Instruction(Function.COPY, 0, 1), *instructions], one
                first = View(out.buffer if out.buffer is not None else 0, out.shape, (0,) * len(out.shape))
            else:
                first = self.view(one)
        assert isinstance(first, View)
        views = [out, first.expanded(out.shape)]
        number = -1
        if isinstance(second, Fixed):
            flags |= Flag.CONSTANT
            array, view = second.stored(out.shape, self.grid)
            constants["scales"] = self.choices.whole(array)
            views.append(view)
        elif second is not None:
            views.append(second.expanded(out.shape))
            assert second.buffer is not None
            number = second.buffer
        order = sorted(range(len(out.shape)), key=lambda axis: (-out.steps[axis], axis))
        sizes, steps = merged([out.shape[axis] for axis in order], [view.permuted(order).steps for view in views])
        sizes, steps = self._with_rows(sizes, steps)
        walk = walk_of([(sizes, steps)], [view.first for view in views], instructions=instructions)
        self._append(Op.FLOAT_MAP, out, first, number, {"weights": walk, **constants}, flags=flags)
        return out

    def reduce(
        self, operand: Operand, axes: Sequence[int], kind: Reduction, *, scale: float = 1.0, less: View | None = None
    ) -> View:
        """Append a reduction over dimensions; they are left out of the result.

        ``less`` has the operand's dimensions, those that are left out of size one. It is subtracted from the values.
        """
        view = self.view(operand)
        if any(step == 0 and size > 1 for size, step in zip(view.shape, view.steps, strict=True)):
            view = self.map(self.new(view.shape), view)  # repeated values: the engine reads each once
        places = kind in {Reduction.PLACE_OF_MAXIMUM, Reduction.PLACE_OF_MINIMUM}
        kept = [axis for axis in range(len(view.shape)) if axis not in axes]
        out = self.new([view.shape[axis] for axis in kept], steps_like(*_picked(view, kept)))
        kept.sort(key=lambda axis: (-abs(view.steps[axis]), axis))
        row = list(axes) if places else sorted(axes, key=lambda axis: (-abs(view.steps[axis]), axis))
        out_steps = dict(zip([a for a in range(len(view.shape)) if a not in axes], out.steps, strict=True))
        inner = kept[-1] if kept else -1
        beside = inner >= 0 and view.steps[inner] == 1 == out_steps[inner]
        across = not places and beside and view.shape[inner] >= _LANES
        if less is not None and (not across or less.steps[inner] != 1):
            found = self.map(self.like(view), view, less, [Instruction(Function.SUBTRACT)])
            return self.reduce(found, axes, kind, scale=scale)
        firsts = [out.first, view.first] + ([] if less is None else [less.first])
        if across:
            groups = [
                merged(*_of(view, out_steps, kept[:-1], less)), merged(*_of(view, out_steps, row, less)),
                ([view.shape[inner]], [[1], [1], [1]]),
            ]  # fmt: skip
            walk = walk_of(groups, firsts, kind=kind + Reduction.ACROSS, row=1)
        else:
            groups = [merged(*_of(view, out_steps, kept)), merged(*_of(view, out_steps, row))]
            walk = walk_of(groups, firsts, kind=kind)
        number = -1 if less is None else _number(less)
        self._append(Op.FLOAT_REDUCE, out, view, number, {"weights": walk}, {"scale": scale})
        return out

    def normalize(
        self, operand: Operand, axes: Sequence[int], kind: Norm, *, epsilon: float = 0.0,
        weight: Fixed | None = None, bias: Fixed | None = None,
    ) -> View:  # fmt: skip
        """Append a norm over dimensions; ``weight`` and ``bias`` are of the operand's shape, if need be expanded."""
        view = self.view(operand)
        out = self.like(view)
        kept = [axis for axis in range(len(view.shape)) if axis not in axes]
        flags, constants, views = NO_FLAGS, dict[str, npt.NDArray[Any]](), [out, view]
        if weight is not None or bias is not None:
            shape = torch.broadcast_shapes(*(each.values.shape for each in (weight, bias) if each is not None))
            one = torch.ones(shape) if weight is None else weight.values.expand(shape)
            zero = torch.zeros(shape) if bias is None else bias.values.expand(shape)
            flags = Flag.CONSTANT
            constants["scales"], terms = Fixed(one.contiguous()).stored(view.shape)
            constants["biases"], _ = Fixed(zero.contiguous()).stored(view.shape)
            views.append(terms)
        groups = []
        for own in (kept, list(axes)):
            order = sorted(own, key=lambda axis: (-abs(view.steps[axis]), axis))
            groups.append(merged(*_sorted(views, order)))
        walk = walk_of(groups, [each.first for each in views], kind=kind)
        layer = {"weights": walk, **constants}
        self._append(Op.FLOAT_NORMALIZE, out, view, -1, layer, {"scale": epsilon}, flags=flags)
        return out

    def multiply(
        self, one: Operand, two: Operand, *, scale: float = 1.0, bias: npt.NDArray[np.float32] | None = None,
        out: View | None = None,
    ) -> View:  # fmt: skip
        """Append the product of matrices ``(..., rows, length)`` and ``(..., length, columns)`` times a number.

        It goes to ``out``, whose columns lie side by side, or to a new buffer.
        """
        a, flags, constants, number = self.view(one), NO_FLAGS, dict[str, npt.NDArray[Any]](), -1
        shape_b = tuple(two.values.shape) if isinstance(two, Fixed) else two.shape
        lead = tuple(torch.broadcast_shapes(a.shape[:-2], shape_b[:-2]))
        rows, length, columns = *a.shape[-2:], shape_b[-1]
        if isinstance(two, Fixed):
            flags |= Flag.CONSTANT
            constants["scales"], b = two.stored((*lead, length, columns), self.grid)
        else:
            b = two.expanded((*lead, length, columns))
            assert b.buffer is not None
            number = b.buffer
        out, a = out or self.new((*lead, rows, columns)), a.expanded((*lead, rows, length))
        steps = [
            [*out.steps, 0], [*a.steps[:-1], 0, a.steps[-1]], [*b.steps[:-2], 0, b.steps[-1], b.steps[-2]],
        ]  # fmt: skip
        outer = merged(lead, [each[:-3] for each in steps])
        inner = [rows, columns, length], [each[-3:] for each in steps]
        walk = walk_of([outer, inner], [out.first, a.first, b.first], kind=0 if bias is None else 1)
        if bias is not None:
            constants["biases"] = bias
        self._append(Op.FLOAT_MATMUL, out, a, number, {"weights": walk, **constants}, {"scale": scale}, flags=flags)
        return out

    def windows(
        self, operand: Operand, size: tuple[int, int, int], kind: Windows, fields: dict[str, float],
        constants: dict[str, npt.NDArray[np.float32]],
    ) -> View:  # fmt: skip
        """Append a convolution or pool of ``(channels, height, width)``; ``size`` is that of the result."""
        view = self.channels_last(operand)
        channels, height, width = size
        image = self.new((height, width, channels))
        sizes = [*view.shape[1:], view.shape[0], height, width, channels]
        steps = [*view.steps[1:], view.steps[0], 0, 0, 0]
        walk = walk_of([(sizes, [[0] * 6, steps])], [0, view.first], kind=kind)
        self._append(Op.FLOAT_WINDOWS, image, view, -1, {"weights": walk, **constants}, fields)
        return image.permuted((2, 0, 1))

    def gather(self, operand: Operand, places: torch.Tensor, *, fill: float = 0.0) -> View:
        """Append a copy of the values at ``places``, of the sample's shape; -1 is the value ``fill``.

        Places count the values of the operand in the order of its dimensions. They are read where they are, whatever
        the operand's steps: values that are repeated or turned need no copy first.
        """
        view = self.view(operand) if self.grid is None else self.side_by_side(operand)
        out = self.new(tuple(places.shape))
        flat = places.flatten()
        whole = torch.where(flat < 0, -1, view.memory_places().flatten()[flat.clamp(min=0)]).numpy()
        regular = nested_steps(whole) if self.grid is None and whole.min(initial=0) >= 0 else None
        if regular is not None:  # rows that are repeated, for instance: copying rows takes a fifth of the time
            sizes, steps = regular
            self.map(
                View(out.buffer, sizes, dense_steps(sizes), out.first), View(view.buffer, sizes, steps, int(whole[0]))
            )
            return out
        index = whole.astype(np.int32)
        walk = walk_of([([index.size], [[1], [0]])], [0, 0])
        self._append(Op.FLOAT_GATHER, out, view, -1, {"weights": walk, "scales": index}, {"scale": fill})
        return out

    def look_up(
        self, operand: Operand, table: npt.NDArray[np.float32 | np.int8], scales: npt.NDArray[np.float32] | None
    ) -> View:
        """Append a look-up of rows of a table ``(rows, width)``, by their numbers; return ``(*numbers, width)``.

        With ``scales`` ``(rows,)`` the table is int8, and a row is its codes times its scale; else it is float32.
        """
        view = self.view(operand)
        (rows, width), out = table.shape, self.new((*view.shape, table.shape[1]))
        sizes, steps = merged(view.shape, [out.steps[:-1], view.steps])
        walk = walk_of([(sizes, steps), ([width], [[1], [0]])], [out.first, view.first], kind=scales is not None)
        constants: dict[str, npt.NDArray[Any]] = {"weights": walk}
        constants |= {"scales": table} if scales is None else {"scales": scales, "table": table}
        self._append(Op.FLOAT_LOOKUP, out, view, -1, constants, {"runs": rows})
        return out

    def recur(
        self,
        operand: Operand,
        kind: Kind,
        directions: list[Direction],
        states: Operand | None = None,
        *,
        words: Words = Words.NONE,
        lengths: bool = False,
    ) -> tuple[View, View, View | None, float]:
        """Append a recurrent layer over ``(steps, inputs)``.

        ``states`` are the first hidden values ``(directions, outputs)``, and for an LSTM after them the first cell
        values ``(directions, units)``, as one vector; None for zeros. With ``lengths`` there is one more value in it:
        how many steps the sequence has. ``words`` says what has 16 bits. Returns all hidden values ``(steps, directions
        * outputs)``, the last ones ``(directions, outputs)``, the last cell values ``(directions, units)`` of an LSTM,
        and the SQNR of the weights in dB.
        """
        view = self.view(operand)
        if view.steps[1] != 1 and view.shape[1] != 1:
            view = self.map(self.new(view.shape), view)
        if view.shape[0] > 1 and view.steps[0] < 0:
            view = self.map(self.new(view.shape), view)  # the engine goes forward through memory
        first = None if states is None else self.side_by_side(states)
        (steps, _), count, outputs = view.shape, len(directions), directions[0].outputs
        units = len(directions[0].inputs) // GATES[kind]
        row = count * outputs
        cells = count * units if kind is Kind.LSTM else 0
        # In rows of a step, so that the buffer of a longer sequence has more of them, and no other shape.
        whole = self.new((steps + math.ceil((cells + (row if lengths else 0)) / row), row))
        fields = {
            "steps": steps, "in_first": view.first, "in_step": view.steps[0] if steps > 1 else 0, "out_step": row,
            "cells_first": steps * row if cells else 0, "in2_first": 0 if first is None else first.first,
            "lengths": int(lengths), "last_first": steps * row + cells if lengths else 0,
        }  # fmt: skip
        constants, sqnr_db = constants_of(kind, directions, fields, words)
        number = -1 if first is None else _number(first)
        self._append(Op.RECURRENT, whole, view, number, constants)
        last = View(whole.buffer, (1, outputs), (row, 1), (steps - 1) * row)
        if lengths:
            last = View(whole.buffer, (count, outputs), (outputs, 1), steps * row + cells)
        elif count == 2:  # the backward direction ends at the first step
            last = View(whole.buffer, (2, outputs), (outputs - (steps - 1) * row, 1), (steps - 1) * row)
        return (
            View(whole.buffer, (steps, row), (row, 1)),
            last,
            View(whole.buffer, (count, units), (units, 1), steps * row) if cells else None,
            sqnr_db,
        )

    # ---- in and out ----

    def take(self, shape: Sequence[int], first: int) -> View:
        """Append a layer that takes values ``(*shape)`` side by side from the caller's sample, from ``first`` on."""
        out = self.new(shape)
        fields: dict[str, float] = {"channels_out": math.prod(shape), "channel_offset": first}
        self.program.layers.append(Layer(Op.FLOAT_INPUT, output=_number(out), fields=fields))
        return out

    def dequantize(self, number: int) -> View:
        """Append a layer that turns a buffer's codes into values; return them as ``(all rows, width, channels)``."""
        buffer = self.program.buffers[number]
        shape = (buffer.frames * buffer.height, buffer.width, buffer.channels)
        if shape[0] > 1:  # by the rows of an image, of which there are never too many
            out = View(self.new((shape[0], shape[1] * shape[2])).buffer, shape, dense_steps(shape))
        else:
            out = self.new(shape)
        fields = {"scale": buffer.scale, "input_zero_point": buffer.zero_point}
        self.program.layers.append(Layer(Op.DEQUANTIZE, input=number, output=_number(out), fields=fields))
        return out

    def quantize(self, operand: Operand, number: int, scaled: View | None = None) -> None:
        """Append a layer that rounds values ``(height, width, channels)`` to the codes of a buffer.

        ``scaled`` ``(2, channels)`` has a factor for each channel, and a term that is added to the product.
        """
        view, buffer = self.view(operand), self.program.buffers[number]
        steps, firsts = [[0] * 3, list(view.steps)], [0, view.first]
        fields = {"scale": 1.0 / buffer.scale, "output_zero_point": buffer.zero_point}
        if scaled is not None:
            assert scaled.steps[1] == 1 or scaled.shape[1] == 1
            steps, firsts = [*steps, [0, 0, 1]], [*firsts, scaled.first]
            fields["runs"] = scaled.steps[0]
        walk = walk_of([(list(view.shape), steps)], firsts)
        second = -1 if scaled is None else _number(scaled)
        self.program.layers.append(
            Layer(Op.QUANTIZE, NO_FLAGS, _number(view), second, number, fields, {"weights": walk})
        )

    def leave(self, operand: Operand, first: int) -> None:
        """Append a layer that gives values to the caller, from value ``first`` of a sample on."""
        view = self.view(operand)
        out = View(None, view.shape, dense_steps(view.shape))
        self.map(out, view)
        self.program.layers[-1].fields |= {"channels_out": view.size, "channel_offset": first}

    def _with_rows(self, sizes: list[int], steps: list[list[int]]) -> tuple[list[int], list[list[int]]]:
        """Put the longest dimension last if the last is short: what a row takes to begin costs more than strides do."""
        if not sizes:
            return sizes, steps
        row = self.choices.given(Way.ROW)
        if row is None or row >= len(sizes):
            short = sizes[-1] < _SHORT_ROW and max(sizes) >= _LONGER * sizes[-1]
            row = sizes.index(max(sizes)) if short else len(sizes) - 1
        self.choices.keep(Way.ROW, row)
        order = [*(each for each in range(len(sizes)) if each != row), row]
        return [sizes[each] for each in order], [[own[each] for each in order] for own in steps]

    def _append(
        self, op: Op, out: View, one: View, second: int, constants: dict[str, npt.NDArray[Any]],
        fields: dict[str, float] | None = None, *, flags: Flag = NO_FLAGS,
    ) -> None:  # fmt: skip
        flags |= NO_FLAGS if out.buffer is not None else Flag.FLOAT_OUT
        output = -1 if out.buffer is None else out.buffer
        self.program.layers.append(Layer(op, flags, _number(one), second, output, fields or {}, constants))


_SWAP = (
    Instruction(Function.COPY, 2, 0), Instruction(Function.COPY, 0, 1), Instruction(Function.COPY, 1, 2)
)  # fmt: skip


def _number(view: View) -> int:
    assert view.buffer is not None
    return view.buffer


def _picked(view: View, axes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(view.shape[axis] for axis in axes), tuple(view.steps[axis] for axis in axes)


def _of(
    view: View, out_steps: dict[int, int], axes: Sequence[int], less: View | None = None
) -> tuple[list[int], list[list[int]]]:
    """Return sizes, and steps of result and operands, of some dimensions; those that are reduced have none there."""
    other = [] if less is None else [[0 if less.shape[axis] == 1 else less.steps[axis] for axis in axes]]
    return [view.shape[axis] for axis in axes], [
        [out_steps.get(axis, 0) for axis in axes], [view.steps[axis] for axis in axes], *other
    ]  # fmt: skip


def _sorted(views: Sequence[View], axes: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    return [views[0].shape[axis] for axis in axes], [[view.steps[axis] for axis in axes] for view in views]
