"""Finds the closest weights whose products fit into the 16-bit sums of AVX2.

AVX2 multiplies bytes with VPMADDUBSW, which adds two products in 16 bits and saturates. With activations of 0..255, a
sum fits for any activations if its positive weights add up to at most 128, and its negative weights too, because
255 * 128 = 32640. Two products are always added in this way. In a convolution four are, if the weights allow it
(``kernels/avx2/conv_in_registers.inc``). Most sums of a trained layer already fit. The grid of each channel is made
coarser in small steps, until clipping the remaining sums costs less than the next step.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.accuracy import sqnr_db
from cpupack.graph.weight_grid import LARGEST_CODE, weight_scales
from cpupack.stages.quantize.native.pack import arrange_conv, arrange_depthwise

LARGEST_SUM = 128
_GRIDS = (127, 116, 106, 97, 89, 81, 74, 68, 64, 58, 53, 48, 44, 40, 36, 32)
"""The largest codes to try. With 64 any two weights fit, with 32 any four."""
_LEAST_DB = 35.0
"""Below this SQNR of the weights, sums of four are not used. 8-bit activations cost about as much in a network."""
_SUMS_LOOKED_AT = 1024
"""At most this many sums of each row, spread evenly, are used to choose its grid. More would change little."""
_AT_ONCE = 1 << 15
"""Number of weights to process together. They fit into a cache, and one thread is enough."""


class Fit(IntEnum):
    """How many products fit into one 16-bit sum (``enum cpupack_fit``)."""

    UNKNOWN = 0
    PAIRS = 1
    FOURS = 2


def fit_of(weights: npt.NDArray[np.int8], groups: int, *, dilated: bool) -> Fit:
    """Return how many products fit for a convolution's int8 weights ``(out, in / groups, height, width)``."""
    sums = _by_sums(arrange_conv(weights, groups, dilated=dilated))
    if _all_fit(sums, 4):
        return Fit.FOURS
    return Fit.PAIRS if _all_fit(sums, 2) else Fit.UNKNOWN


def fit_of_depthwise(weights: npt.NDArray[np.int8], stride: int, *, dilated: bool, depth: int = 1) -> Fit:
    """Return how many products fit for a depthwise convolution's int8 weights ``(channels, depth * height, width)``."""
    places, _ = arrange_depthwise(weights, stride, dilated=dilated, depth=depth)
    return Fit.PAIRS if _all_fit(places.reshape(len(places), -1), 2) else Fit.UNKNOWN


def bound_of(
    weights: npt.NDArray[np.int8], groups: int, fit: Fit, *, dilated: bool, depthwise: bool
) -> tuple[int, int]:
    """Return the largest magnitude of a 16-bit sum that any activations give, and how many such sums an output has."""
    members = 4 if fit is Fit.FOURS else 2
    if depthwise:
        rows, _ = arrange_depthwise(weights[:, 0], 1, dilated=dilated)
    else:
        rows = _by_sums(arrange_conv(weights, groups, dilated=dilated))
    sums = rows.astype(np.int64).reshape(len(rows), -1, members)
    return 255 * int(max(sums.clip(min=0).sum(-1).max(), -sums.clip(max=0).sum(-1).min())), sums.shape[1]


def limit_conv(
    weight: torch.Tensor, groups: int, *, dilated: bool, per_channel: bool, most: int = 4
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return int8 weights whose sums of four fit, closest to FP32 ``(out, in / groups, height, width)``, and scales.

    If sums of four cost too much accuracy, or if ``most`` is 2, only sums of two fit. The scales are float64
    ``(out,)``, all equal unless ``per_channel``.
    """
    values = weight.float().numpy()
    numbers = np.arange(1, values.size + 1).reshape(values.shape)  # 0 marks the padding of the packing
    places = _by_sums(arrange_conv(numbers, groups, dilated=dilated)).reshape(-1)
    rows = torch.from_numpy(_by_sums(arrange_conv(values, groups, dilated=dilated)))
    finest = weight_scales(weight, 0 if per_channel else None).flatten().expand(len(rows))
    for members in (4, 2) if most == 4 else (2,):
        codes, scales = _limited(rows, finest, members, per_channel=per_channel)
        if members == 2 or sqnr_db(rows.numpy(), (codes * scales[:, None]).numpy()) >= _LEAST_DB:
            break
    found = np.zeros(values.size + 1, np.int8)
    found[places] = codes.to(torch.int8).numpy().reshape(-1)
    return found[1:].reshape(values.shape), scales.double().numpy()


def limit_depthwise(weight: torch.Tensor, *, per_channel: bool) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return int8 weights and scales for ``(channels, 1, height, width)``: any two neighbours in a row fit."""
    taps = weight.float()[:, 0]
    finest = weight_scales(weight, 0 if per_channel else None).flatten().expand(len(taps))
    # Pairs overlap: a tap is in two of them. The lower of its two codes fits both.
    following = torch.nn.functional.pad(taps[..., 1:], (0, 1))
    pairs = torch.stack([taps, following], -1)
    _, scales = _limited(pairs.flatten(1), finest, 2, per_channel=per_channel)
    exact = taps / scales[:, None, None]
    codes = exact.round().clamp(-LARGEST_CODE, LARGEST_CODE)
    for sign in (1, -1):
        for first in range(taps.shape[-1] - 1):
            pair = slice(first, first + 2)
            part = (sign * codes[..., pair]).clamp(min=0)
            lowered = _lowered(part.flatten(0, 1), (sign * exact[..., pair]).flatten(0, 1)).view_as(part)
            codes[..., pair] = torch.where(part > 0, sign * lowered, codes[..., pair])
    return codes.to(torch.int8).numpy()[:, None], scales.double().numpy()


def _by_sums(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows ``(out, runs, chunks, chunk)`` as ``(out, k)``, so that the weights of a 16-bit sum are neighbours.

    Of eight weights, numbers 0, 1, 4 and 5 form one sum of four, and numbers 2, 3, 6 and 7 the next. Chunks are filled
    up to a multiple of eight with zeros.
    """
    filled = np.pad(rows, ((0, 0), (0, 0), (0, 0), (0, -rows.shape[-1] % 8)))
    return np.ascontiguousarray(filled.reshape(len(rows), -1, 2, 2, 2).swapaxes(2, 3)).reshape(len(rows), -1)


def _all_fit(rows: npt.NDArray[Any], members: int) -> bool:
    sums = rows.astype(np.int16).reshape(len(rows), -1, members)
    return bool(max(sums.clip(min=0).sum(-1).max(), -sums.clip(max=0).sum(-1).min()) <= LARGEST_SUM)


def _limited(
    rows: torch.Tensor, finest: torch.Tensor, members: int, *, per_channel: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes of rows ``(out, k)`` whose sums of ``members`` fit, and scales ``(out,)``, by least squares."""
    sums = rows.unflatten(1, (-1, members))
    looked_at = sums[:, :: -(-sums.shape[1] // _SUMS_LOOKED_AT)]
    count = max(1, _AT_ONCE // looked_at[0].numel())
    losses = torch.cat(
        [_losses(some, by) for some, by in zip(looked_at.split(count), finest.split(count), strict=True)]
    )
    best = (losses if per_channel else losses.sum(0, keepdim=True)).argmin(1).expand(len(rows))
    scales = finest * (LARGEST_CODE / torch.tensor(_GRIDS, dtype=torch.float32)[best])
    count = max(1, _AT_ONCE // rows.shape[1])
    codes = [_clipped(some, by) for some, by in zip(sums.split(count), scales.split(count), strict=True)]
    return torch.cat(codes).flatten(1), scales


def _losses(sums: torch.Tensor, finest: torch.Tensor) -> torch.Tensor:
    """Return the squared error of each grid for each row of sums ``(out, sums, members)``, by rounding and clipping."""
    found = []
    for largest in _GRIDS:
        scales = finest * (LARGEST_CODE / largest)
        exact = sums / scales[:, None, None]
        codes = exact.round()
        loss = exact.sub_(codes).square_().sum((1, 2))
        for part in (codes.clamp(min=0), codes.neg().clamp_(min=0)):
            over = (part.sum(-1) - LARGEST_SUM).clamp_(min=0)
            at = over.nonzero(as_tuple=True)
            loss.index_add_(0, at[0], over[at].square() / (part[at] > 0).sum(-1))
        found.append(loss * scales.square())
    return torch.stack(found, 1)


def _clipped(sums: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return rows of sums as codes. The members of sums that are too large are lowered."""
    exact = sums / scales[:, None, None]
    codes = exact.round().clamp(-LARGEST_CODE, LARGEST_CODE)
    for sign in (1, -1):
        part = (sign * codes).clamp(min=0)
        at = (part.sum(-1) > LARGEST_SUM).nonzero(as_tuple=True)
        lowered = _lowered(part[at], sign * exact[at])
        codes[at] = torch.where(part[at] > 0, sign * lowered, codes[at])
    return codes


def _lowered(sums: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Return codes ``(sums, members)`` lowered until each sum fits: equally, then those most above ``exact``."""
    while (sums.sum(1) > LARGEST_SUM).any():
        over = (sums.sum(1, keepdim=True) - LARGEST_SUM).clamp(min=0)
        sums = (sums - torch.floor(over / (sums > 0).sum(1, keepdim=True).clamp(min=1))).clamp(min=0)
        over = sums.sum(1, keepdim=True) - LARGEST_SUM
        most = torch.where(sums > 0, sums - exact, -torch.inf).argmax(1, keepdim=True)
        sums = sums.scatter_add(1, most, -(over > 0).to(sums.dtype))
    return sums
