"""Complex numbers of an exported graph as pairs of real tensors: Fourier transforms, and arithmetic between them.

Only torch has complex numbers. A transform of a fixed length is a product with a constant matrix
(``graph.fourier.transform``), and everything else is a few real calls. What has no form here stays complex.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._ops import OpOverload

from cpupack.graph.fourier import Transform, stft_parts, transform
from cpupack.stages.capture.export import Exported, is_dynamic

_ATEN = torch.ops.aten
_SCOPE = ("nn_module_stack", "stack_trace")


class _Pair(NamedTuple):
    """The real and the imaginary part of a call's values; ``imaginary`` is None where it is zero."""

    real: fx.Node
    imaginary: fx.Node | None


class _NoParts(Exception):  # noqa: N818 - no failure: the call stays complex
    pass


def split_complex(exported: Exported) -> Exported:
    """Have an exported graph compute with real and imaginary parts, in place, wherever that is known how."""
    if not any(_is_complex(node) for node in exported.graph.nodes):
        return exported
    result = _Splitter(exported).run().get(exported.result, exported.result)
    return dataclasses.replace(exported, result=result)


class _Splitter:
    def __init__(self, exported: Exported) -> None:
        self.graph, self.parts = exported.graph, dict[fx.Node, Any]()
        self.mode = exported.source.meta["val"].fake_mode
        self.known: set[fx.Node] = set(exported.constants)
        self.node: fx.Node = exported.source

    def run(self) -> dict[fx.Node, fx.Node]:
        """Split what can be split; return the real calls that others take the place of, with these."""
        replaced: dict[fx.Node, fx.Node] = {}
        nodes = list(self.graph.nodes)
        for node in nodes:
            if node.op == "call_function" and all(each in self.known for each in node.all_input_nodes):
                self.known.add(node)
        others = _raised_otherwise(nodes, self.known)
        for node in nodes:
            reads = _is_complex(node) or any(map(_is_complex, node.all_input_nodes))
            if node.op != "call_function" or node in self.known or node in others or not reads:
                continue
            self.node = node
            with self.graph.inserting_before(node):
                try:
                    found = self._split(node)
                except _NoParts:
                    continue
            if isinstance(found, fx.Node):
                node.replace_all_uses_with(found)
                replaced[node] = found
            else:
                self.parts[node] = found
        return replaced

    def _split(self, node: fx.Node) -> Any:
        """Return the parts of a complex result (a list for several), or the node of a real one."""
        if node.target is operator.getitem:
            parts = self.parts.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
            if not isinstance(parts, list):
                raise _NoParts
            return parts[node.args[1]]  # type: ignore[index]  # a number
        if not isinstance(node.target, OpOverload):
            raise _NoParts
        name = node.target._schema.name.removeprefix("aten::")
        names = [each.name for each in node.target._schema.arguments]
        defaults = {each.name: each.default_value for each in node.target._schema.arguments}
        given = defaults | dict(zip(names, node.args, strict=False)) | node.kwargs
        if name in _EACH:
            return self._each(node)
        handler = _HANDLERS.get(name)
        if handler is None:
            raise _NoParts
        return handler(self, given)

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Add a real call before the one that is being split."""
        node = self.graph.call_function(target, args, kwargs)
        values = fx.node.map_arg((args, kwargs), lambda each: each.meta["val"])
        with self.mode, torch.no_grad():
            node.meta = {key: self.node.meta[key] for key in _SCOPE if key in self.node.meta}
            node.meta["val"] = target(*values[0], **values[1])
        if all(each in self.known for each in node.all_input_nodes):
            self.known.add(node)
        return node

    def pair(self, value: Any) -> _Pair:
        """Return the parts of an operand, real ones included."""
        if not isinstance(value, fx.Node):
            raise _NoParts
        if not _is_complex(value):
            return _Pair(value, None)
        if value in self.parts:
            found = self.parts[value]
            if isinstance(found, _Pair):
                return found
            raise _NoParts
        if value not in self.known:
            raise _NoParts
        pairs = self.call(_ATEN.view_as_real.default, self.call(_ATEN.resolve_conj.default, value))
        self.parts[value] = _Pair(*(self.call(_ATEN.select.int, pairs, -1, place) for place in (0, 1)))
        found = self.parts[value]
        assert isinstance(found, _Pair)
        return found

    def both(self, value: Any) -> tuple[fx.Node, fx.Node]:
        """Return the parts of an operand, zeros for the imaginary part of a real one."""
        real, imaginary = self.pair(value)
        return real, self.call(_ATEN.zeros_like.default, real) if imaginary is None else imaginary

    def _each(self, node: fx.Node) -> Any:
        """Make the call on the real parts and on the imaginary parts of its tensors."""
        read = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)]
        # an index of whole numbers is the same for both
        pairs = {each: self.both(each) for each in read if _is_number(each)}
        kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        if "dtype" in node.kwargs:
            kwargs["dtype"] = torch.float32
        made = []
        for place in (0, 1):
            part = {each: pair[place] for each, pair in pairs.items()}
            args, given = fx.node.map_arg((node.args, kwargs), _taking(part))
            made.append(self.call(node.target, *args, **given))  # type: ignore[arg-type]  # a function
        if not isinstance(node.meta["val"], list | tuple):
            return _Pair(*made)
        count = len(node.meta["val"])
        return [_Pair(*(self.call(operator.getitem, each, place) for each in made)) for place in range(count)]


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(each, torch.Tensor) and each.dtype == torch.complex64 for each in values)


def _taking(parts: dict[fx.Node, fx.Node]) -> Callable[[fx.Node], fx.Node]:
    return lambda each: parts.get(each, each)


def _is_number(node: fx.Node) -> bool:
    value: torch.Tensor = node.meta["val"]
    return value.is_complex() or value.is_floating_point()


def _raised_otherwise(nodes: list[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """Return the calls that ``raising`` has a shorter form for: rotary positions, and spectra read at once."""
    found = set[fx.Node]()
    for node in nodes:
        if node.target is _ATEN.stft.default and all(user.target in _READ_AT_ONCE for user in node.users):
            found |= {node, *node.users}
        if node.target is not _ATEN.view_as_complex.default or node in known:
            continue
        turns = {user for user in node.users if user.target is _ATEN.mul.Tensor and known & set(user.all_input_nodes)}
        alike = all(each.meta["val"].ndim == one.meta["val"].ndim for one in turns for each in one.all_input_nodes)
        readers = {user for one in turns for user in one.users}
        if len(turns) == len(node.users) and alike and all(each.target in _READ_TURNS for each in readers):
            found |= {node} | turns | readers
    return found


_READ_AT_ONCE = {_ATEN.abs.default, _ATEN.view_as_real.default, _ATEN.real.default, _ATEN.imag.default}
_READ_TURNS = {_ATEN.view_as_real.default, _ATEN.contiguous.default, _ATEN.clone.default}
_EACH = {
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "t", "slice", "select", "cat",
    "stack", "expand", "clone", "contiguous", "repeat", "index_select", "index", "flip", "roll", "chunk", "split",
    "split_with_sizes", "unbind", "narrow", "flatten", "unflatten", "sum", "mean", "neg", "slice_scatter",
    "select_scatter", "copy", "movedim", "moveaxis", "detach", "alias", "unfold", "zeros_like", "zeros", "new_zeros",
    "swapaxes", "view_as", "reshape_as", "expand_as", "concat", "constant_pad_nd", "pad", "lift_fresh_copy", "gather",
}  # fmt: skip
"""Calls that do to a complex number what they do to its parts."""


def _sum(sign: int) -> Callable[[_Splitter, dict[str, Any]], _Pair]:
    target = _ATEN.add.Tensor if sign > 0 else _ATEN.sub.Tensor

    def handler(s: _Splitter, a: dict[str, Any]) -> _Pair:
        if a.get("alpha", 1) != 1:
            raise _NoParts
        if not isinstance(a["other"], fx.Node):
            if isinstance(a["other"], complex):
                raise _NoParts
            real, imaginary = s.both(a["self"])
            return _Pair(s.call(_ATEN.add.Tensor, real, sign * a["other"]), imaginary)
        left, right = s.pair(a["self"]), s.pair(a["other"])
        real = s.call(target, left.real, right.real)
        if left.imaginary is None or right.imaginary is None:  # of the shape of both
            one, two = s.both(a["self"])[1], s.both(a["other"])[1]
            return _Pair(real, s.call(target, one, two))
        return _Pair(real, s.call(target, left.imaginary, right.imaginary))

    return handler


def _products(s: _Splitter, left: _Pair, right: _Pair, times: Callable[[fx.Node, fx.Node], fx.Node]) -> _Pair:
    real = times(left.real, right.real)
    if left.imaginary is None or right.imaginary is None:
        if left.imaginary is not None:
            return _Pair(real, times(left.imaginary, right.real))
        return _Pair(real, None if right.imaginary is None else times(left.real, right.imaginary))
    real = s.call(_ATEN.sub.Tensor, real, times(left.imaginary, right.imaginary))
    one, two = times(left.real, right.imaginary), times(left.imaginary, right.real)
    return _Pair(real, s.call(_ATEN.add.Tensor, one, two))


def _mul(s: _Splitter, a: dict[str, Any]) -> _Pair:
    def times(one: Any, two: Any) -> fx.Node:
        return s.call(_ATEN.mul.Tensor, one, two)

    number = a["other"]
    if not isinstance(number, fx.Node):
        real, imaginary = s.both(a["self"])
        if not isinstance(number, complex):
            return _Pair(times(real, number), times(imaginary, number))
        one = s.call(_ATEN.sub.Tensor, times(real, number.real), times(imaginary, number.imag))
        return _Pair(one, s.call(_ATEN.add.Tensor, times(real, number.imag), times(imaginary, number.real)))
    return _products(s, s.pair(a["self"]), s.pair(number), times)


def _div(s: _Splitter, a: dict[str, Any]) -> _Pair:
    number = a["other"]
    if a.get("rounding_mode") is not None or isinstance(number, complex):
        raise _NoParts
    real, imaginary = s.both(a["self"])
    if not isinstance(number, fx.Node) or not _is_complex(number):
        return _Pair(s.call(_ATEN.div.Tensor, real, number), s.call(_ATEN.div.Tensor, imaginary, number))
    one, two = s.both(number)
    square = _squares(s, one, two)
    product = _mul(s, {"self": a["self"], "other": _conjugate_of(s, number)})
    assert product.imaginary is not None
    return _Pair(s.call(_ATEN.div.Tensor, product.real, square), s.call(_ATEN.div.Tensor, product.imaginary, square))


def _conjugate_of(s: _Splitter, node: fx.Node) -> fx.Node:
    """Return a node that stands for the conjugate of another one; nothing runs it."""
    stand_in = s.graph.call_function(_ATEN.conj_physical.default, (node,))
    stand_in.meta["val"] = node.meta["val"]
    s.parts[stand_in] = _conj(s, {"self": node})
    return stand_in


def _conj(s: _Splitter, a: dict[str, Any]) -> _Pair:
    real, imaginary = s.pair(a["self"])
    return _Pair(real, None if imaginary is None else s.call(_ATEN.neg.default, imaginary))


def _squares(s: _Splitter, real: fx.Node, imaginary: fx.Node) -> fx.Node:
    one, two = s.call(_ATEN.mul.Tensor, real, real), s.call(_ATEN.mul.Tensor, imaginary, imaginary)
    return s.call(_ATEN.add.Tensor, one, two)


def _abs(s: _Splitter, a: dict[str, Any]) -> fx.Node:
    return s.call(_ATEN.sqrt.default, _squares(s, *s.both(a["self"])))


def _angle(s: _Splitter, a: dict[str, Any]) -> fx.Node:
    real, imaginary = s.both(a["self"])
    return s.call(_ATEN.atan2.default, imaginary, real)


def _polar(s: _Splitter, a: dict[str, Any]) -> _Pair:
    turns = (s.call(each, a["angle"]) for each in (_ATEN.cos.default, _ATEN.sin.default))
    return _Pair(*(s.call(_ATEN.mul.Tensor, a["abs"], each) for each in turns))


def _exp(s: _Splitter, a: dict[str, Any]) -> _Pair:
    real, imaginary = s.both(a["self"])
    return _polar(s, {"abs": s.call(_ATEN.exp.default, real), "angle": imaginary})


def _view_as_complex(s: _Splitter, a: dict[str, Any]) -> _Pair:
    return _Pair(*(s.call(_ATEN.select.int, a["self"], -1, place) for place in (0, 1)))


def _matrices(s: _Splitter, a: dict[str, Any]) -> _Pair:
    left, right = a["self"], a.get("other", a.get("mat2"))
    return _products(s, s.pair(left), s.pair(right), lambda one, two: s.call(_ATEN.matmul.default, one, two))


def _einsum(s: _Splitter, a: dict[str, Any]) -> _Pair:
    pairs = [s.pair(each) for each in a["tensors"]]
    if len(pairs) == 1:
        return _Pair(*(s.call(_ATEN.einsum.default, a["equation"], [each]) for each in s.both(a["tensors"][0])))
    if len(pairs) != 2 or a.get("path"):
        raise _NoParts
    left, right = pairs
    return _products(s, left, right, lambda one, two: s.call(_ATEN.einsum.default, a["equation"], [one, two]))


def _stft(s: _Splitter, a: dict[str, Any]) -> _Pair:
    shape = a["self"].meta["val"].shape
    length = a["n_fft"]
    if len(shape) != 2 or _is_complex(a["self"]) or a.get("align_to_window") or length < (a["win_length"] or 0):
        raise _NoParts
    onesided = a["onesided"] is not False
    parts = s.call(
        stft_parts, a["self"], a["window"], length, a["hop_length"] or length // 4, a["win_length"] or length,
        bool(a["normalized"]), onesided,
    )  # fmt: skip
    bins = length // 2 + 1 if onesided else length
    return _Pair(s.call(_ATEN.slice.Tensor, parts, 1, 0, bins), s.call(_ATEN.slice.Tensor, parts, 1, bins, 2 * bins))


def _transformed(s: _Splitter, pair: _Pair, kind: str, length: int | None, dim: int, norm: str | None) -> _Pair:
    """Transform along one dimension: that one comes last, with the imaginary parts after the real ones."""
    value = pair.real.meta["val"]
    dim %= value.ndim
    size = value.shape[dim]
    if is_dynamic(size) or value.dtype != torch.float32 or value.ndim < 2:
        raise _NoParts
    how = Transform(kind, int(size), _length(kind, int(size), length), norm or "backward")
    x = pair.real
    if kind == "rfft":
        if pair.imaginary is not None:
            raise _NoParts
    else:
        imaginary = s.call(_ATEN.zeros_like.default, x) if pair.imaginary is None else pair.imaginary
        x = s.call(_ATEN.cat.default, [x, imaginary], dim)
    x = x if dim == value.ndim - 1 else s.call(_ATEN.transpose.int, x, dim, -1)
    x = s.call(transform, x, tuple(how))
    x = x if dim == value.ndim - 1 else s.call(_ATEN.transpose.int, x, dim, -1)
    if kind == "irfft":
        return _Pair(x, None)
    half = x.meta["val"].shape[dim] // 2
    return _Pair(s.call(_ATEN.slice.Tensor, x, dim, 0, half), s.call(_ATEN.slice.Tensor, x, dim, half, 2 * half))


def _length(kind: str, size: int, given: int | None) -> int:
    if given is not None and not isinstance(given, int):
        raise _NoParts
    return given or (2 * (size - 1) if kind == "irfft" else size)


def _shift(sign: int) -> Callable[[_Splitter, dict[str, Any]], _Pair]:
    """Return the handler of ``fftshift`` (1) or ``ifftshift`` (-1): the second half of a dimension comes first."""

    def handler(s: _Splitter, a: dict[str, Any]) -> _Pair:
        shape = s.pair(a["self"]).real.meta["val"].shape
        dims = range(len(shape)) if a["dim"] is None else a["dim"]
        if any(is_dynamic(shape[each]) for each in dims):
            raise _NoParts
        steps = [sign * (int(shape[each]) // 2) for each in dims]
        return _Pair(*(s.call(_ATEN.roll.default, each, steps, list(dims)) for each in s.both(a["self"])))

    return handler


def _fft(kind: str) -> Callable[[_Splitter, dict[str, Any]], Any]:
    def handler(s: _Splitter, a: dict[str, Any]) -> Any:
        pair = s.pair(a["self"])
        found = _transformed(s, pair, kind, a["n"], a["dim"], a["norm"])
        return found.real if kind == "irfft" else found

    return handler


def _ffts(kind: str) -> Callable[[_Splitter, dict[str, Any]], Any]:
    """Return the handler of a transform over several dimensions: the last of them is real, the others are complex."""
    other = "ifft" if kind.startswith("i") else "fft"

    def handler(s: _Splitter, a: dict[str, Any]) -> Any:
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


_HANDLERS: dict[str, Callable[[_Splitter, dict[str, Any]], Any]] = {
    "add": _sum(1), "sub": _sum(-1), "mul": _mul, "multiply": _mul, "div": _div, "divide": _div, "true_divide": _div,
    **dict.fromkeys(("_conj", "conj", "conj_physical", "_conj_physical"), _conj),
    **dict.fromkeys(("resolve_conj", "resolve_neg"), lambda s, a: s.pair(a["self"])),
    **dict.fromkeys(("to", "_to_copy"), lambda s, a: s.pair(a["self"])),
    "abs": _abs, "angle": _angle, "polar": _polar, "exp": _exp,
    "real": lambda s, a: s.pair(a["self"]).real,
    "imag": lambda s, a: s.both(a["self"])[1],
    "complex": lambda s, a: _Pair(a["real"], a["imag"]),
    "view_as_real": lambda s, a: s.call(_ATEN.stack.default, list(s.both(a["self"])), -1),
    "view_as_complex": _view_as_complex,
    **dict.fromkeys(("matmul", "mm", "bmm"), _matrices),
    "einsum": _einsum, "stft": _stft, "fft_fftshift": _shift(1), "fft_ifftshift": _shift(-1),
    **{f"fft_{kind}": _fft(kind) for kind in ("fft", "ifft", "rfft", "irfft")},
    **{f"fft_{kind}{rank}": _ffts(kind + rank) for kind in ("fft", "ifft", "rfft", "irfft") for rank in ("2", "n")},
}  # fmt: skip
