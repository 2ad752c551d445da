"""Builds a program: its buffers, its layers, and the place of each value of the graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple

import numpy as np
import torch
from torch import fx

from cpupack.artifacts import LayerSaturation, RecurrentSqnr
from cpupack.errors import QuantizationError
from cpupack.graph.names import core, scoped_name
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.vocabulary import BATCH_NORMS, MAX_POOLS
from cpupack.recipe import Quantize
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.stages.quantize.native.calls import Calls, parts_of, shape_of, whole_concatenations
from cpupack.stages.quantize.native.choices import Choices, Made, Tables, Way
from cpupack.stages.quantize.native.floats import Floats, Operand
from cpupack.stages.quantize.native.functions import highest_result, table_of
from cpupack.stages.quantize.native.ledger import Ledger
from cpupack.stages.quantize.native.measured import Forms
from cpupack.stages.quantize.native.moves import Joins, memory_places, moves_of
from cpupack.stages.quantize.native.program import Buffer, Flag, Layer, Op, Program, Size
from cpupack.stages.quantize.native.row_codes import Listed, RowCodes, RowNorm
from cpupack.stages.quantize.native.select import select_channels
from cpupack.stages.quantize.native.values import (
    LONGEST_SIDE,
    MOST_FRAMES,
    Value,
    channels_last,
    channels_of,
    image_layout,
    last_channels_of,
    order_of,
    rows_layout,
)
from cpupack.stages.quantize.native.walks import UNUSED, Fixed, Grid, View
from cpupack.stages.quantize.ranges import choose_range
from cpupack.statistics import ActivationStats

_LEVELS = 256
Pair = tuple[int, int]


class Builder:
    """Grows ``program`` call by call.

    ``values`` has the values of lowered calls; a call with several results has a tuple. ``absorbed`` are calls that the
    kernel of another call also computes. ``results`` are the calls whose values go to the caller, and ``left`` has the
    first value of those that are already written. ``in_place`` are parts of concatenations that were written directly
    to their place, ``copied`` the places (buffer, channel) of copied parts. ``borders`` has the zeros around an image
    that the convolutions which read it must add, before and after: frames, rows, columns. ``images`` are single inputs
    in NCHW order.
    ``floats`` has the values of calls in FP32 (``reasons``, by name, says why they are), ``float_tuples`` those of
    calls with several results, and ``dequantized`` the values of a buffer's codes after so many layers. With
    ``by_rows`` names linear layers in INT8 whose activations get a scale for each row; ``row_codes`` has the codes of
    what they read, and ``waiting`` the rows that only they read, with a norm that is computed where their codes are.
    ``recurrent_sqnr_db`` is what each recurrent layer keeps with fewer bits, ``attends_by_words`` names calls that
    attention by codes of 16 bits may include. ``magnitudes`` says beyond which number no whole number of a call is, and
    ``hidden`` has masks of truth values as what is added to scores. ``ledger`` has the facts about
    the layers. With ``fitting``, weights get values whose products fit into 16-bit sums; ``sums`` has the facts about
    these sums.
    """

    def __init__(
        self,
        calls: Calls,
        stats: Mapping[str, ActivationStats],
        recipe: Quantize,
        input_shape: tuple[int, int, int],
        preprocess: PreprocessSpec | None,
        *,
        fitting: bool = False,
        reasons: Mapping[str, str] | None = None,
        by_rows: Collection[str] = frozenset(),
        recurrent_sqnr_db: Mapping[str, RecurrentSqnr] | None = None,
        attends_by_words: Collection[str] = frozenset(),
        divisors: Mapping[str, torch.Tensor] | None = None,
        forms: Mapping[str, Forms] | None = None,
        grid: Grid | None = None,
        choices: Made | None = None,
        tables: Tables | None = None,
    ) -> None:
        self.calls, self.recipe, self.preprocess, self.fitting = calls, recipe, preprocess, fitting
        channels, height, width = input_shape
        self.program = Program(height, width, input_channels_float=channels)
        self.values: dict[fx.Node, Value | tuple[Value, ...]] = {}
        self.absorbed: set[fx.Node] = set()
        self.in_place: set[fx.Node] = set()
        self.copied: set[tuple[int, int]] = set()
        self.left: dict[fx.Node, int] = {}
        self.left_by_positions: set[fx.Node] = set()
        self.images: set[fx.Node] = set()
        self.borders: dict[fx.Node, tuple[Pair, Pair, Pair]] = {}
        self.choices = Choices(self.program, choices, tables)
        if grid is not None:
            self.program.filler = UNUSED.tobytes()
        self.floats = Floats(self.program, grid, self.choices)
        self.float_tuples: dict[fx.Node, tuple[View | Fixed, ...]] = {}
        self.dequantized: dict[int, tuple[View, int]] = {}
        self.reasons = reasons or {}
        self.by_rows, self.attends_by_words = by_rows, attends_by_words
        self.recurrent_sqnr_db = recurrent_sqnr_db or {}
        self.divisors, self.forms = divisors or {}, forms or {}
        self.divided: dict[fx.Node, torch.Tensor | None] = {}
        self.row_codes: dict[fx.Node, RowCodes] = {}
        self.waiting: dict[fx.Node, tuple[View | Listed, RowNorm | None]] = {}
        self.magnitudes: dict[fx.Node, float] = {}
        self.hidden: dict[fx.Node, Operand] = {}
        self.quantizes: Callable[[fx.Node], Value] | None = None
        self.ledger = Ledger(self.program)
        self.sums: list[LayerSaturation] = []
        self._stats = stats
        self._wholes = whole_concatenations(calls.graph, calls.apart)
        self._joined: dict[fx.Node, int] = {}
        self._images: dict[object, int] = {}
        self.results = results_of(calls.graph)

    # ---- ranges and buffers ----

    def limits(self, node: fx.Node) -> tuple[float, float]:
        """Return the range that the observer chooses for a call's result.

        Of values that only a max pool reads, those that it keeps count: clipping the largest costs most there.
        """
        stats = self.statistics(self._kept_of(node))
        if not (np.isfinite(stats.minimum) and np.isfinite(stats.maximum)):
            raise self.calls.refusal(node, "whose values are not all finite")
        low, high = choose_range(stats, self.recipe.observer, _LEVELS, self.recipe.percentile)
        return low, min(high, highest_result(self.calls.graph, node))

    def statistics(self, node: fx.Node) -> ActivationStats:
        """Return what calibration has seen of a call's result; of a view that it did not see, of what that shows."""
        node = self.calls.observed(node, self._stats)
        stats = self._stats.get(node.name)
        if stats is None:
            raise QuantizationError(f"no calibration data went through {scoped_name(node)}")
        return stats

    def _kept_of(self, node: fx.Node) -> fx.Node:
        """Return the last of the max pools that alone read a call's result, one after the other, or the call."""
        while len(node.users) == 1:
            reader = next(iter(node.users))
            pools = type(self.calls.module(reader)) in MAX_POOLS and not self.is_float(reader)
            if not pools or reader.name not in self._stats:
                break
            node = reader
        return node

    def add_buffer(self, size: Size, limits: tuple[float, float]) -> int:
        """Add a buffer that covers a range and return its number."""
        return self._add(covering(size, limits))

    def add_alike(self, size: Size, like: Buffer) -> int:
        """Add a buffer with another's scale and return its number."""
        return self._add(Buffer(*size[:3], like.scale, like.zero_point, frames=size.frames))

    def _add(self, buffer: Buffer) -> int:
        if max(buffer.height, buffer.width) > LONGEST_SIDE or buffer.frames > MOST_FRAMES:
            raise QuantizationError(
                f"the native engine has at most {MOST_FRAMES} frames of {LONGEST_SIDE} rows and columns, not "
                f"{buffer.frames} of {buffer.height} x {buffer.width}"
            )
        return self.program.add_buffer(buffer)

    def buffer(self, number: int) -> Buffer:
        """Return a buffer by its number."""
        return self.program.buffers[number]

    def bordered(self, number: int, halo: tuple[int, int, int], fill: int) -> int:
        """Return a buffer with at least this halo: the same buffer if its border may be widened, else a copy.

        ``halo`` is frames, rows and columns.
        """
        buffer = self.buffer(number)
        if not any(halo):
            return number
        if buffer.fill is None or buffer.fill == fill:
            buffer.fill = fill
            buffer.halo_z = max(buffer.halo_z, halo[0])
            buffer.halo = max(buffer.halo[0], halo[1]), max(buffer.halo[1], halo[2])
            return number
        copy = self.add_alike(buffer.layout, buffer)
        self.buffer(copy).fill, self.buffer(copy).halo_z, self.buffer(copy).halo = fill, halo[0], halo[1:]
        same = np.arange(_LEVELS, dtype=np.uint8)
        self.append(Layer(Op.TABLE, input=number, output=copy, constants={"table": same}))
        return copy

    # ---- values ----

    def value(self, operand: object, reader: fx.Node) -> Value:
        """Return the place of an operand. Raises QuantizationError if the operand is not an activation."""
        found = self.values.get(operand) if isinstance(operand, fx.Node) else None
        if found is None and isinstance(operand, fx.Node) and operand in self.floats.values:
            assert self.quantizes is not None
            found = self.values[operand] = self.quantizes(operand)
        if not isinstance(found, Value) or found.buffer < 0:
            raise self.calls.refusal(reader, "with a constant operand")
        one_scale = self.buffer(found.buffer).parts is None
        assert one_scale or self._by_channel(reader), f"{reader} reads codes of several scales"
        return found

    def is_float(self, node: fx.Node) -> bool:
        """Whether a call stays FP32."""
        return node.name in self.reasons

    def is_by_rows(self, node: fx.Node) -> bool:
        """Whether a call is a linear layer in INT8 that takes and gives float32 values, with a scale for each row."""
        return node.name in self.by_rows

    def read_as_floats(self, node: fx.Node) -> bool:
        """Whether all that read a call's result take float32 values: calls in FP32, or the caller."""
        return bool(node.users) and all(user.op == "output" or self.takes_floats(user) for user in node.users)

    def takes_floats(self, node: fx.Node) -> bool:
        """Whether a call reads float32 values: one in FP32, or a recurrent layer, which makes codes of each step."""
        return self.is_float(node) or isinstance(self.calls.module(node), Recurrent)

    def leave_floats(self, node: fx.Node, size: Size, order: torch.Tensor | None) -> int:
        """Add a buffer for a call's float32 values ``(frames, height, width, channels)`` and return its number.

        ``order`` is that of the values as ``Value`` has it.
        """
        height, width, channels, frames = size
        number = self._add(Buffer(height, width, 4 * channels, 1.0, 0, floats=True, frames=frames))
        whole = View(number, (frames * height, width, channels), (width * channels, channels, 1))
        elements = torch.arange(math.prod(size)).reshape(shape_of(node)[1:]) if order is None else order[0]
        view = whole.of_elements(elements)
        assert view is not None
        self.values[node], self.floats.values[node] = Value(-1), view
        return number

    def image(self, operand: object, reader: fx.Node) -> int:
        """Return the number of a buffer whose channels are those of an operand. Selected channels are copied."""
        value = self.value(operand, reader)
        if value.order is None:
            return value.buffer
        source = self.buffer(value.buffer)
        layout = image_layout(tuple(value.order.shape[1:]))
        here = torch.equal(value.order[0].flatten(), torch.arange(source.size))
        if here and layout == source.layout:
            return value.buffer
        if operand not in self._images:
            copy = self.add_alike(layout, source)
            channels = channels_of(value, source)
            if channels is None:
                self.move(value.buffer, copy, value.order[0].flatten(), torch.arange(self.buffer(copy).size))
            else:
                self.append(select_channels(source, self.buffer(copy), channels, value.buffer, copy))
            self._images[operand] = copy
        return self._images[operand]

    def rows(self, operand: object, reader: fx.Node) -> Value:
        """Return an operand with its last dimension as the channels of a buffer. It is copied if necessary."""
        value = self.value(operand, reader)
        source = self.buffer(value.buffer)
        if last_channels_of(value, source) is not None:
            return value
        assert isinstance(operand, fx.Node)
        shape = shape_of(operand)
        copy = self.add_alike(rows_layout(shape[1:]), source)
        order = channels_last(self.buffer(copy), shape)
        self.move(value.buffer, copy, order_of(value, source, shape)[0].flatten(), order[0].flatten())
        return Value(copy, order)

    def move(
        self, source: int, target: int, elements: torch.Tensor, places: torch.Tensor, grid: Buffer | None = None
    ) -> None:
        """Append a layer that copies elements of one buffer to places in another, rescaled.

        Both are int64 numbers of elements, counted by channel, frame, row and column. FILL in ``elements`` is a zero.
        ``grid`` is the target with the scale that these elements get, where it has several.
        """
        one, other = self.buffer(source), grid or self.buffer(target)
        ways = (Way.MOVES, Way.PERIOD, Way.RUNS)
        given = Joins(*(self.choices.given(way) or 0 for way in ways))
        moves, joins = moves_of(memory_places(elements, one), memory_places(places, other), one, other, given)
        for way, chosen in zip(ways, astuple(joins), strict=True):
            if chosen:
                self.choices.keep(way, chosen)
        layer = Layer(Op.MOVE, input=source, output=target, constants={"weights": moves})
        layer.fields = {"runs": len(moves), "output_zero_point": other.zero_point}
        if (one.scale, one.zero_point) != (other.scale, other.zero_point):
            layer.flags |= Flag.TABLE
            layer.constants["table"] = table_of(lambda x: x, one, other)
        self.append(layer)

    def goes_out(self, node: fx.Node) -> bool:
        """Whether a call's values go only to the caller."""
        return node in self.results and all(user.op == "output" for user in node.users)

    def leave(self, node: fx.Node, count: int, *, by_positions: bool = False) -> int:
        """Return the index of a result's first value among the values of a sample that the caller gets.

        ``by_positions`` says that the channels of a position of this image are side by side.
        """
        self.left[node] = self.program.outputs
        if by_positions:
            self.left_by_positions.add(node)
        self.program.outputs += count
        return self.left[node]

    def slice_for(self, node: fx.Node) -> tuple[int, int] | None:
        """Return the buffer and the first channel of a call in the concatenations that are its only readers.

        None if another call also reads it, or if it would have to be in two places.
        """
        wholes = {self._wholes.get(reader) for reader in node.users}
        whole = wholes.pop()
        if wholes or whole is None or parts_of(whole).count(node) != 1:
            return None
        self.in_place.add(node)
        parts = parts_of(whole)
        number, first = self.joined(whole), sum(shape_of(each)[1] for each in parts[: parts.index(node)])
        own = self.buffer(number).parts
        if own is not None:
            grid = covering(Size(1, 1, 1), self.limits(node))
            own[first] = grid.scale, grid.zero_point
        return number, first

    def joined(self, node: fx.Node) -> int:
        """Return the buffer of a concatenation. Its parts may be written before the concatenation is lowered.

        If a longer concatenation begins with it, both share that buffer (DenseNet reads its features many times). Where
        each reader multiplies every channel by a factor of its own, each part keeps its own scale: small values would
        have few steps in the range of the whole.
        """
        whole = self._wholes[node]
        if whole not in self._joined:
            number = self._joined[whole] = self.add_buffer(image_layout(shape_of(whole)[1:]), self.limits(whole))
            family = [each for each, other in self._wholes.items() if other is whole]
            if all(self._by_channel(reader) for each in family for reader in each.users):
                self.buffer(number).parts = {}
        return self._joined[whole]

    def _by_channel(self, reader: fx.Node) -> bool:
        """Whether a call is a norm in INT8, which has a factor and a term for each channel."""
        module = self.calls.module(reader)
        norm = module is not None and type(core(module)) in BATCH_NORMS
        return norm and not self.is_float(reader)

    # ---- layers ----

    def append(self, layer: Layer) -> None:
        """Append a layer. What it belongs to is told when its call is lowered."""
        self.program.layers.append(layer)


def results_of(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the calls whose results are the graph's: one, or several in a tuple."""
    result = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    return [each for each in result if isinstance(each, fx.Node)] if isinstance(result, tuple) else [result]


def covering(size: Size, limits: tuple[float, float]) -> Buffer:
    """Return a buffer whose codes cover a range that is widened to hold zero."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    scale = (high - low) / (_LEVELS - 1)
    if scale < torch.finfo(torch.float32).tiny:
        scale = 1.0  # always zero: any scale will do
    zero_point = min(max(round(-low / scale), 0), _LEVELS - 1)
    return Buffer(*size[:3], scale, zero_point, frames=size.frames)
