"""Finds the pairs of a layer's weights whose 16-bit sums, as VPMADDUBSW computes them, overflow on given activations.

The instruction multiplies unsigned by signed bytes and adds neighbouring products in 16 bits, with saturation (Intel
SDM, volume 2, PMADDUBSW). The packing of the weights decides which products are neighbours. fbgemm and oneDNN order the
weights of a filter by kernel position, then by input channel of the group, and group them by two or four. oneDNN pads
the channels of a position to four, and a row of the kernel may begin a new pair. Therefore this module checks every two
consecutive weights in that order, at both alignments. These are more pairs than any packing makes.

The sum of two products with unlike signs cannot overflow, because |255 * w| <= 32640. With equal signs it can if
w1 and w2 satisfy |w1| + |w2| > 128. For such a pair it is enough to know, for each value of the first activation, the
largest value of the second that occurred with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads

MOST, LEAST = 2**15 - 1, -(2**15)
CODES = 256
_CHUNK = 2**15


@dataclass(frozen=True)
class Geometry:
    """Kernel, stride, padding and groups of a convolution. A linear layer has no spatial dimensions."""

    groups: int = 1
    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    transposed: bool = False


@dataclass(frozen=True)
class PairSums:
    """The result for a layer's 16-bit sums.

    ``bound`` is the largest magnitude that any uint8 activations can give. ``pairs`` pairs of weights were checked, and
    ``overflows`` of them overflow on the data. ``largest`` is the largest magnitude among these, None if none does.
    """

    pairs: int
    bound: int
    overflows: int
    largest: int | None


class PairWatcher:
    """Collects a layer's inputs and computes the result for its 16-bit sums.

    ``weights`` is int8 ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` for a transposed
    convolution. Pairs at the same position are checked on all pixels, even those that a stride skips.
    """

    def __init__(self, weights: torch.Tensor, geometry: Geometry) -> None:
        self._geometry = geometry
        self._kernel = tuple(weights.shape[2:])
        self._weights = _by_group(weights.to(torch.int32), geometry)  # (groups, out of a group, taps, in of a group)
        groups, _, taps, channels = self._weights.shape
        # For each pair of weights, and each code of the first activation: the largest code of the second activation.
        self._within = torch.zeros((groups, channels - 1, CODES), dtype=torch.uint8)
        self._across = torch.zeros((taps - 1, groups, CODES), dtype=torch.uint8)

    def add(self, codes: torch.Tensor, zero_point: int) -> None:
        """Add a batch of inputs: uint8 ``(n, in, *spatial)``, for a linear layer ``(..., in)``."""
        if not self._kernel:
            codes = codes.reshape(-1, codes.shape[-1])
        groups, channels = self._weights.shape[0], self._weights.shape[3]
        pixels = codes.movedim(1, -1).reshape(-1, groups, channels)
        for part in pixels.split(max(2**22 // (groups * channels), 1)):
            _note(self._within, part[..., :-1], part[..., 1:])
        if self._geometry.transposed:
            self._bound_across(pixels)
        elif len(self._across):
            self._add_across(codes, zero_point)
        if any(self._geometry.padding):
            self._within[..., zero_point] = self._within[..., zero_point].clamp(min=zero_point)

    def finish(self) -> PairSums:
        """Return the result for all inputs that were added."""
        weights = self._weights
        groups, rows, taps, channels = weights.shape
        pairs = groups * rows * (taps * (channels - 1) + taps - 1)
        bound = CODES - 1
        overflows, largest = 0, 0
        for first, second, table in self._candidates():
            together = torch.where(first.sign() == second.sign(), (first + second).abs(), 0)
            bound = max(bound, int(together.max()) * (CODES - 1)) if together.numel() else bound
            for count, magnitude in _overflows(first, second, table):
                overflows += count
                largest = max(largest, magnitude)
        single = int(weights.abs().max()) * (CODES - 1)
        return PairSums(pairs, max(bound, single), overflows, largest if overflows else None)

    def _candidates(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield first and second weights ``(pairs, rows)`` with the table of their pairs ``(pairs, codes)``."""
        weights = self._weights.movedim(1, -1)  # (groups, taps, in, out)
        for tap in range(weights.shape[1]):
            first, second = weights[:, tap, :-1], weights[:, tap, 1:]
            yield first.flatten(0, 1), second.flatten(0, 1), self._within.flatten(0, 1)
        for tap, table in enumerate(self._across):
            yield weights[:, tap, -1], weights[:, tap + 1, 0], table

    def _add_across(self, codes: torch.Tensor, zero_point: int) -> None:
        """Record pairs across positions: the last channel at a kernel position and the first channel at the next."""
        geometry, channels = self._geometry, self._weights.shape[3]
        pads = [pad for pad in reversed(geometry.padding) for _ in range(2)]
        padded = F.pad(codes, pads, value=zero_point)
        last, first = padded[:, channels - 1 :: channels], padded[:, ::channels]
        positions = list(product(*map(range, self._kernel)))
        for table, (here, there) in zip(self._across, pairwise(positions), strict=True):
            a, b = self._seen_from(last, here), self._seen_from(first, there)
            _note(table, a.movedim(1, -1).flatten(0, -2), b.movedim(1, -1).flatten(0, -2))

    def _seen_from(self, padded: torch.Tensor, position: tuple[int, ...]) -> torch.Tensor:
        """Return the pixels that one position of the kernel is multiplied with."""
        slices = [slice(None), slice(None)]
        spans = zip(position, self._kernel, self._geometry.dilation, padded.shape[2:], strict=True)
        for (index, size, dilation, length), stride in zip(spans, self._geometry.stride, strict=True):
            out = (length - dilation * (size - 1) - 1) // stride + 1
            start = index * dilation
            slices.append(slice(start, start + (out - 1) * stride + 1, stride))
        return padded[tuple(slices)]

    def _bound_across(self, pixels: torch.Tensor) -> None:
        """Assume the largest codes for neighbours: a transposed kernel's positions meet pixels in another order."""
        last, first = pixels[..., -1].amax(dim=0), pixels[..., 0].amax(dim=0)
        reached = torch.arange(CODES) <= last[:, None]
        self._across[:] = torch.maximum(self._across, torch.where(reached, first[:, None], 0).to(torch.uint8))


def _by_group(weights: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Return the weights as ``(groups, out of a group, taps, in of a group)``."""
    groups = geometry.groups
    flat = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    return flat.permute(0, 2, 3, 1) if geometry.transposed else flat.permute(0, 1, 3, 2)


def _note(table: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    """Raise ``table[pair, code of first]`` to the codes of ``second``; both are uint8 ``(n, *pairs)``.

    Codes whose sum is below 256 cannot overflow, because 255 * 128 < 2^15. They are left out, and most codes are such.
    """
    found = (first.to(torch.int16) + second >= CODES).nonzero(as_tuple=True)
    if not len(found[0]):
        return
    pair = found[1]
    for index, size in zip(found[2:], first.shape[2:], strict=True):
        pair = pair * size + index
    key = pair * CODES + first[found]
    table.view(-1).scatter_reduce_(0, key, second[found], "amax")


def _overflows(first: torch.Tensor, second: torch.Tensor, table: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield, part by part, how many of the pairs of weights ``(pairs, rows)`` overflow, and the largest magnitude."""
    risky = (first.sign() == second.sign()) & ((first + second).abs() * (CODES - 1) > MOST) & table.any(1)[:, None]
    rows = risky.nonzero(as_tuple=True)
    codes = torch.arange(CODES, dtype=torch.int32)
    for pair, row in zip(rows[0].split(_CHUNK), rows[1].split(_CHUNK), strict=True):
        a, b = first[pair, row], second[pair, row]
        seconds = table[pair].to(torch.int32)
        sums = torch.where(seconds > 0, codes * a.abs()[:, None] + seconds * b.abs()[:, None], 0).amax(1)
        over = sums > torch.where(a > 0, MOST, -LEAST)
        if over.any():
            yield int(over.sum()), int(sums[over].max())
