"""Programs for several lengths of a sample: which one a sample takes, and what goes in and out of it.

A caller hands in rows of the greatest length. What is padding at the end of a sample is not computed: the sample runs
in the program of the least length that holds the rest. With a form (``forms.py``) there is a program for every length,
and samples of several lengths run together. So a sample's result depends on nothing but the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .forms import Form

Floats = npt.NDArray[np.float32]
_TOKENS_TOGETHER = 1024
"""Positions that one call computes: more would not be faster, and take more memory."""
_TOKENS_PACKED = 512
"""The same where lengths run together: fewer stay in the second cache, and more are not faster."""
LONGEST = 1 << 15
"""The greatest length: kernels/engine/validate.c takes no longer side of a buffer."""
_MOST_PIECES = 128
"""Lengths in one call: CPUPACK_MOST_PIECES of kernels/engine/engine.h."""


@dataclass(frozen=True)
class Field:
    """One input or output in a row of the greatest length.

    ``shape`` is a sample's there. Along dimension ``axis`` it has a value for each position, None where its size is the
    same for all lengths. ``pad`` is an input's value where there is no position.
    """

    first: int
    shape: tuple[int, ...]
    axis: int | None = None
    pad: float = 0.0

    @property
    def size(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    def at(self, length: int) -> tuple[int, ...]:
        """Return the shape for another length."""
        return tuple(length if place == self.axis else size for place, size in enumerate(self.shape))

    def of(self, rows: Floats) -> Floats:
        """Return this field of rows as ``(n, *shape)``."""
        return rows[:, self.first : self.first + self.size].reshape(-1, *self.shape)

    def blank(self, values: Floats, ends: npt.NDArray[np.int64]) -> None:
        """Set values ``(n, *shape)`` from the end of each sample on to zero, in place."""
        if self.axis is not None:
            apart = np.moveaxis(values, 1 + self.axis, 1)
            apart[np.arange(self.shape[self.axis]) >= ends[:, None]] = 0.0

    def _cut(self, length: int) -> tuple[slice, ...]:
        return (slice(None), *(slice(length if place == self.axis else None) for place in range(len(self.shape))))


@dataclass(frozen=True)
class Lengths:
    """``values`` are the lengths for which there are programs, rising; the last one is the greatest.

    ``offsets`` says where the program of each begins; with a ``form`` those of all but the last one are made from it.
    ``inputs`` and ``outputs`` lie side by side in rows.
    """

    values: tuple[int, ...]
    offsets: tuple[int, ...]
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    form: Form | None = None

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)) or len(self.offsets) != len(self.values):
            raise ValueError(f"the lengths are {self.values}, with programs at {self.offsets}")
        if not any(each.axis is not None for each in self.inputs):
            raise ValueError("no input has a length")
        for each in (*self.inputs, *self.outputs):
            if each.axis is not None and each.shape[each.axis] != self.values[-1]:
                raise ValueError(f"a field of {each.shape} has not the length {self.values[-1]}")

    @cached_property
    def _values(self) -> npt.NDArray[np.int64]:
        return np.array(self.values)

    def ends(self, rows: Floats) -> npt.NDArray[np.int64]:
        """Return for each row how many positions it has without the padding at its end, at least one."""
        longest = self.values[-1]
        real = np.zeros((len(rows), longest), bool)
        for each in self.inputs:
            if each.axis is not None:
                apart = np.moveaxis(each.of(rows), 1 + each.axis, 1).reshape(len(rows), longest, -1) != each.pad
                real |= apart.any(axis=2)
        lengths = longest - real[:, ::-1].argmax(axis=1)
        lengths[~real.any(axis=1)] = 1
        return np.asarray(lengths, np.int64)

    def own(self, rows: Floats) -> npt.NDArray[np.int64]:
        """Return for each row the place in ``values`` of the length that it takes."""
        return np.searchsorted(self._values, self.ends(rows))

    def groups(self, ends: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """Return which rows with these ``ends`` run together: their numbers, after the place of their length.

        Groups have numbers of rows that are powers of two, so that few batch sizes need memory of their own.
        """
        own = np.searchsorted(self._values, ends)
        for place in np.unique(own):
            rest = np.flatnonzero(own == place)
            most = max(1, _TOKENS_TOGETHER // self.values[place])
            while len(rest):
                count = 1 << (min(len(rest), most).bit_length() - 1)
                yield int(place), rest[:count]
                rest = rest[count:]

    def packs(self, ends: npt.NDArray[np.int64]) -> Iterator[list[tuple[int, npt.NDArray[np.int64]]]]:
        """Return which rows with these ``ends`` run in one call: lists of groups.

        Without a form each group is alone. With one, rows run together in order of length, as many as have no more
        positions than one call computes.
        """
        if self.form is None:
            yield from ([group] for group in self.groups(ends))
            return
        own = np.searchsorted(self._values, ends)
        order = np.argsort(own, kind="stable")
        before = np.cumsum(self._values[own[order]])
        first = 0
        while first < len(order):
            done = before[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(before, done + _TOKENS_PACKED, side="right")))
            places, begins = np.unique(own[order[first:last]], return_index=True)
            if len(places) > _MOST_PIECES:
                last = first + int(begins[_MOST_PIECES])
            numbers = np.split(order[first:last], begins[1 : min(len(begins), _MOST_PIECES)])
            yield list(zip(places.tolist(), numbers, strict=False))
            first = last

    def cut(self, rows: Floats, place: int) -> Floats:
        """Return rows as the program of a length takes them."""
        if place == len(self.values) - 1:
            return np.ascontiguousarray(rows)
        length, count = self.values[place], len(rows)
        parts = [each.of(rows)[each._cut(length)].reshape(count, -1) for each in self.inputs]
        return np.ascontiguousarray(np.concatenate(parts, axis=1))

    def put(
        self, found: Floats, place: int, results: Floats, numbers: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> None:
        """Write what the program of a length gave for some rows, with these ``ends``, to their results.

        What an output has for padding becomes zeros.
        """
        length, first = self.values[place], 0
        for each in self.outputs:
            shape = each.at(length)
            size = math.prod(shape)
            part = found[:, first : first + size].reshape(-1, *shape)
            first += size
            if each.axis is None:
                results[numbers, each.first : each.first + each.size] = part.reshape(len(part), -1)
                continue
            whole = np.zeros((len(found), *each.shape), np.float32)
            whole[each._cut(length)] = part
            each.blank(whole, ends)
            results[numbers, each.first : each.first + each.size] = whole.reshape(len(found), -1)

    def blanked(self, rows: Floats, results: Floats) -> Floats:
        """Return results for ``rows`` with zeros where the runner has them: for padding."""
        found, ends = results.reshape(len(results), -1).copy(), self.ends(rows)
        for each in self.outputs:
            own = each.of(found).copy()
            each.blank(own, ends)
            found[:, each.first : each.first + each.size] = own.reshape(len(own), -1)
        return found.reshape(results.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; ``from_dict`` reads them back."""
        fields = {
            "inputs": [_to_dict(each) for each in self.inputs],
            "outputs": [_to_dict(each) for each in self.outputs],
        }
        if self.form is not None:
            return {"values": [self.values[0], self.values[-1]], "form": self.form.to_dict(), **fields}
        return {"values": list(self.values), "offsets": list(self.offsets), **fields}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Lengths:
        """Read what ``to_dict`` wrote. Raises ValueError, KeyError or TypeError on damage."""
        values, fields = tuple(int(each) for each in raw["values"]), []
        for name in ("inputs", "outputs"):
            fields.append(tuple(_field(each) for each in raw[name]))
        if "form" not in raw:
            return cls(values, tuple(int(each) for each in raw["offsets"]), fields[0], fields[1])
        if len(values) != 2 or not 1 <= values[0] <= values[1] <= LONGEST:
            raise ValueError(f"a form's lengths are {values}")
        return every(values[0], values[1], fields[0], fields[1], Form.from_dict(raw["form"]))


def every(least: int, longest: int, inputs: tuple[Field, ...], outputs: tuple[Field, ...], form: Form) -> Lengths:
    """Return a program for every length, made from a form. They stand before its block, in the order of lengths."""
    values = tuple(range(least, longest + 1))
    return Lengths(values, tuple(form.size * number for number in range(len(values))), inputs, outputs, form)


def ladder(longest: int) -> tuple[int, ...]:
    """Return lengths up to ``longest``: a sample has at most seven positions, or a quarter, more than it needs."""
    found = {longest}
    step, length = 8, 8
    while length < longest:
        found.add(length)
        if length >= 8 * step:
            step *= 2
        length += step
    return tuple(sorted(found))


def fields(shapes: Sequence[tuple[int, ...]], axes: Sequence[int | None], pads: Sequence[float]) -> tuple[Field, ...]:
    """Return fields that lie side by side in a row."""
    found, first = [], 0
    for shape, axis, pad in zip(shapes, axes, pads, strict=True):
        found.append(Field(first, tuple(shape), axis, pad))
        first += found[-1].size
    return tuple(found)


def _to_dict(field: Field) -> dict[str, Any]:
    return {"first": field.first, "shape": list(field.shape), "axis": field.axis, "pad": field.pad}


def _field(raw: Mapping[str, Any]) -> Field:
    axis = raw["axis"]
    return Field(
        int(raw["first"]), tuple(int(each) for each in raw["shape"]), None if axis is None else int(axis),
        float(raw["pad"]),
    )  # fmt: skip
