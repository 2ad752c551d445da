"""Refuses classes in targets that no result could ever equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import VerificationError

Array = npt.NDArray[Any]


def check_whole(metric: str, values: Array, what: str) -> None:
    """Raise VerificationError where ``what``, numbers of classes, have fractions: they would be rounded down."""
    bad = values[values != np.rint(values)]
    if bad.size:
        raise VerificationError(
            f"[evaluation] metric {metric}: {what} have {bad[0]:g}; a class is a whole number",
            hint="round probabilities yourself, and resize masks by their nearest pixels",
        )


def check_classes(metric: str, given: Array, count: int | None, where: str) -> None:
    """Raise VerificationError where targets have a class that the model does not: no result could ever equal it."""
    most = int(given.max(initial=0))
    if count is not None and most >= count:
        raise VerificationError(
            f"[evaluation] metric {metric}: {where} have class {most}, and the model has the classes 0 to {count - 1}",
            hint="number the classes as the model does",
        )
