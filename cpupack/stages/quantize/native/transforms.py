"""Long Fourier transforms as two products with small matrices, instead of one with all waves.

A transform of ``first * second`` values is (Cooley and Tukey 1965): transforms of every ``second``-th value, and
transforms of their results with factors, which are part of the second matrices here. Values are real, so half the
results of each are those of the other half. What a matrix holds tells whether it is a transform: one that a user wrote
as a convolution is found too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cpupack.stages.quantize.native.floats import Floats
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, View, dense_steps, merged

_PANEL = 32
"""Columns that the kernel multiplies together (AVX-512)."""
_WORTH = 4
"""So many times fewer products have to be left: two products and copies are four layers more."""
_NEAR = 1e-6
_NEGATIVE = (Instruction(Function.MULTIPLY_NUMBER, number=-1.0),)


class Waves(NamedTuple):
    """A transform of real values that are multiplied with ``window``, float64: ``first * second`` of them.

    ``sign`` is that of the angles: -1 forward. ``whole`` is whether there are bins for negative frequencies.
    """

    window: torch.Tensor
    first: int
    second: int
    sign: int
    whole: bool

    @property
    def length(self) -> int:
        return self.first * self.second

    @property
    def groups(self) -> int:
        """Results of a first transform that are not those of others, in pairs."""
        return (self.first + 1) // 2


def waves_of(weight: torch.Tensor) -> Waves | None:
    """Return the transform that ``(2 * bins, length)`` is: real parts, then imaginary ones. None where it is none.

    None too where one product is as fast.
    """
    length, bins = weight.shape[1], weight.shape[0] // 2
    factors = _factors(length)
    if factors is None or weight.shape[0] % 2 or bins not in {length // 2 + 1, length}:
        return None
    window = weight[0].double()
    near = _NEAR * float(window.abs().max())
    if near == 0 or float(weight[bins].abs().max()) > near:
        return None  # the first imaginary part is zero: no other layer's weights are looked at further
    angles = _angles(torch.arange(bins), torch.arange(length), length)
    cosines, sines = torch.cos(angles) * window, torch.sin(angles) * window
    for sign in (-1, 1):
        if _is_near(weight, torch.cat([cosines, sign * sines]), near):
            return Waves(window, *factors, sign, bins == length)
    return None


def complex_waves_of(weight: torch.Tensor) -> Waves | None:
    """Return the transform of the real and the imaginary parts that ``(2 * length, 2 * length)`` is, None for none."""
    if weight.shape[0] != weight.shape[1] or weight.shape[0] % 2:
        return None
    length = weight.shape[0] // 2
    found = waves_of(weight[:, :length])
    if found is None:
        return None
    turned = torch.cat([-weight[length:, :length], weight[:length, :length]])  # times the imaginary unit
    return found if _is_near(weight[:, length:], turned, _NEAR * float(found.window.abs().max())) else None


def _is_near(weight: torch.Tensor, wanted: torch.Tensor, near: float) -> bool:
    return bool(((weight.double() - wanted).abs() <= near).all())


def _angles(one: torch.Tensor, two: torch.Tensor, length: int) -> torch.Tensor:
    """Return the angles of a product of numbers: modulo the length it is exact."""
    return 2 * torch.pi / length * (torch.outer(one, two) % length).double()


def _factors(length: int) -> tuple[int, int] | None:
    """Return the two sizes with the fewest products, None where one product of all is as fast."""

    def products(first: int) -> int:
        second = length // first
        groups = (first + 1) // 2
        return length * _wide(2 * groups) + groups * 2 * second * _wide(2 * second)

    found = min((each for each in range(3, length // 2 + 1) if length % each == 0), key=products, default=None)
    if found is None or _WORTH * products(found) > length * _wide(2 * (length // 2 + 1)):
        return None
    return found, length // found


def _wide(columns: int) -> int:
    return -(-columns // _PANEL) * _PANEL


def transformed(floats: Floats, rows: View, waves: Waves) -> View:
    """Append the transform of rows ``(rows, length)`` that lie anywhere, and return ``(rows, 2 * bins)``."""
    count, first, second, groups = rows.shape[0], waves.first, waves.second, waves.groups
    (row, step), half = rows.steps, waves.length // 2 + 1
    strided = View(rows.buffer, (second, count, first), (step, row, second * step), rows.first)
    pairs = floats.new((count, second * 2 * groups)).of_last(second, 2 * groups)
    floats.multiply(strided, Fixed(_first(waves)), out=pairs.permuted((1, 0, 2)))
    # A group reads its real and imaginary parts of all transforms: the step from one to the next is the same.
    parts = View(pairs.buffer, (groups, count, 2 * second), (1, pairs.steps[0], groups))
    ends = floats.new((count, groups * 2 * second)).of_last(groups, 2 * second)
    floats.multiply(parts, Fixed(_second(waves)), out=ends.permuted((1, 0, 2)))
    bins = waves.length if waves.whole else half
    out = floats.new((count, 2 * bins))
    _in_order(floats, ends, out, waves, bins)
    if waves.whole:  # of real values: those of negative frequencies are conjugated
        rest = waves.length - half
        for part, code in ((0, ()), (bins, _NEGATIVE)):
            mirrored = View(out.buffer, (count, rest), (out.steps[0], 1), part + 1)
            turned = View(out.buffer, (count, rest), (out.steps[0], -1), part + waves.length - 1)
            floats.map(turned, mirrored, None, code)
    return out


def transformed_pairs(floats: Floats, rows: View, waves: Waves) -> View:
    """Append the transform of ``(rows, 2 * length)``, real and imaginary parts, and return one of that shape."""
    count, length = rows.shape[0], waves.length
    (row, step), half, rest = rows.steps, length // 2 + 1, (length - 1) // 2
    if row != 2 * length * step:
        rows = floats.map(floats.new(rows.shape), rows)
        row, step = rows.steps
    split = View(rows.buffer, (2 * count, length), (row // 2, step), rows.first)
    found = transformed(floats, split, waves._replace(whole=False))
    out, pitch = floats.new(rows.shape), found.steps[0]

    def parts(own: int, part: int, begin: int, many: int) -> View:
        return View(found.buffer, (count, many), (2 * pitch, 1), own * pitch + part * half + begin)

    def to(part: int, begin: int, many: int, direction: int) -> View:
        return View(out.buffer, (count, many), (out.steps[0], direction), part * length + begin)

    add, subtract = [Instruction(Function.ADD)], [Instruction(Function.SUBTRACT)]
    floats.map(to(0, 0, half, 1), parts(0, 0, 0, half), parts(1, 1, 0, half), subtract)
    floats.map(to(1, 0, half, 1), parts(1, 0, 0, half), parts(0, 1, 0, half), add)
    if rest:
        floats.map(to(0, length - 1, rest, -1), parts(0, 0, 1, rest), parts(1, 1, 1, rest), add)
        floats.map(to(1, length - 1, rest, -1), parts(1, 0, 1, rest), parts(0, 1, 1, rest), subtract)
    return out


def layer_of(floats: Floats, view: View, weight: torch.Tensor) -> View | None:
    """Append the product of ``(..., length)`` with a matrix that is a long transform; None where it is none."""
    waves, make = waves_of(weight), transformed
    if waves is None:
        waves, make = complex_waves_of(weight), transformed_pairs
    if waves is None:
        return None
    found = make(floats, rows_of(floats, view), waves)
    shape = *view.shape[:-1], len(weight)
    return View(found.buffer, shape, dense_steps(shape), found.first)


def rows_of(floats: Floats, view: View) -> View:
    """Return ``(..., length)`` as ``(rows, length)``; values are copied where the rows have no step."""
    sizes, (steps,) = merged(view.shape[:-1], [view.steps[:-1]])
    if len(sizes) > 1:
        view = floats.side_by_side(view)
        sizes, (steps,) = merged(view.shape[:-1], [view.steps[:-1]])
    (size, step) = (sizes[0], steps[0]) if sizes else (1, 0)
    return View(view.buffer, (size, view.shape[-1]), (step, view.steps[-1]), view.first)


def _first(waves: Waves) -> torch.Tensor:
    """Return the matrices ``(second, first, 2 * groups)`` of every ``second``-th value: real parts, imaginary ones.

    The first result has no imaginary part; its place has the one in the middle, which has none either.
    """
    first, groups = waves.first, waves.groups
    angles = _angles(torch.arange(first), torch.arange(groups), first)
    real, imaginary = torch.cos(angles), waves.sign * torch.sin(angles)
    if first % 2 == 0:
        imaginary[:, 0] = 1 - 2.0 * (torch.arange(first) % 2)
    window = waves.window.reshape(first, waves.second).t()
    return (window[..., None] * torch.cat([real, imaginary], 1)).float()


def _second(waves: Waves) -> torch.Tensor:
    """Return the matrices ``(groups, 2 * second, 2 * second)``.

    A group's results are the bins ``group + first * i`` up to the middle, real parts and imaginary ones, then the
    bins ``first - group + first * i``, of conjugated values. The bin in the middle is where the first one's imaginary
    part would be, which is zero.
    """
    first, second, length = waves.first, waves.second, waves.length
    places, upward, downward = torch.arange(second), (second + 1) // 2, second // 2
    found = torch.zeros(waves.groups, second, 2, 2 * second, dtype=torch.float64)

    def waved(bins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = _angles(places, bins, length)
        return torch.cos(angles), waves.sign * torch.sin(angles)

    for group in range(waves.groups):
        begin, each = 0, found[group]
        for many, own, conjugate in ((upward, group, 1), (downward, first - group, -1)):
            if group == 0 and own:  # the result in the middle, real, takes the place of imaginary parts
                own = first // 2
            cosines, sines = waved(own + first * torch.arange(many))
            real, imaginary = each[:, :, begin : begin + many], each[:, :, begin + many : begin + 2 * many]
            begin += 2 * many
            if group == 0:
                part = 0 if own == 0 else 1
                real[:, part], imaginary[:, part] = cosines, sines
            else:
                real[:, 0], real[:, 1] = cosines, -conjugate * sines
                imaginary[:, 0], imaginary[:, 1] = sines, conjugate * cosines
    if length % 2 == 0:
        cosines, _ = waved(torch.tensor([length // 2]))
        found[0, :, :, upward] = 0
        found[0, :, 0 if second % 2 == 0 else 1, upward] = cosines[:, 0]
    return found.reshape(waves.groups, 2 * second, 2 * second).float()


def _in_order(floats: Floats, ends: View, out: View, waves: Waves, bins: int) -> None:
    """Append the copies of the groups' results to their bins."""
    count, first, groups = out.shape[0], waves.first, waves.groups
    row, (far, wide, _), half = out.steps[0], ends.steps, waves.length // 2
    upward, downward = (waves.second + 1) // 2, waves.second // 2

    def copied(many: int, size: int, step: int, source: int, target: int) -> None:
        shape = count, 2, many, size
        from_ = View(ends.buffer, shape, (far, many, 1, wide), source)
        floats.map(View(out.buffer, shape, (row, bins, first, step), target), from_)

    copied(upward, groups, 1, 0, 0)
    copied(downward, groups - 1, -1, wide + 2 * upward, first - 1)
    if first % 2 == 0:
        copied(downward, 1, 1, 2 * upward, first // 2)
    if waves.length % 2 == 0:
        middle = View(ends.buffer, (count, 1), (far, 1), upward)
        floats.map(View(out.buffer, (count, 1), (row, 1), half), middle)
        floats.map(View(out.buffer, (count, 2), (row, half), bins), Fixed(torch.zeros(1, 1)))
    else:
        floats.map(View(out.buffer, (count, 1), (row, 1), bins), Fixed(torch.zeros(1, 1)))
