"""The 1797 handwritten digits of scikit-learn as 8 x 8 grey pixels, split once and for all.

They are the test part of the Optical Recognition of Handwritten Digits data set (E. Alpaydin, C. Kaynak, UCI, 1998):
white ink on black, values 0..16. cpupack's pixels are uint8, so 16 becomes 255.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

HELD_OUT_SHARE = 0.3
"""Of every class, the last images in the data set's own order: no random generator whose stream could change."""


def training_set() -> tuple[Pixels, Labels]:
    """Return pixels uint8 ``(n, 8, 8, 1)`` and labels int64 ``(n,)`` to train and calibrate with."""
    return _part(held_out=False)


def held_out_set() -> tuple[Pixels, Labels]:
    """Return pixels and labels that neither training nor calibration ever sees, stratified by class."""
    return _part(held_out=True)


def calibration() -> Iterator[Pixels]:
    """``[calibration] source``: training images, each uint8 ``(8, 8, 1)``."""
    yield from training_set()[0]


def held_out() -> Iterator[tuple[Pixels, int]]:
    """``[evaluation] source``: held-out images with their labels."""
    for pixels, label in zip(*held_out_set(), strict=True):
        yield pixels, int(label)


def _part(*, held_out: bool) -> tuple[Pixels, Labels]:
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    chosen = np.zeros(len(labels), dtype=bool)
    for digit in np.unique(labels):
        rows = np.flatnonzero(labels == digit)
        chosen[rows[len(rows) - round(HELD_OUT_SHARE * len(rows)) :]] = True
    wanted = chosen if held_out else ~chosen
    return pixels[wanted], labels[wanted]
