"""``torch.stft`` -> a convolution with the waves of its bins: the real parts of all bins, then the imaginary ones.

The real or imaginary part of ``torch.fft.fft``, ``fft2`` and ``fftn`` of a real tensor, one after the other -> products
with the matrices of their cosines and sines.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.graph.fourier import WAVES, fourier
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser
from cpupack.stages.capture.raising.shapes import permuted

_ATEN = torch.ops.aten
_READERS = {_ATEN.abs.default, _ATEN.view_as_real.default, _ATEN.real.default, _ATEN.imag.default}
"""What may read complex values: others keep the call as torch's."""
_TRANSFORMS: dict[Any, int | None] = {_ATEN.fft_fft.default: 1, _ATEN.fft_fft2.default: 2, _ATEN.fft_fftn.default: None}
"""Transforms, with how many of the last dimensions they are over where the call does not say it; None for all."""
_LARGEST = 2048
"""Beyond it the matrices of a transform are larger than most layers' weights, and torch's own way is far faster."""


def _stft(r: Raiser, a: dict[str, Any]) -> fx.Node:
    shape, length = r.shape(a["self"]), a["n_fft"]
    aligned = a.get("align_to_window")  # not in every torch
    if len(shape) != 2 or aligned or not r.is_float(a["self"]) or not set(_targets(r.node)) <= _READERS:
        raise NotRaised
    own = a["win_length"] or length
    window = r.tensor(a["window"])
    window = torch.ones(own) if window is None else window
    left = (length - own) // 2
    if window.is_complex() or left < 0:
        raise NotRaised
    whole = torch.nn.functional.pad(window.double(), (left, length - own - left))
    layer = fourier(
        whole, a["hop_length"] or length // 4, onesided=a["onesided"] is not False, normalized=bool(a["normalized"])
    )
    x = r.call(torch.reshape, r.activation(a["self"]), (-1, 1, shape[1]), word="samples")
    return r.module(layer, x, word="stft")


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
            return _part_of_spectrum(r, a["self"], place)
        rows = (slice(None), slice(place, place + 1))
        own = r.call(operator.getitem, _parts(r, a["self"]), rows, word="part")
        return r.call(torch.reshape, own, (-1, *r.shape(a["self"])[1:]), word="part")

    return handler


def _part_of_spectrum(r: Raiser, value: Any, place: int) -> fx.Node:
    """Return the real (0) or imaginary (1) part of transforms of a real tensor."""
    dims: list[int] = []
    factor = 1.0
    while isinstance(value, fx.Node) and value.target in _TRANSFORMS:
        own, scale = _dims_of(r, value)
        dims, factor = [*own, *dims], factor * scale
        value = value.args[0]
    if not dims or not r.is_float(value) or r.is_known(value):
        raise NotRaised
    sizes, moves = r.shape(value), r.dynamic(value)
    if any(moves[dim] or sizes[dim] > _LARGEST for dim in dims):
        raise NotRaised
    parts: list[fx.Node | None] = [r.activation(value), None]
    for number, dim in enumerate(dims):
        angles = torch.outer(torch.arange(sizes[dim]), torch.arange(sizes[dim])) % sizes[dim]
        turns = angles.double() * (2 * math.pi / sizes[dim])
        last = number + 1 == len(dims)
        scale = factor if last else 1.0
        cosines, sines = (scale * turns.cos()).float(), (scale * turns.sin()).float()
        # (c - i s)(x + i y) = c x + s y + i (c y - s x)
        ways = ((0, cosines), (1, sines)), ((1, cosines), (0, -sines))
        parts = [
            _total(r, [_along(r, found, dim, len(sizes), matrix) for at, matrix in way if (found := parts[at])])
            if not last or which == place
            else None
            for which, way in enumerate(ways)
        ]
    found = parts[place]
    assert found is not None
    return found


def _dims_of(r: Raiser, node: fx.Node) -> tuple[list[int], float]:
    """Return the dimensions that a transform is over, and what its norm multiplies with."""
    target: Any = node.target
    names = (each.name for each in target._schema.arguments)
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    sizes = r.shape(given["self"])
    dims = given.get("dim")
    if dims is None:
        dims = list(range(-(_TRANSFORMS[target] or len(sizes)), 0))
    dims = [dim % len(sizes) for dim in (dims if isinstance(dims, list) else [dims])]
    lengths = given.get("s") or [given.get("n")] * len(dims)
    if len(lengths) != len(dims) or any(
        length not in {None, sizes[dim]} for length, dim in zip(lengths, dims, strict=True)
    ):
        raise NotRaised  # cut or filled up
    total = math.prod(sizes[dim] for dim in dims)
    factors = {"backward": 1.0, "ortho": total**-0.5, "forward": 1.0 / total}
    return dims, factors[given.get("norm") or "backward"]


def _along(r: Raiser, x: fx.Node, dim: int, rank: int, matrix: torch.Tensor) -> fx.Node:
    order = [each for each in range(rank) if each != dim] + [dim]
    y = r.call(torch.matmul, permuted(r, x, order), r.attribute(matrix, WAVES), word="waves")
    return permuted(r, y, [order.index(each) for each in range(rank)])


def _total(r: Raiser, terms: list[fx.Node]) -> fx.Node:
    return terms[0] if len(terms) == 1 else r.call(torch.add, *terms)


def _parts(r: Raiser, node: fx.Node) -> fx.Node:
    """Return a transform's values as ``(n, 2, bins, windows)``."""
    made = r.activation(node)
    if made.op != "call_module":
        raise NotRaised  # torch's own call
    return r.call(torch.reshape, made, (-1, 2, *r.shape(node)[1:]), word="parts")


HANDLERS: dict[str, Any] = {"stft": _stft, "real": part(0), "imag": part(1)}
