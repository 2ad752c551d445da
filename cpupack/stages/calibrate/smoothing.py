"""Brings the channels of tokens to nearer sizes before they become codes, where a linear layer then loses less.

In a transformer a few channels are many times as large as the others, which share few codes then. Divided by a number
of its own, each channel has more codes; the weights are multiplied with it, so that the layer computes the same (Xiao
et al. 2022). The engine gives each token a scale at run time, and divides in the same pass.
"""

from __future__ import annotations

import torch

from cpupack.graph.row_grid import round_rows
from cpupack.graph.weight_grid import round_to_grid

_ROWS = 256
_SHARES = (0.35, 0.5, 0.65)
"""How much of the difference between channels goes from the tokens to the weights."""
_LEAST_GAIN_DB = 0.5
"""Below it the division is not worth its time."""


def divisors_of(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """Return the divisors of the channels of ``rows (n, in)`` with which ``weight (out, in)`` loses least.

    None where that is less than 0.5 dB better than without. The values of the rows must be finite for any.
    """
    largest, weights = rows.abs().amax(0), weight.abs().amax(0)
    if not (bool(torch.isfinite(largest).all()) and float(largest.max()) > 0 and float(weights.max()) > 0):
        return None
    # A channel without values, or without weights, is not divided by anything extreme.
    largest, weights = largest.clamp(min=1e-3 * float(largest.max())), weights.clamp(min=1e-3 * float(weights.max()))
    some = rows[:: max(1, len(rows) // _ROWS)]
    wanted = some @ weight.T
    least, best = _error(some, weight, wanted) / 10 ** (_LEAST_GAIN_DB / 10), None
    for share in _SHARES:
        divisors = largest**share / weights ** (1 - share)
        divisors = divisors / divisors.log().mean().exp()
        error = _error(some / divisors, weight * divisors, wanted)
        if error < least:
            least, best = error, divisors
    return best


def _error(rows: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the squared error of a layer in INT8, each row with a scale of its own."""
    return float((round_rows(rows) @ round_to_grid(weight, 0).T - wanted).square().sum())
