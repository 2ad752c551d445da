"""Complex numbers of an exported graph as pairs of real tensors: Fourier transforms, and arithmetic between them.

Only torch has complex numbers. A transform of a fixed length is a product with a constant matrix
(``graph.fourier.transform``), and everything else is a few real calls. What has no form here stays complex.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from cpupack.graph.fourier import Transform, stft_parts, transform
from cpupack.stages.capture.complex_pairs import Handler, NoParts, Pair, Splitter, is_complex
from cpupack.stages.capture.export import Exported, is_dynamic

_ATEN = torch.ops.aten


def split_complex(exported: Exported) -> Exported:
    """Have an exported graph compute with real and imaginary parts, in place, wherever that is known how."""
    if not any(is_complex(node) for node in exported.graph.nodes):
        return exported
    result = Splitter(exported, _HANDLERS).run().get(exported.result, exported.result)
    return dataclasses.replace(exported, result=result)


def _sum(sign: int) -> Handler:
    target = _ATEN.add.Tensor if sign > 0 else _ATEN.sub.Tensor

    def handler(s: Splitter, a: dict[str, Any]) -> Pair:
        if a.get("alpha", 1) != 1:
            raise NoParts
        if not isinstance(a["other"], fx.Node):
            if isinstance(a["other"], complex):
                raise NoParts
            real, imaginary = s.both(a["self"])
            return Pair(s.call(_ATEN.add.Tensor, real, sign * a["other"]), imaginary)
        left, right = s.pair(a["self"]), s.pair(a["other"])
        real = s.call(target, left.real, right.real)
        if left.imaginary is None or right.imaginary is None:  # of the shape of both
            one, two = s.both(a["self"])[1], s.both(a["other"])[1]
            return Pair(real, s.call(target, one, two))
        return Pair(real, s.call(target, left.imaginary, right.imaginary))

    return handler


def _products(s: Splitter, left: Pair, right: Pair, times: Callable[[fx.Node, fx.Node], fx.Node]) -> Pair:
    real = times(left.real, right.real)
    if left.imaginary is None or right.imaginary is None:
        if left.imaginary is not None:
            return Pair(real, times(left.imaginary, right.real))
        return Pair(real, None if right.imaginary is None else times(left.real, right.imaginary))
    real = s.call(_ATEN.sub.Tensor, real, times(left.imaginary, right.imaginary))
    one, two = times(left.real, right.imaginary), times(left.imaginary, right.real)
    return Pair(real, s.call(_ATEN.add.Tensor, one, two))


def _mul(s: Splitter, a: dict[str, Any]) -> Pair:
    def times(one: Any, two: Any) -> fx.Node:
        return s.call(_ATEN.mul.Tensor, one, two)

    number = a["other"]
    if not isinstance(number, fx.Node):
        real, imaginary = s.both(a["self"])
        if not isinstance(number, complex):
            return Pair(times(real, number), times(imaginary, number))
        one = s.call(_ATEN.sub.Tensor, times(real, number.real), times(imaginary, number.imag))
        return Pair(one, s.call(_ATEN.add.Tensor, times(real, number.imag), times(imaginary, number.real)))
    return _products(s, s.pair(a["self"]), s.pair(number), times)


def _div(s: Splitter, a: dict[str, Any]) -> Pair:
    number = a["other"]
    if a.get("rounding_mode") is not None or isinstance(number, complex):
        raise NoParts
    real, imaginary = s.both(a["self"])
    if not isinstance(number, fx.Node) or not is_complex(number):
        return Pair(s.call(_ATEN.div.Tensor, real, number), s.call(_ATEN.div.Tensor, imaginary, number))
    one, two = s.both(number)
    square = _squares(s, one, two)
    product = _mul(s, {"self": a["self"], "other": _conjugate_of(s, number)})
    assert product.imaginary is not None
    return Pair(s.call(_ATEN.div.Tensor, product.real, square), s.call(_ATEN.div.Tensor, product.imaginary, square))


def _conjugate_of(s: Splitter, node: fx.Node) -> fx.Node:
    """Return a node that stands for the conjugate of another one; nothing runs it."""
    stand_in = s.graph.call_function(_ATEN.conj_physical.default, (node,))
    stand_in.meta["val"] = node.meta["val"]
    s.parts[stand_in] = _conj(s, {"self": node})
    return stand_in


def _conj(s: Splitter, a: dict[str, Any]) -> Pair:
    real, imaginary = s.pair(a["self"])
    return Pair(real, None if imaginary is None else s.call(_ATEN.neg.default, imaginary))


def _squares(s: Splitter, real: fx.Node, imaginary: fx.Node) -> fx.Node:
    one, two = s.call(_ATEN.mul.Tensor, real, real), s.call(_ATEN.mul.Tensor, imaginary, imaginary)
    return s.call(_ATEN.add.Tensor, one, two)


def _abs(s: Splitter, a: dict[str, Any]) -> fx.Node:
    return s.call(_ATEN.sqrt.default, _squares(s, *s.both(a["self"])))


def _angle(s: Splitter, a: dict[str, Any]) -> fx.Node:
    real, imaginary = s.both(a["self"])
    return s.call(_ATEN.atan2.default, imaginary, real)


def _polar(s: Splitter, a: dict[str, Any]) -> Pair:
    turns = (s.call(each, a["angle"]) for each in (_ATEN.cos.default, _ATEN.sin.default))
    return Pair(*(s.call(_ATEN.mul.Tensor, a["abs"], each) for each in turns))


def _exp(s: Splitter, a: dict[str, Any]) -> Pair:
    real, imaginary = s.both(a["self"])
    return _polar(s, {"abs": s.call(_ATEN.exp.default, real), "angle": imaginary})


def _view_as_complex(s: Splitter, a: dict[str, Any]) -> Pair:
    return Pair(*(s.call(_ATEN.select.int, a["self"], -1, place) for place in (0, 1)))


def _matrices(s: Splitter, a: dict[str, Any]) -> Pair:
    left, right = a["self"], a.get("other", a.get("mat2"))
    return _products(s, s.pair(left), s.pair(right), lambda one, two: s.call(_ATEN.matmul.default, one, two))


def _einsum(s: Splitter, a: dict[str, Any]) -> Pair:
    pairs = [s.pair(each) for each in a["tensors"]]
    if len(pairs) == 1:
        return Pair(*(s.call(_ATEN.einsum.default, a["equation"], [each]) for each in s.both(a["tensors"][0])))
    if len(pairs) != 2 or a.get("path"):
        raise NoParts
    left, right = pairs
    return _products(s, left, right, lambda one, two: s.call(_ATEN.einsum.default, a["equation"], [one, two]))


def _stft(s: Splitter, a: dict[str, Any]) -> Pair:
    shape = a["self"].meta["val"].shape
    length = a["n_fft"]
    if len(shape) != 2 or is_complex(a["self"]) or a.get("align_to_window") or length < (a["win_length"] or 0):
        raise NoParts
    onesided = a["onesided"] is not False
    parts = s.call(
        stft_parts, a["self"], a["window"], length, a["hop_length"] or length // 4, a["win_length"] or length,
        bool(a["normalized"]), onesided,
    )  # fmt: skip
    bins = length // 2 + 1 if onesided else length
    return Pair(s.call(_ATEN.slice.Tensor, parts, 1, 0, bins), s.call(_ATEN.slice.Tensor, parts, 1, bins, 2 * bins))


def _transformed(s: Splitter, pair: Pair, kind: str, length: int | None, dim: int, norm: str | None) -> Pair:
    """Transform along one dimension: that one comes last, with the imaginary parts after the real ones."""
    value = pair.real.meta["val"]
    dim %= value.ndim
    size = value.shape[dim]
    if is_dynamic(size) or value.dtype != torch.float32 or value.ndim < 2:
        raise NoParts
    how = Transform(kind, int(size), _length(kind, int(size), length), norm or "backward")
    x = pair.real
    if kind == "rfft":
        if pair.imaginary is not None:
            raise NoParts
    else:
        imaginary = s.call(_ATEN.zeros_like.default, x) if pair.imaginary is None else pair.imaginary
        x = s.call(_ATEN.cat.default, [x, imaginary], dim)
    x = x if dim == value.ndim - 1 else s.call(_ATEN.transpose.int, x, dim, -1)
    x = s.call(transform, x, tuple(how))
    x = x if dim == value.ndim - 1 else s.call(_ATEN.transpose.int, x, dim, -1)
    if kind == "irfft":
        return Pair(x, None)
    half = x.meta["val"].shape[dim] // 2
    return Pair(s.call(_ATEN.slice.Tensor, x, dim, 0, half), s.call(_ATEN.slice.Tensor, x, dim, half, 2 * half))


def _istft(s: Splitter, a: dict[str, Any]) -> fx.Node:
    """The inverse of a short-time transform: windows of a signal, added up where they meet."""
    pair, length = s.pair(a["self"]), a["n_fft"]
    shape = pair.real.meta["val"].shape
    if len(shape) != 3 or is_dynamic(shape[2]) or a.get("return_complex"):
        raise NoParts
    norm, bins = ("ortho" if a["normalized"] else None), length // 2 + 1
    if shape[1] != bins:  # of both sides, torch takes one
        pair = Pair(*(s.call(_ATEN.slice.Tensor, each, 1, 0, bins) for each in s.both(a["self"])))
    frames = _transformed(s, pair, "irfft", length, 1, norm).real
    hop, own = a["hop_length"] or length // 4, a["win_length"] or length
    left, count, most = (length - own) // 2, int(shape[2]), -(-length // hop)
    window = a["window"] if a["window"] is not None else s.call(_ATEN.ones.default, [own])
    window = s.call(_ATEN.constant_pad_nd.default, window, [left, length - own - left])  # a constant
    window = s.call(_ATEN.unsqueeze.default, s.call(_ATEN.unsqueeze.default, window, 0), 2)
    weights = s.call(_ATEN.expand.default, s.call(_ATEN.mul.Tensor, window, window), [1, -1, count])
    if count < most:
        raise NoParts
    first = length // 2 if a["center"] else 0
    values = length + hop * (count - 1)
    last = first + a["length"] if a["length"] is not None else values - first
    end = min(last, values)
    if last - end > end - first:
        raise NoParts

    def none(like: fx.Node, dim: int, count: int) -> list[fx.Node]:
        return [s.call(_ATEN.zeros_like.default, s.call(_ATEN.slice.Tensor, like, dim, 0, count))] if count else []

    def added(windows: fx.Node) -> fx.Node:
        strips = []  # each window is cut into strips of a hop, and strip i lies i hops behind the window's begin
        for place in range(most):
            part = s.call(_ATEN.slice.Tensor, windows, 1, place * hop, min((place + 1) * hop, length))
            if beyond := none(windows, 1, max((place + 1) * hop - length, 0)):
                part = s.call(_ATEN.cat.default, [part, *beyond], 1)
            around = [*none(part, 2, place), part, *none(part, 2, most - 1 - place)]
            strips.append(s.call(_ATEN.cat.default, around, 2) if most > 1 else part)
        whole = functools.reduce(lambda one, two: s.call(_ATEN.add.Tensor, one, two), strips)
        line = s.call(_ATEN.reshape.default, s.call(_ATEN.transpose.int, whole, 1, 2), [-1, hop * (count + most - 1)])
        return s.call(_ATEN.slice.Tensor, line, 1, first, end)

    signal = s.call(_ATEN.div.Tensor, added(s.call(_ATEN.mul.Tensor, frames, window)), added(weights))
    return signal if last == end else s.call(_ATEN.cat.default, [signal, *none(signal, 1, last - end)], 1)


def _length(kind: str, size: int, given: int | None) -> int:
    if given is not None and not isinstance(given, int):
        raise NoParts
    return given or (2 * (size - 1) if kind == "irfft" else size)


def _shift(sign: int) -> Handler:
    """Return the handler of ``fftshift`` (1) or ``ifftshift`` (-1): the second half of a dimension comes first."""

    def handler(s: Splitter, a: dict[str, Any]) -> Pair:
        shape = s.pair(a["self"]).real.meta["val"].shape
        dims = range(len(shape)) if a["dim"] is None else a["dim"]
        if any(is_dynamic(shape[each]) for each in dims):
            raise NoParts
        steps = [sign * (int(shape[each]) // 2) for each in dims]
        return Pair(*(s.call(_ATEN.roll.default, each, steps, list(dims)) for each in s.both(a["self"])))

    return handler


def _fft(kind: str) -> Handler:
    def handler(s: Splitter, a: dict[str, Any]) -> Any:
        pair = s.pair(a["self"])
        found = _transformed(s, pair, kind, a["n"], a["dim"], a["norm"])
        return found.real if kind == "irfft" else found

    return handler


def _ffts(kind: str) -> Handler:
    """Return the handler of a transform over several dimensions: the last of them is real, the others are complex."""
    other = "ifft" if kind.startswith("i") else "fft"

    def handler(s: Splitter, a: dict[str, Any]) -> Any:
        pair = s.pair(a["self"])
        rank = pair.real.meta["val"].ndim
        dims = a["dim"] if a["dim"] is not None else list(range(rank - len(a["s"]), rank)) if a["s"] else None
        dims = list(range(rank)) if dims is None else dims
        lengths = a["s"] or [None] * len(dims)
        steps = [(other, length, dim) for length, dim in zip(lengths[:-1], dims[:-1], strict=True)]
        last = (kind.rstrip("2n"), lengths[-1], dims[-1])
        for name, length, dim in [last, *steps] if kind.startswith("r") else [*steps, last]:
            pair = _transformed(s, pair, name, None if length == -1 else length, dim, a["norm"])
        return pair.real if kind.startswith("ir") else pair

    return handler


_HANDLERS: dict[str, Handler] = {
    "add": _sum(1), "sub": _sum(-1), "mul": _mul, "multiply": _mul, "div": _div, "divide": _div, "true_divide": _div,
    **dict.fromkeys(("_conj", "conj", "conj_physical", "_conj_physical"), _conj),
    **dict.fromkeys(("resolve_conj", "resolve_neg"), lambda s, a: s.pair(a["self"])),
    **dict.fromkeys(("to", "_to_copy"), lambda s, a: s.pair(a["self"])),
    "abs": _abs, "angle": _angle, "polar": _polar, "exp": _exp,
    "real": lambda s, a: s.pair(a["self"]).real,
    "imag": lambda s, a: s.both(a["self"])[1],
    "complex": lambda s, a: Pair(a["real"], a["imag"]),
    "view_as_real": lambda s, a: s.call(_ATEN.stack.default, list(s.both(a["self"])), -1),
    "view_as_complex": _view_as_complex,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matrices),
    "einsum": _einsum, "stft": _stft, "istft": _istft, "fft_fftshift": _shift(1), "fft_ifftshift": _shift(-1),
    **{f"fft_{kind}": _fft(kind) for kind in ("fft", "ifft", "rfft", "irfft")},
    **{f"fft_{kind}{rank}": _ffts(kind + rank) for kind in ("fft", "ifft", "rfft", "irfft") for rank in ("2", "n")},
}  # fmt: skip
