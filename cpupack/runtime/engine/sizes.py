"""How the program of a model for images of any size changes with the height and the width.

The build lowers the model at a few sizes, and keeps what a number of the program is at all of them: it is always a sum
of products of the sizes (``Terms``). Weights are the same for all sizes. The memory is planned anew for each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..open_sizes import OpenSizes, Size, Terms, terms_of
from . import memory_plan
from .cuts import Cut
from .grids import Grid, Plane
from .loops import Part, parts_of, rows_of, terms_in
from .program_format import BUFFER, CONSTANTS, HEADER, LAYER, Op
from .resampling import KINDS, windows
from .stretched import Stretched

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
_ALIGNMENT = 64
_TOUCHES = ("input", "input2", "output")


@dataclass(frozen=True)
class Number:
    """A member of a buffer or a layer, of number ``place``, that changes."""

    place: int
    field: str
    terms: Terms


LAWS: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "inverse": lambda n: 1 / n,
    "inverse_root": lambda n: 1 / np.sqrt(n),
    "itself": lambda n: n,
    "root": np.sqrt,
    "unbiased": lambda n: n / np.maximum(n - 1, 1),
}
"""What follows from a number of values; ``unbiased`` makes a variance that of a sample."""


@dataclass(frozen=True)
class Share:
    """The float32 value at ``place`` of a constant: ``factor`` times what ``law`` says of the number of ``terms``."""

    place: int
    factor: float
    law: str
    terms: Terms

    def values(self, numbers: Ints) -> npt.NDArray[np.float32]:
        """Return what it is for numbers."""
        found: npt.NDArray[np.float32] = (self.factor * LAWS[self.law](numbers.astype(np.float64))).astype(np.float32)
        return found


@dataclass(frozen=True)
class Integers:
    """A constant of layer ``layer`` of which some integers (32 bits) change: those at ``places``, by ``terms``.

    ``shares`` are its float32 values that change.
    """

    layer: int
    name: str
    count: int
    places: tuple[int, ...]
    terms: tuple[Terms, ...]
    shares: tuple[Share, ...] = ()

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        yield from self.terms
        yield from (each.terms for each in self.shares)


@dataclass(frozen=True)
class Moves:
    """The constant ``name`` of layer ``layer``, a list of int32: moves, places of values, or a mask's numbers."""

    layer: int
    name: str
    parts: tuple[Part, ...]

    def all_terms(self) -> Iterator[Terms]:
        """Yield the terms of its numbers."""
        yield from terms_in(self.parts)


@dataclass(frozen=True)
class Resampled:
    """The windows and weights of an ``OP_RESAMPLE``; ``windows`` is one of ``resampling.KINDS``."""

    layer: int
    windows: str

    def all_terms(self) -> Iterator[Terms]:
        """Yield nothing: windows follow from the sizes of buffers."""
        yield from ()


Rule = Integers | Moves | Resampled | Grid | Plane | Cut | Stretched


@dataclass(frozen=True)
class Sizes:
    """``range`` says which sizes there are.

    ``header``, ``buffers`` and ``layers`` are the numbers that change, and ``constants`` the lists. ``shares`` are the
    layers whose scale is one divided by a number that changes, ``sums`` those whose scale is scale2 times such
    a number. ``weight_bytes``
    has the bytes of the weights of each convolution, by its layer. ``result`` has the terms of a sample's result.
    """

    range: OpenSizes
    header: tuple[Number, ...]
    buffers: tuple[Number, ...]
    layers: tuple[Number, ...]
    constants: tuple[Rule, ...]
    weight_bytes: Mapping[int, int]
    result: tuple[Terms, ...]
    shares: tuple[Number, ...] = ()
    sums: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.range.products)
        if any(len(each) != count for each in self._terms()):
            raise ValueError(f"a number that changes with the size has {count} terms")

    def _terms(self) -> Iterator[Terms]:
        yield from self.result
        for each in (*self.header, *self.buffers, *self.layers, *self.shares, *self.sums):
            yield each.terms
        for rule in self.constants:
            yield from rule.all_terms()

    def result_shape(self, *size: int) -> tuple[int, ...]:
        """Return the shape of a sample's result as it lies in memory."""
        powers = self._powers(size)
        return tuple(_value(each, powers) for each in self.result)

    def open_result_shape(self) -> tuple[int, ...]:
        """Return the shape of a sample's result, -1 where it changes with the size."""
        return tuple(-1 if any(each[1:]) else each[0] for each in self.result)

    @property
    def rounded(self) -> frozenset[tuple[int, str]]:
        """Layers and names of constants that differ in their last bits from what the build computes for a size."""
        return frozenset((each.layer, each.name) for each in self.constants if isinstance(each, Plane | Stretched))

    def outputs(self, *size: int) -> int:
        """Return how many float32 values a sample's result has."""
        return math.prod(self.result_shape(*size))

    def resized(self, head: Bytes, constants: Bytes, size: Size, own_at: int, constants_at: int) -> Resized:
        """Return header, buffers and layers, and the constants that a size has for itself.

        ``head`` and ``constants`` are those of the size that was built. In the result, the shared constants begin
        ``constants_at`` bytes after the head does, and those of the size ``own_at`` bytes later.
        """
        powers = self._powers(size)
        found = head.copy()
        header, buffers, layers = _parts(found)
        for each in self.header:
            header[each.field] = _value(each.terms, powers)
        for numbers, rows in ((self.buffers, buffers), (self.layers, layers)):
            for each in numbers:
                rows[each.place][each.field] = _value(each.terms, powers)
        for each in self.shares:
            layers[each.place][each.field] = np.float32(1 / _value(each.terms, powers))
        for each in self.sums:
            layers[each.place][each.field] = np.float32(
                float(layers[each.place]["scale2"]) * _value(each.terms, powers)
            )
        typical = layers.copy()  # its constants are where they were
        own = bytearray()
        for rule in self.constants:
            for name, array in self._constant(rule, powers, typical, buffers, constants):
                own += bytes(-len(own) % _ALIGNMENT)
                layers[rule.layer][name] = own_at + len(own)
                if isinstance(rule, Resampled) and name == "scales":
                    layers[rule.layer]["runs"] = array.size
                own += array.tobytes()
        self._plan(header, buffers, layers)
        header["constants"] = constants_at
        return Resized(found, np.frombuffer(bytes(own), np.uint8), int(header["arena_bytes"]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        return {
            **self.range.to_dict(),
            "header": [_to_list(each) for each in self.header],
            "buffers": [_to_list(each) for each in self.buffers],
            "layers": [_to_list(each) for each in self.layers],
            "constants": [{"kind": _KIND_OF[type(each)], **dataclasses.asdict(each)} for each in self.constants],
            "weight_bytes": [[number, count] for number, count in sorted(self.weight_bytes.items())],
            "result": [list(each) for each in self.result],
            **({"shares": [_to_list(each) for each in self.shares]} if self.shares else {}),
            **({"sums": [_to_list(each) for each in self.sums]} if self.sums else {}),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Sizes:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        return cls(
            OpenSizes.from_dict(raw),
            tuple(_number(each, HEADER.names) for each in raw["header"]),
            tuple(_number(each, BUFFER.names) for each in raw["buffers"]),
            tuple(_number(each, LAYER.names) for each in raw["layers"]),
            tuple(_rule(each) for each in raw["constants"]),
            {int(number): int(count) for number, count in raw["weight_bytes"]},
            tuple(terms_of(each) for each in raw["result"]),
            tuple(_number(each, ("scale",)) for each in raw.get("shares", ())),
            tuple(_number(each, ("scale",)) for each in raw.get("sums", ())),
        )

    def _powers(self, size: Size) -> Ints:
        return np.array(self.range.powers(size), np.int64)

    def _constant(
        self, rule: Rule, powers: Ints, typical: Any, buffers: Any, constants: Bytes
    ) -> list[tuple[str, npt.NDArray[Any]]]:
        if isinstance(rule, Moves):
            return [(rule.name, rows_of(rule.parts, powers).astype(np.int32))]
        if isinstance(rule, Grid | Plane):
            return [(rule.name, rule.values(powers))]
        if isinstance(rule, Cut | Stretched):
            return [(rule.name, rule.values(powers, constants))]
        layer = typical[rule.layer]
        if isinstance(rule, Integers):
            begin = int(layer[rule.name])
            values = constants[begin : begin + 4 * rule.count].view("<i4").copy()
            if rule.places:
                values[list(rule.places)] = np.array(rule.terms, np.int64) @ powers
            for share in rule.shares:
                values.view("<f4")[share.place] = share.values(np.array(_value(share.terms, powers)))
            return [(rule.name, values)]
        table, weights = windows(rule.windows, *resampled_lengths(layer, buffers), float(layer["scale"]))
        return [("weights", table), ("scales", weights)]

    def _plan(self, header: Any, buffers: Any, layers: Any) -> None:
        """Set how large buffers are, where they are in memory, and which layers run sample by sample."""
        image = (buffers["height"].astype(np.int64) + 2 * buffers["halo_y"]) * (
            buffers["width"].astype(np.int64) + 2 * buffers["halo_x"]
        )
        buffers["sample_bytes"] = (buffers["frames"] + 2 * buffers["halo_z"]) * image * buffers["channels"]
        sizes = buffers["sample_bytes"].tolist()
        positions = (buffers["frames"] * buffers["height"].astype(np.int64) * buffers["width"]).tolist()
        numbers = [[int(layer[name]) for name in _TOUCHES] for layer in layers]
        weighed = []
        for number, (source, _, result) in enumerate(numbers):
            weights = self.weight_bytes.get(number)
            if weights is None:
                weighed.append(memory_plan.Weighed(recurrent=int(layers[number]["op"]) == Op.RECURRENT))
                continue
            through = sizes[source] + (sizes[result] if result >= 0 else 0)
            weighed.append(memory_plan.Weighed(weights, through, one_position=result >= 0 and positions[result] == 1))
        alone = memory_plan.layers_alone(weighed)
        touched = [[each for each in row if each >= 0] for row in numbers]
        offsets, arena_bytes = memory_plan.plan_memory(sizes, touched, alone)
        buffers["offset"] = offsets
        header["alone"], header["arena_bytes"] = alone, arena_bytes


@dataclass(frozen=True)
class Resized:
    """The head of a program for one size, its own constants, and the memory of one sample."""

    head: Bytes
    own: Bytes
    arena_bytes: int


def head_bytes(program: Bytes) -> int:
    """Return where the layers of a program end."""
    header = program[: HEADER.itemsize].view(HEADER)[0]
    return HEADER.itemsize + int(header["buffers"]) * BUFFER.itemsize + int(header["layers"]) * LAYER.itemsize


def _parts(head: Bytes) -> tuple[Any, Any, Any]:
    header = head[: HEADER.itemsize].view(HEADER)[0]
    first = HEADER.itemsize + int(header["buffers"]) * BUFFER.itemsize
    return header, head[HEADER.itemsize : first].view(BUFFER), head[first:].view(LAYER)


def _value(terms: Terms, powers: Ints) -> int:
    return int(np.dot(terms, powers))


def resampled_lengths(layer: Any, buffers: Any) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return rows, columns and frames of the input of an ``OP_RESAMPLE`` and of its result."""
    source = _lengths(buffers[int(layer["input"])])
    if layer["output"] < 0:  # it goes to the caller
        return source, (int(layer["kernel_h"]), int(layer["kernel_w"]), int(layer["kernel_d"]))
    return source, _lengths(buffers[int(layer["output"])])


def _lengths(buffer: Any) -> tuple[int, int, int]:
    return int(buffer["height"]), int(buffer["width"]), int(buffer["frames"])


_KINDS: dict[str, type[Rule]] = {
    "integers": Integers, "moves": Moves, "resampled": Resampled, "grid": Grid, "plane": Plane, "cut": Cut,
    "stretched": Stretched,
}  # fmt: skip
_KIND_OF = {kind: name for name, kind in _KINDS.items()}


def _rule(raw: Mapping[str, Any]) -> Rule:
    layer, kind = int(raw["layer"]), _KINDS[raw["kind"]]
    if kind is Resampled:
        return Resampled(layer, _known(raw["windows"], KINDS))
    name = _known(raw["name"], CONSTANTS)
    if kind is Moves:
        return Moves(layer, name, parts_of(raw["parts"]))
    if kind in (Grid, Plane, Cut, Stretched):
        return kind.from_dict(raw, name)
    places, terms = tuple(int(each) for each in raw["places"]), tuple(terms_of(each) for each in raw["terms"])
    if len(places) != len(terms) or not all(0 <= each < int(raw["count"]) for each in places):
        raise ValueError("the integers of a constant are damaged")
    shares = tuple(_share(each, int(raw["count"])) for each in raw["shares"])
    return Integers(layer, name, int(raw["count"]), places, terms, shares)


def _share(raw: Mapping[str, Any], count: int) -> Share:
    found = Share(int(raw["place"]), float(raw["factor"]), _known(raw["law"], LAWS), terms_of(raw["terms"]))
    if not 0 <= found.place < count:
        raise ValueError("the shares of a constant are damaged")
    return found


def _known(name: Any, names: Any) -> str:
    if name not in names:
        raise ValueError(f"{name!r} is none of {', '.join(names)}")
    return str(name)


def _number(raw: Sequence[Any], names: Any) -> Number:
    place, field, terms = raw
    return Number(int(place), _known(field, names), terms_of(terms))


def _to_list(number: Number) -> list[Any]:
    return [number.place, number.field, list(number.terms)]
