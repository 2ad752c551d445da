"""How numbers change with the size of a model's inputs, and at which sizes a model is lowered to find that out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.open_sizes import OpenSizes, Size, Terms, terms_of

Ints = npt.NDArray[np.int64]
Products = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True)
class Fit:
    """Multiples of each side at each size, ``(sizes, sides)``. ``products`` are those of ``OpenSizes``."""

    sides: Ints
    products: Products

    @cached_property
    def powers(self) -> Ints:
        """The products at each size, ``(sizes, products)``."""
        return _powers(self.sides, self.products)

    def terms(self, values: Ints, what: str) -> Terms:
        """Return the terms of a number that is ``values`` at each size. Raises QuantizationError where it has none."""
        return terms_of(self.all_terms(values[:, None], what)[0].tolist())

    def all_terms(self, values: Ints, what: str) -> Ints:
        """Return the terms ``(n, terms)`` of numbers that are ``values`` ``(sizes, n)``."""
        near, used = self._near
        # Of the distances to the first size, which are small: rounding finds the terms.
        solved = np.linalg.lstsq(near[:, used].astype(np.float64), (values - values[0]).astype(np.float64), rcond=None)
        found = np.zeros((len(self.products), values.shape[1]), np.int64)
        found[0] = values[0]
        first = self.sides[0]
        for place, terms in zip(used, np.rint(solved[0]).astype(np.int64), strict=True):
            own = self.products[place]
            assert own is not None
            found[place] += terms
            if len(own) == 1:
                found[0] -= terms * first[own[0]]
            elif len(own) == 2:  # (x - p)(y - q) = x y - q x - p y + p q
                found[self.products.index((own[0],))] -= terms * first[own[1]]
                found[self.products.index((own[1],))] -= terms * first[own[0]]
                found[0] += terms * first[own[0]] * first[own[1]]
        if not np.array_equal(self.powers @ found, values):
            raise refused(f"{what} changes in another way than the size does")
        return np.ascontiguousarray(found.T)

    @cached_property
    def _near(self) -> tuple[Ints, list[int]]:
        """The products of distances from the first size, and which of them these sizes can tell apart."""
        near = _powers(self.sides - self.sides[0], self.products)
        used: list[int] = []
        for place in range(1, len(self.products)):
            if np.linalg.matrix_rank(near[:, [*used, place]]) > len(used):
                used.append(place)
        return near, used


def probes(typical: Size, sizes: OpenSizes) -> list[Size]:
    """Return the sizes at which a model is lowered: the typical one first, and last one to check the others by."""
    if len(sizes.names) == 1:
        return _lengths(typical[1], sizes)
    others, between = [], []
    for place, (own, low, high, step) in enumerate(zip(typical, sizes.least, sizes.most, sizes.multiple, strict=True)):
        other = low if low != own else min(high, own + step)
        near = low + (own - low) // step // 2 * step if own - low >= 2 * step else min(high, own + 2 * step)
        if sizes.inputs and near + place * step < own:  # two names of one size may be computed as one
            other, near = other + place * step, near + place * step
        others.append(other)
        between.append(near)
    found = [tuple(typical)]
    for product in sizes.products:
        own_sides = list(typical)
        for place in product or ():
            own_sides[place] = others[place]
        if product and len(set(product)) < len(product):  # a square: a third size of that name
            place = product[0]
            own_sides[place] = between[place]
        found.append(tuple(own_sides))
    return list(dict.fromkeys([*found, _check(found, between, sizes)]))


def _check(found: Sequence[Size], between: Sequence[int], sizes: OpenSizes) -> Size:
    """Return a size to check others by: between the least and the typical one, or near that where it is asked already.

    Of a name that has a square, three sizes are asked already: a fourth one can tell that it is no square. Where the
    typical size has an even number of multiples it has an odd one, because half of a size may decide which values are
    read (``torch.roll(x, x.shape[-1] // 2, -1)``) and change no shape.
    """
    checked = []
    steps = zip(found[0], between, sizes.least, sizes.most, sizes.multiple, strict=True)
    for place, (own, near, low, high, step) in enumerate(steps):
        known = {size[place] for size in found} if (place, place) in sizes.products else set()
        others = (near, *(near + sign * number * step for number in (1, 2, 3) for sign in (1, -1)))
        taken = [each for each in others if low <= each <= high and each not in known]
        checked.append(min(taken, key=lambda each: (each - own) // step % 2 == 0, default=near))
    return tuple(checked)


def _lengths(own: int, sizes: OpenSizes) -> list[Size]:
    """Return the lengths at which a model with one named dimension is lowered: squares need three, and one checks."""
    low, high, step = sizes.least[1], sizes.most[1], sizes.multiple[1]
    first, last = low // step, high // step
    between = [first + (own // step - first) // 2, own // step - 1, own // step + 1, first + 1, own // step + 2]
    numbers = dict.fromkeys([own // step, first, *(each for each in between if first <= each <= last)])
    return [(1, number * step) for number in list(numbers)[:4]]


def refused(why: str) -> QuantizationError:
    """Return the error for a model that has no program for any size."""
    return QuantizationError(
        f"the model has no program for inputs of any size: {why}",
        hint="sizes that are closer to each other have programs that are more alike ([sizes] min and typical); or "
        "leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
    )


def _powers(sides: Ints, products: Products) -> Ints:
    """Return each product of sides ``(sizes, products)``."""
    columns = [
        np.zeros(len(sides), np.int64) if each is None else sides[:, list(each)].prod(axis=1, dtype=np.int64)
        for each in products
    ]
    return np.stack(columns, 1)
