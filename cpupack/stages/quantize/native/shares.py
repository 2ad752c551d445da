"""Finds numbers of a constant that follow from the size without being whole: one divided by the number of pixels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cpupack.errors import QuantizationError
from cpupack.runtime.engine.sizes import LAWS, Share
from cpupack.size_terms import Fit, Ints

Floats = npt.NDArray[np.float64]
_MOST = 2.0**40
_NEAR = 1e-6
"""How much the same factor may seem to differ between sizes: float32 has 24 bits."""


def share_of(place: int, values: npt.NDArray[np.float32], fit: Fit, what: str) -> Share:
    """Return how the number at ``place`` is made, which is ``values`` at each size. Raises QuantizationError."""
    own = values.astype(np.float64)
    if np.isfinite(own).all() and (own != 0).all():
        for found, numbers in _guesses(place, own, fit, what):
            if np.array_equal(found.values(numbers), values):
                return found
    raise QuantizationError(f"{what} changes in another way than the size does")


def _guesses(place: int, values: Floats, fit: Fit, what: str) -> Iterator[tuple[Share, Ints]]:
    """Yield shares, each with the number that it is of at each size."""
    for law, numbers in (
        ("inverse", 1 / np.abs(values)),
        ("inverse_root", 1 / np.square(values)),
        ("root", np.square(values)),
    ):
        if numbers.max() < _MOST:  # of a number itself, or of one less, as of a variance
            whole = np.rint(numbers).astype(np.int64)
            with contextlib.suppress(QuantizationError):  # another law may be the one
                yield Share(place, float(np.sign(values[0])), law, fit.terms(whole, what)), whole
    for number, powers in enumerate(fit.powers.T):
        if number == 0 or not powers.all():
            continue
        one = tuple(int(each == number) for each in range(len(fit.products)))
        for law in LAWS:
            factors = values / LAWS[law](powers.astype(np.float64))
            if np.ptp(factors) <= _NEAR * np.abs(factors).max():
                for factor in (*factors.astype(np.float32), *factors):
                    yield Share(place, float(factor), law, one), powers
        if (values > 1).all():  # what is left of n / (n - 1) tells how many that are for each position
            place_of_most = int(values.argmax())
            each = round((1 / (values[place_of_most] - 1) + 1) / int(powers[place_of_most]))
            yield Share(place, 1.0, "unbiased", tuple(each * term for term in one)), each * powers
