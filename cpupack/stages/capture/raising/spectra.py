"""``torch.stft`` -> a convolution with the waves of its bins: the real parts of all bins, then the imaginary ones."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.graph.fourier import Transform, fourier, stft_parts, transform
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

_ATEN = torch.ops.aten
READERS = {_ATEN.abs.default, _ATEN.view_as_real.default, _ATEN.real.default, _ATEN.imag.default}
"""What may read complex values: others keep the call as torch's."""


def _stft(r: Raiser, a: dict[str, Any]) -> fx.Node:
    length = a["n_fft"]
    aligned = a.get("align_to_window")  # not in every torch
    if len(r.shape(a["self"])) != 2 or aligned or not set(_targets(r.node)) <= READERS:
        raise NotRaised
    how = a["hop_length"] or length // 4, a["win_length"] or length, bool(a["normalized"]), a["onesided"] is not False
    return short_transform(r, a["self"], a["window"], length, *how)


def short_transform(
    r: Raiser, values: Any, given: Any, length: int, hop: int, own: int, normalized: bool, onesided: bool
) -> fx.Node:
    """Return the call of ``stft_parts`` with these arguments as a convolution."""
    window = r.tensor(given)
    window = torch.ones(own) if window is None else window
    left = (length - own) // 2
    if window.is_complex() or left < 0 or not r.is_float(values):
        raise NotRaised
    whole = torch.nn.functional.pad(window.double(), (left, length - own - left))
    layer = fourier(whole, hop, onesided=onesided, normalized=normalized)
    x = r.call(torch.reshape, r.activation(values), (-1, 1, r.shape(values)[1]), word="samples")
    return r.module(layer, x, word="stft")


def transformed(r: Raiser, values: Any, how: Any) -> fx.Node:
    """Return the call of ``transform`` with these arguments as a linear layer."""
    return r.module(Transform(*how).layer(), r.activation(values), word=how[0])


def _targets(node: fx.Node) -> list[object]:
    return [user.target for user in node.users]


def _is_transform(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is torch.ops.aten.stft.default


def magnitude(otherwise: Callable[[Raiser, dict[str, Any]], Any]) -> Callable[[Raiser, dict[str, Any]], Any]:
    """Return the handler of ``abs``: of a transform's values here, of real ones ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        if not _is_transform(a["self"]):
            return otherwise(r, a)
        parts = _parts(r, a["self"])
        squares = r.call(torch.mul, parts, parts, word="square")
        return r.call(torch.sqrt, r.call(torch.sum, squares, 1, word="power"), word="abs")

    return handler


def real(otherwise: Callable[[Raiser, dict[str, Any]], Any]) -> Callable[[Raiser, dict[str, Any]], Any]:
    """Return the handler of ``view_as_real``: of a transform's values here, of others ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        if not _is_transform(a["self"]):
            return otherwise(r, a)
        return r.call(torch.permute, _parts(r, a["self"]), (0, 2, 3, 1), word="parts")

    return handler


def part(place: int) -> Callable[[Raiser, dict[str, Any]], Any]:
    """Return the handler of ``real`` (0) or ``imag`` (1) of a transform's values; of others they stay torch's."""

    def handler(r: Raiser, a: dict[str, Any]) -> Any:
        if not _is_transform(a["self"]):
            raise NotRaised
        rows = (slice(None), slice(place, place + 1))
        own = r.call(operator.getitem, _parts(r, a["self"]), rows, word="part")
        return r.call(torch.reshape, own, (-1, *r.shape(a["self"])[1:]), word="part")

    return handler


def _parts(r: Raiser, node: fx.Node) -> fx.Node:
    """Return a transform's values as ``(n, 2, bins, windows)``."""
    made = r.activation(node)
    if made.op != "call_module":
        raise NotRaised  # torch's own call
    return r.call(torch.reshape, made, (-1, 2, *r.shape(node)[1:]), word="parts")


HANDLERS: dict[str, Any] = {"stft": _stft, "real": part(0), "imag": part(1)}
FUNCTIONS: dict[Any, Any] = {stft_parts: short_transform, transform: transformed}
"""Functions of ``graph.fourier`` that take the place of complex calls (``complex_parts``)."""
