"""Handlers of pooling, means, padding and interpolation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.vocabulary import UNFOLD
from cpupack.stages.capture.raising.combined import extreme
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, numbers

_MAX: tuple[Any, ...] = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGE: tuple[Any, ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ADAPTIVE_MAX: tuple[Any, ...] = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def _batched(r: Raiser, value: Any, spatial: int) -> fx.Node:
    if len(r.shape(value)) != spatial + 2:
        raise NotRaised
    return r.activation(value)


def _max_pool(spatial: int) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        kernel = numbers(a["kernel_size"], spatial)
        pool = _MAX[spatial - 1](
            kernel, numbers(a["stride"] or kernel, spatial), numbers(a["padding"], spatial),
            numbers(a["dilation"], spatial), ceil_mode=a["ceil_mode"],
        )  # fmt: skip
        return r.module(pool, _batched(r, a["self"], spatial), word=f"max_pool{spatial}d")

    return handler


def _with_indices(handler: Callable[[Raiser, dict[str, Any]], fx.Node]) -> Callable[[Raiser, dict[str, Any]], Any]:
    """Return a handler of an operator that returns indices too, which nothing may read."""

    def of_several(r: Raiser, a: dict[str, Any]) -> list[Any]:
        if reads_indices(r.node):
            raise NotRaised
        return [handler(r, a), None]

    return of_several


def _average_pool(spatial: int) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        kernel = numbers(a["kernel_size"], spatial)
        settings: dict[str, Any] = {"ceil_mode": a["ceil_mode"], "count_include_pad": a["count_include_pad"]}
        if a.get("divisor_override"):
            settings["divisor_override"] = a["divisor_override"]
        stride, padding = numbers(a["stride"] or kernel, spatial), numbers(a["padding"], spatial)
        pool = _AVERAGE[spatial - 1](kernel, stride, padding, **settings)
        return r.module(pool, _batched(r, a["self"], spatial), word=f"avg_pool{spatial}d")

    return handler


def _adaptive(kinds: tuple[Any, ...], spatial: int, word: str) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        pool = kinds[spatial - 1](numbers(a["output_size"], spatial))
        return r.module(pool, _batched(r, a["self"], spatial), word=f"adaptive_{word}_pool{spatial}d")

    return handler


def _dims(a: dict[str, Any], rank: int) -> tuple[int, ...]:
    dims = a.get("dim")
    if dims is None or dims == []:
        return tuple(range(rank))
    return tuple(sorted(each % rank for each in (dims if isinstance(dims, list | tuple) else [dims])))


def _reduce(function: Callable[..., Any], kinds: tuple[Any, ...] | None, word: str) -> Callable[..., fx.Node]:
    """Return a handler of a reduction; over all positions it is a pooling."""

    def handler(r: Raiser, a: dict[str, Any], factor: float = 1.0) -> fx.Node:
        source, keep = a["self"], bool(a.get("keepdim", False))
        if not r.is_float(source) or a.get("dtype") not in {None, torch.float32}:
            raise NotRaised
        rank = len(r.shape(source))
        dims = _dims(a, rank)
        moves = r.dynamic(source)
        if any(moves[each] for each in dims):
            raise NotRaised  # over the batch
        x = r.activation(source)
        if factor != 1:
            x = r.call(torch.mul, x, factor)
        if kinds is None or rank not in {3, 4, 5} or dims != tuple(range(2, rank)) or not moves[0]:
            return r.call(function, x, dims, keep)
        pooled = r.module(kinds[rank - 3]((1,) * (rank - 2)), x, word=f"adaptive_{word}_pool{rank - 2}d")
        return pooled if keep else r.call(torch.flatten, pooled, 1)

    return handler


_LARGEST = _reduce(torch.amax, _ADAPTIVE_MAX, "max")


def _largest(r: Raiser, a: dict[str, Any]) -> Any:
    """``x.max(dim)``: values and indices, of which only the values have a form; and ``torch.max(x, y)``."""
    if "dim" not in a:
        if "other" in a:
            return extreme(1.0)(r, a)
        raise NotRaised  # x.max(), which looks at the whole batch
    if reads_indices(r.node):
        raise NotRaised
    return [_LARGEST(r, a), None]


def _smallest(r: Raiser, a: dict[str, Any]) -> Any:
    """``x.min(dim)`` and ``amin``: the largest of the negative."""
    if "dim" not in a:
        if "other" in a:
            return extreme(-1.0)(r, a)
        raise NotRaised
    several = isinstance(r.node.meta.get("val"), list | tuple)
    if several and reads_indices(r.node):
        raise NotRaised
    smallest = r.call(torch.mul, _LARGEST(r, a, -1.0), -1.0)
    return [smallest, None] if several else smallest


def reads_indices(node: fx.Node) -> bool:
    """Whether something reads a second result, the indices, of a call of several."""
    return any(len(each.args) > 1 and each.args[1] != 0 and each.users for each in node.users)


def _pad(r: Raiser, a: dict[str, Any]) -> fx.Node:
    mode, value = a.get("mode", "constant"), a.get("value")
    return _padded(r, a["self"], a["pad"], mode, 0.0 if value is None else value)


def _pad_by(mode: str) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    return lambda r, a: _padded(r, a["self"], a["padding"], mode, 0.0)


def _padded(r: Raiser, source: Any, pads: Any, mode: str, value: Any) -> fx.Node:
    if not all(isinstance(each, int) for each in pads) or not isinstance(value, int | float):
        raise NotRaised
    pads = [int(each) for each in pads]
    if len(pads) // 2 >= len(r.shape(source)) and any(pads[-2:]):
        raise NotRaised  # the batch is padded
    x = r.activation(source)
    if not any(pads):
        return x
    while mode == "constant" and not any(pads[-2:]):  # the other modes take pairs for all of a layer's dimensions alone
        pads = pads[:-2]
    return r.call(F.pad, x, pads, mode, float(value), word="pad")


_MODES = {
    "upsample_nearest1d": "nearest", "upsample_nearest2d": "nearest", "upsample_nearest3d": "nearest",
    "_upsample_nearest_exact1d": "nearest-exact", "_upsample_nearest_exact2d": "nearest-exact",
    "_upsample_nearest_exact3d": "nearest-exact", "upsample_linear1d": "linear", "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic", "upsample_trilinear3d": "trilinear",
}  # fmt: skip


def _upsample(mode: str) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        source = a.get("input", a.get("self"))
        before, after = r.shape(source)[2:], r.shape()[2:]
        factors = a.get("scale_factors") or [
            a[key] for key in ("scales", "scales_d", "scales_h", "scales_w") if a.get(key)
        ]
        align = a.get("align_corners")
        corners = bool(align) if "linear" in mode or mode == "bicubic" else None
        x = r.activation(source)
        if factors and any(size * factor != end for size, factor, end in zip(before, factors, after, strict=False)):
            # The factor, not the sizes, decides where values are taken from.
            return r.call(F.interpolate, x, None, [float(each) for each in factors], mode, corners, word="interpolate")
        if before == after and mode.startswith("nearest"):
            return x
        return r.call(F.interpolate, x, list(after), None, mode, corners, word="interpolate")

    return handler


def _windows(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``F.unfold``: its padding is a call of its own, so that what is left moves values alone."""
    if len(r.shape(a["self"])) != 4:
        raise NotRaised
    rows, columns = numbers(a["padding"], 2)
    x = _padded(r, a["self"], [columns, columns, rows, rows], "constant", 0.0)
    settings = [list(numbers(a[name], 2)) for name in ("kernel_size", "dilation")]
    return r.call(UNFOLD, x, *settings, [0, 0], list(numbers(a["stride"], 2)), word="unfold")


HANDLERS: dict[str, Any] = {
    "im2col": _windows,
    **{f"max_pool{n}d": _max_pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _with_indices(_max_pool(n)) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _average_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive(_ADAPTIVE_AVERAGE, n, "avg") for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": _adaptive(_ADAPTIVE_AVERAGE, n, "avg") for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": _with_indices(_adaptive(_ADAPTIVE_MAX, n, "max")) for n in (1, 2, 3)},
    "mean": _reduce(torch.mean, _ADAPTIVE_AVERAGE, "avg"),
    "amax": _LARGEST,
    "sum": _reduce(torch.sum, None, "sum"),
    "max": _largest,
    **dict.fromkeys(("min", "amin"), _smallest),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **{f"reflection_pad{n}d": _pad_by("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": _pad_by("replicate") for n in (1, 2, 3)},
    **{name: _upsample(mode) for name, mode in _MODES.items()},
}
