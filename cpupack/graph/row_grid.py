"""The codes of rows of activations that have a scale and a zero point each, as the native engine makes them."""

from __future__ import annotations

import torch

_STEPS = 255


def round_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return ``rows (n, in)`` rounded to 8 bits and back, each row between its own extremes and zero."""
    low, high = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / _STEPS).clamp(min=1e-30)
    zero_point = torch.round(-low / scale)
    return (torch.clamp(torch.round(rows / scale + zero_point), 0, _STEPS) - zero_point) * scale
