"""Handlers of variances and standard deviations: means of squares, which every engine has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser


def _variance(r: Raiser, a: dict[str, Any], *, root: bool) -> tuple[fx.Node, fx.Node]:
    """Return the variance, or its root, and the mean, with the dimensions that the call keeps."""
    source = a["self"]
    shape, dynamic = r.shape(source), r.dynamic(source)
    given = a["dim"]
    dims = (
        tuple(range(len(shape))) if given is None or given == [] else tuple(sorted(each % len(shape) for each in given))
    )
    if not r.is_float(source) or any(dynamic[each] for each in dims):
        raise NotRaised
    count = math.prod(shape[each] for each in dims)
    left = count - _correction(a)
    if left <= 0:
        raise NotRaised  # no number: torch's own answer is as good as any
    keep = bool(a["keepdim"])
    x = r.activation(source)
    mean = r.call(torch.mean, x, dims, True)
    squares = r.call(torch.pow, r.call(torch.sub, x, mean), 2)
    found = r.call(torch.mean, squares, dims, keep)
    if left != count:
        found = r.call(torch.mul, found, count / left)
    return r.call(torch.sqrt, found) if root else found, mean if keep else r.call(torch.mean, x, dims, False)


def _correction(a: dict[str, Any]) -> float:
    if "unbiased" in a:
        return 1.0 if a["unbiased"] else 0.0
    given = a.get("correction")
    return 1.0 if given is None else float(given)


def _alone(*, root: bool) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        return _variance(r, a, root=root)[0]

    return handler


def _with_mean(*, root: bool) -> Callable[[Raiser, dict[str, Any]], list[Any]]:
    def handler(r: Raiser, a: dict[str, Any]) -> list[Any]:
        return list(_variance(r, a, root=root))

    return handler


HANDLERS: dict[str, Any] = {
    "var": _alone(root=False),
    "std": _alone(root=True),
    "var_mean": _with_mean(root=False),
    "std_mean": _with_mean(root=True),
}
