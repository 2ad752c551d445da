"""``[evaluation] metric``: calls the user's own function of outputs and targets and checks its answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.errors import CpupackError, VerificationError
from cpupack.model.user_code import describe_failure

Outputs = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]
"""What a call of the runner gives."""
Rows = npt.NDArray[np.int64]


OfRows = Callable[[Rows], float]
"""A metric as a function of rows of samples, NaN where the drawn ones have nothing to measure."""
Prepare = Callable[[Outputs, npt.NDArray[Any]], OfRows]


def of_sums(counts: npt.NDArray[Any], value: Callable[[npt.NDArray[Any]], float]) -> OfRows:
    """Return the metric ``value`` of the sum over samples of counts ``(n, ...)``.

    It is NaN where the sum has nothing to measure. A sample that is drawn twice does not see itself.
    """
    return lambda rows: value(counts[rows].sum(axis=0))


@dataclass(frozen=True)
class Metric:
    """A user's metric.

    ``name`` is the text in the recipe. ``goal`` says which values are better, ``max`` or ``min``. ``resampled`` asks
    for intervals, which take some thousand draws of the samples. ``prepare`` does what needs to be done once for all
    draws; without it each draw is a call of the function.
    """

    name: str
    goal: str
    function: Callable[..., Any]
    resampled: bool = False
    prepare: Prepare | None = None

    def measure(self, outputs: Callable[[Rows], Outputs], targets: npt.NDArray[Any]) -> OfRows:
        """Return the metric as a function of rows of samples, NaN where the drawn ones have nothing to measure.

        ``outputs`` gives the outputs of rows.
        """
        if self.prepare is not None:
            return self.prepare(outputs(np.arange(len(targets))), targets)

        def measured(rows: Rows) -> float:
            try:
                return self(outputs(rows), targets[rows])
            except VerificationError:  # such as samples without any box: all samples together have passed
                return float("nan")

        return measured

    def __call__(self, outputs: Outputs, targets: npt.NDArray[Any]) -> float:
        """Return the function's answer on what the runner gives and targets ``(n, ...)``.

        Outputs are ``(n, *output_shape)``, or a dict of such arrays by name for a model with several.

        The function gets copies, so it may change them. Raises VerificationError with the function's name when it
        fails or returns anything but one finite number.
        """
        try:
            given = (
                {name: each.copy() for name, each in outputs.items()} if isinstance(outputs, dict) else outputs.copy()
            )
            answer = self.function(given, targets.copy())
        except CpupackError:
            raise
        except (Exception, SystemExit) as error:
            raise VerificationError(f"[evaluation] metric {self.name} failed: {describe_failure(error)}") from error
        try:
            value = float(answer)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if not math.isfinite(value):
            raise VerificationError(
                f"[evaluation] metric {self.name} returned {answer!r}; it must be one finite number",
                hint="the function gets outputs (n, ...), a dict of them if the model has several, and targets "
                "(n, ...) as numpy arrays, and returns a float",
            )
        return value

    def drop(self, fp32: float, int8: float) -> float:
        """Return how much worse INT8 is than FP32, negative where it is better."""
        return fp32 - int8 if self.goal == "max" else int8 - fp32
