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
_ENOUGH = 256
"""Rows whose largest values are those that are to come, too: tokens of a few samples."""
_SMALLEST, _SMALLEST_OF_FEW = 1e-3, 1 / 16
"""What a channel's largest value is taken for at least, as a share of the largest of all channels."""


def divisors_of(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    """Return the divisors of the channels of ``rows (n, in)`` with which ``weight (out, in)`` loses least.

    None where that is less than 0.5 dB better than without. The values of the rows must be finite for any.

    Few rows do not show how large a channel gets: one that is zero in all of them would be divided by next to nothing,
    and fill the range of the first row in which it is not. So each half of them must lose less with what the other half
    says, and no channel is taken for much smaller than the largest.
    """
    if len(rows) >= _ENOUGH:
        return _fitted(rows, weight, rows, _SMALLEST)
    halves = rows[0::2], rows[1::2]
    if min(len(each) for each in halves) < 2:
        return None
    if any(_fitted(one, weight, other, _SMALLEST_OF_FEW) is None for one, other in (halves, halves[::-1])):
        return None
    return _fitted(rows, weight, rows, _SMALLEST_OF_FEW)


def _fitted(rows: torch.Tensor, weight: torch.Tensor, judged: torch.Tensor, smallest: float) -> torch.Tensor | None:
    """Return the divisors for ``rows`` with which the layer loses least on others, ``judged``."""
    largest, weights = rows.abs().amax(0), weight.abs().amax(0)
    if not (bool(torch.isfinite(largest).all()) and float(largest.max()) > 0 and float(weights.max()) > 0):
        return None
    # A channel without values, or without weights, is not divided by anything extreme.
    largest, weights = (
        largest.clamp(min=smallest * float(largest.max())),
        weights.clamp(min=1e-3 * float(weights.max())),
    )
    some = judged[:: max(1, len(judged) // _ROWS)]
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
