"""Finds how the numbers of a program change with the height and the width of its images.

One model is lowered at several sizes. Each number that differs must be the same function of rows and columns at all of
them (``runtime/engine/sizes.py``), and each list must repeat itself. Where one is not, the model has no program for any
size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.grids import Grid
from cpupack.runtime.engine.program_format import BUFFER, HEADER, LAYER, Op
from cpupack.runtime.engine.resampling import KINDS, windows
from cpupack.runtime.engine.sizes import (
    Integers,
    Number,
    Resampled,
    Rule,
    Share,
    Sizes,
    resampled_lengths,
)
from cpupack.runtime.open_sizes import OpenSizes, Terms
from cpupack.size_terms import Fit, Ints, refused
from cpupack.stages.quantize.native.cuts import shaped
from cpupack.stages.quantize.native.grids import grid_of
from cpupack.stages.quantize.native.largest import Tables
from cpupack.stages.quantize.native.list_rules import is_list, list_rule, words_rule
from cpupack.stages.quantize.native.lowered import ALL_CONSTANTS, Bytes, Lowered, constant_names, extent
from cpupack.stages.quantize.native.planes import plane_of
from cpupack.stages.quantize.native.shares import share_of
from cpupack.stages.quantize.native.stretches import CLOSE, laid
from cpupack.stages.quantize.native.values import LONGEST_SIDE
from cpupack.stages.quantize.native.walks import MOST_VALUES

_PLANNED = {"offset", "sample_bytes"}
"""What the runner computes itself."""
_FLOATS = ("scale", "scale2")
_ALIGNED = 64


class GrowingTablesError(QuantizationError):
    """Constants are those of the largest size cut off: with that one, all sizes have them.

    Those of ``layers`` are its first values, which all sizes can share.
    """

    def __init__(self, layers: Sequence[int], refusal: QuantizationError) -> None:
        super().__init__(str(refusal.message), hint=refusal.hint)
        self.layers = tuple(layers)


def sizes_of(lowered: Sequence[Lowered], sizes: OpenSizes, tables: Tables | None = None) -> Sizes:
    """Return how a program changes, from the same model at several sizes, the first of which is the one that is stored.

    Raises QuantizationError for what no program for any size could have, GrowingTablesError where ``tables`` of the
    largest size would help; those that are needed are added to them.
    """
    headers, buffers, layers, constants = zip(*(each.parts for each in lowered), strict=True)
    for each, what in ((buffers, "activations"), (layers, "layers")):
        if len({len(one) for one in each}) > 1:
            raise refused(f"it has {' or '.join(str(len(one)) for one in each)} {what}")
    names = [f"layer {number} ({Op(int(each['op'])).name.lower()})" for number, each in enumerate(layers[0])]
    for number, name in enumerate(names):
        _check_alike([each[number] for each in layers], name)
    fit = Fit(np.array([each.counts for each in lowered], np.int64), sizes.products)
    changing = {
        "header": _numbers(fit, headers, ("input_channels_float", "input_height", "input_width", "outputs")),
        "buffers": _numbers(fit, buffers, tuple(set(BUFFER.names or ()) - _PLANNED)),
        "layers": _numbers(fit, _without_counts(layers), tuple(set(LAYER.names or ()) - {*ALL_CONSTANTS, *_FLOATS})),
    }
    shares, sums = _scales(fit, layers, names)
    rules: list[Rule] = []
    growing: dict[int, QuantizationError] = {}
    tables = tables or Tables()
    owner = _first_owner(layers[0])
    for number, name in enumerate(names):
        own = _Constants(
            number, [each[number] for each in layers], list(constants), list(layers), list(buffers), name,
            has_first=number == owner,
        )  # fmt: skip
        try:
            rules += own.rules(fit, tables)
        except QuantizationError as refusal:
            if not own.grows():
                raise
            growing[number] = refusal
    if growing or tables.missing is not None:
        raise GrowingTablesError(tuple(growing), tables.missing or next(iter(growing.values())))
    weights = {
        number: extent(layers[0], constants[0], int(layer["weights"]))
        for number, layer in enumerate(layers[0])
        if layer["op"] == Op.CONV
    }
    result = [fit.terms(np.array(each), "the result") for each in zip(*(each.result for each in lowered), strict=True)]
    if len({len(each.result) for each in lowered}) > 1:
        raise refused("its result has other dimensions")
    return Sizes(
        sizes,
        changing["header"],
        changing["buffers"],
        changing["layers"],
        tuple(rules),
        weights,
        tuple(result),
        shares,
        sums,
    )


def check_sides(program: bytes, size: str) -> None:
    """Raise QuantizationError for a program, of inputs of a ``size``, whose maps are larger than the engine takes."""
    buffers = Lowered((), program, ()).parts[1]
    longest = max(int(buffers[side].max()) for side in ("frames", "height", "width"))
    if longest > LONGEST_SIDE or int(buffers["channels"].max()) > 4 * MOST_VALUES:
        raise QuantizationError(
            f"[sizes] max: inputs of {size} have lists of {max(longest, LONGEST_SIDE + 1)} or more positions in a row, "
            f"and the native engine has at most {LONGEST_SIDE}",
            hint="lower max, and give the model longer inputs in parts",
        )


def same_program(found: bytes, lowered: bytes, rounded: Collection[tuple[int, str]] = ()) -> bool:
    """Return whether two programs do the same, wherever their constants lie.

    Those in ``rounded``, by the number of the layer and the name, may differ in their last bits.
    """
    one, other = Lowered((), found, ()).parts, Lowered((), lowered, ()).parts
    for name in HEADER.names or ():
        if name not in {"identity", "constants"} and one[0][name] != other[0][name]:
            return False
    if not np.array_equal(one[1], other[1]):
        return False
    fields = [name for name in LAYER.names or () if name not in ALL_CONSTANTS]
    if any(not np.array_equal(one[2][name], other[2][name]) for name in fields):
        return False
    owner = _first_owner(other[2])
    for number, (mine, theirs) in enumerate(zip(one[2], other[2], strict=True)):
        for name in constant_names(Op(int(theirs["op"]))):
            if not theirs[name] and not mine[name] and (number, name) != (owner, "weights"):
                continue  # it has none
            size = extent(other[2], other[3], int(theirs[name]))
            wanted = other[3][int(theirs[name]) : int(theirs[name]) + size]
            content = one[3][int(mine[name]) : int(mine[name]) + size]
            if (number, name) in rounded:
                content = _as_wanted(content, wanted)
            if not np.array_equal(content, wanted[: len(content)]) or wanted[len(content) :].any():
                return False  # what lies at the end of a program has nothing that fills it up
    return True


def _as_wanted(content: Bytes, wanted: Bytes) -> Bytes:
    """Return a constant, or the one that is wanted where they differ in their last bits alone."""
    one, other = (each[: min(len(content), len(wanted))].view("<f4") for each in (content, wanted))
    near = np.abs(one - other).max(initial=0) <= CLOSE * np.abs(other).max(initial=0)
    return wanted[: len(content)] if near else content


@dataclass(frozen=True)
class _Constants:
    """The constants of layer ``number`` at each size. ``has_first`` says that the one at offset 0 is its own."""

    number: int
    own: list[Any]
    constants: list[Bytes]
    layers: list[Any]
    buffers: list[Any]
    name: str
    has_first: bool

    def rules(self, fit: Fit, tables: Tables) -> list[Rule]:
        """Return how those change that are not the same at all sizes."""
        op = Op(int(self.own[0]["op"]))
        if op is Op.RESAMPLE:
            return self._resampled()
        found: list[Rule] = []
        for name in constant_names(op):
            each = self._contents(name)
            if not any(int(layer[name]) for layer in self.own) and not (self.has_first and name == "weights"):
                continue  # it has none, or the first one of all, which is the same for all sizes
            if all(np.array_equal(each[0], other) for other in each[1:]):
                continue
            if is_list(self.own[0], name):
                found.append(list_rule((self.number, name), self.own, self.buffers, self._contents, fit, self.name))
                continue
            if len({len(one) for one in each}) > 1 or len(each[0]) % 4:
                found += self._growing(name, each, fit, tables)
                continue
            try:
                found.append(self._integers(name, each, fit))
            except QuantizationError:  # what fills them up may hide that they grow
                found += self._growing(name, each, fit, tables)
        return found

    def _growing(self, name: str, each: list[Bytes], fit: Fit, tables: Tables) -> list[Rule]:
        try:
            return [self._grid(name, each, fit)]
        except QuantizationError as refusal:
            if self.grows() or any(len(one) % 4 for one in each):
                raise
            words, lengths = [one.view("<u4") for one in each], self._lengths()
            end = len(self.constants[0])
            found = shaped(words, lengths, fit)
            if found is not None:
                return [*tables.cut(self.number, name, found, end, refusal)]
            plane = plane_of(self.number, name, words, lengths, fit)
            if plane is not None:
                return [plane]
            repeated = words_rule(self.number, name, words, lengths, fit)
            if repeated is not None:
                return [repeated]
            return [*tables.stretch(self.number, name, laid(words, lengths, fit), end, refusal)]

    def _lengths(self) -> list[list[int]]:
        """Return what may be a side of a constant, at each size: sides of the activations beside it, then of all."""
        own = [
            [int(layer[place]) for layer in self.own]
            for place in ("input", "input2", "output")
            if min(int(layer[place]) for layer in self.own) >= 0
        ]
        found = list[list[int]]()
        for numbers in (*own, *([each] * len(self.own) for each in range(len(self.buffers[0])))):
            rows = [buffers[number] for buffers, number in zip(self.buffers, numbers, strict=True)]
            sides = [[int(row[side]) for side in ("frames", "height", "width", "channels")] for row in rows]
            found += [list(each) for each in zip(*sides, strict=True)]
            if numbers in own:
                found.append([frames * height for frames, height, *_ in sides])
                found.append([math.prod(each[:3]) for each in sides])
                found.append([math.prod(each) for each in sides])
        return found

    def _integers(self, name: str, each: list[Bytes], fit: Fit) -> Integers:
        values = np.stack([one.view("<i4") for one in each]).astype(np.int64)
        what = f"a number of {self.name}"
        found, shares = dict[int, Terms](), list[Share]()
        for place in np.flatnonzero((values != values[0]).any(axis=0)).tolist():
            try:
                found[place] = fit.terms(values[:, place], what)
            except QuantizationError:
                own = np.array([one.view("<f4")[place] for one in each])
                shares.append(share_of(place, own, fit, what))
        return Integers(self.number, name, values.shape[1], tuple(found), tuple(found.values()), tuple(shares))

    def _grid(self, name: str, each: list[Bytes], fit: Fit) -> Grid:
        def terms(values: Ints) -> Terms | None:
            try:
                return fit.terms(values, "a side of a grid")
            except QuantizationError:
                return None

        whole = all(len(one) % 4 == 0 for one in each)
        grid = grid_of(self.number, name, [one.view("<f4") for one in each], terms) if whole else None
        if grid is None and len({len(one) for one in each}) == 1:
            raise refused(
                f"{self.name} has other numbers for another size: a factor that follows from the number of positions, "
                "or another order of values for a small size ([sizes] min may be larger)"
            )
        if grid is None:
            raise refused(
                f"{self.name} has constants that grow with the input, and are no grid of it: positions that are "
                "resized or normalized, or a level of a single place ([sizes] min may be larger)"
            )
        return grid

    def grows(self) -> bool:
        """Whether the second operand of a function is a constant whose values for less are the first ones for more."""
        if Op(int(self.own[0]["op"])) is not Op.FLOAT_MAP:
            return False
        contents = self._contents("scales")
        longest = max(contents, key=len)
        return len({len(each) for each in contents}) > 1 and all(_begins_with(longest, each) for each in contents)

    def table(self) -> npt.NDArray[np.float32]:
        """Return that constant at the first size."""
        return self._contents("scales")[0].view("<f4")

    def _contents(self, name: str) -> list[Bytes]:
        found = []
        for layer, layers, constants in zip(self.own, self.layers, self.constants, strict=True):
            begin = int(layer[name])
            found.append(constants[begin : begin + extent(layers, constants, begin)])
        return found

    def _resampled(self) -> list[Rule]:
        tables, weights = self._contents("weights"), self._contents("scales")
        for kind in KINDS:
            for place, layer in enumerate(self.own):
                lengths, results = resampled_lengths(layer, self.buffers[place])
                table, own = windows(kind, lengths, results, float(layer["scale"]))
                if not (_begins(tables[place], table) and _begins(weights[place], own) and own.size == layer["runs"]):
                    break
            else:
                return [Resampled(self.number, kind)]
        raise refused(f"{self.name} resizes in a way that is known for one size alone")


def _numbers(fit: Fit, rows: Sequence[Any], fields: tuple[str, ...]) -> tuple[Number, ...]:
    found = []
    for field in sorted(fields):
        values = np.stack([each[field].astype(np.int64) for each in rows])
        for place in np.flatnonzero((values != values[0]).any(axis=0)).tolist():
            found.append(Number(place, field, fit.terms(values[:, place], f"{field} of number {place}")))
    return tuple(found)


def tables_of(lowered: Lowered, numbers: Sequence[int]) -> dict[int, npt.NDArray[np.float32]]:
    """Return the constants that are second operands of layers."""
    _, buffers, layers, constants = lowered.parts
    owner = _first_owner(layers)
    found = {}
    for number in numbers:
        own = _Constants(number, [layers[number]], [constants], [layers], [buffers], "", has_first=number == owner)
        found[number] = own.table()
    return found


def _begins_with(longer: Bytes, shorter: Bytes) -> bool:
    """Whether a constant is the first bytes of another one, but for the zeros that it is filled up with."""
    used = int(np.flatnonzero(shorter)[-1]) + 1 if shorter.any() else 0
    used = max(used, len(shorter) - _ALIGNED + 1)  # a table may end with zeros of its own
    return np.array_equal(longer[:used], shorter[:used])


def _without_counts(layers: Sequence[Any]) -> list[Any]:
    """Return layers without how many weights those have that resize: the runner counts them."""
    found = []
    for each in layers:
        own = each.copy()
        own["runs"][own["op"] == Op.RESAMPLE] = 0
        found.append(own)
    return found


def _first_owner(layers: Any) -> int:
    """Return the layer that has the constant at offset 0, where layers without one point to as well."""
    return next((at for at, each in enumerate(layers) if constant_names(Op(int(each["op"])))), 0)


def _check_alike(layers: list[Any], name: str) -> None:
    """Raise QuantizationError for a layer that is another one at another size."""
    for field in ("op", "scale2"):
        if len({each[field] for each in layers}) > 1:
            why = {"scale2": ": a constant that it adds has another range there"}.get(field, f" ({field})")
            raise refused(f"{name} is computed in another way for another size{why}")


def _scales(fit: Fit, layers: Sequence[Any], names: Sequence[str]) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    """Return the scales that are one part of a number of positions, those of averages, and those of sums of them."""
    shares: list[Number] = []
    sums: list[Number] = []
    for place, name in enumerate(names):
        own = [each[place] for each in layers]
        scales = [float(each["scale"]) for each in own]
        if len(set(scales)) == 1:
            continue
        if float(own[0]["scale2"]):
            counts = [round(each / float(own[0]["scale2"])) for each in scales]
            found = [float(np.float32(float(own[0]["scale2"]) * each)) for each in counts]
        else:
            counts = [round(1 / each) if each else 0 for each in scales]
            found = [float(np.float32(1 / each)) if each else 0.0 for each in counts]
        if found != scales or not all(counts):
            raise refused(f"{name} is computed in another way for another size (scale){_why_scale(own[0])}")
        number = Number(place, "scale", fit.terms(np.array(counts, np.int64), f"what {name} averages"))
        (sums if float(own[0]["scale2"]) else shares).append(number)
    return tuple(shares), tuple(sums)


def _why_scale(layer: Any) -> str:
    reduces = layer["op"] in (Op.GLOBAL_AVERAGE, Op.AVERAGE_POOL)
    return "; a sum over positions grows with their number, and INT8 codes have one range: take a mean" * reduces


def _begins(content: Bytes, array: npt.NDArray[Any]) -> bool:
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return len(content) >= len(raw) and np.array_equal(content[: len(raw)], raw)
