"""Convolutions with filters that each sample has of its own, in as many groups as the batch has samples.

Mixed filters (CondConv, dynamic convolution), modulated ones (StyleGAN2), templates that are looked for (SiamFC): a
plain number of groups would hold for one batch size alone. Filters that are mixed of a few constant ones become
convolutions with each of these, whose results are mixed: the sum is the same, and they run in INT8. Filters that are
constant ones times factors become a convolution with the constant ones, whose input and result are multiplied. Others
become products of each sample's filters with its windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.graph.vocabulary import UNFOLD
from cpupack.stages.capture.lines import line_of, scope_of
from cpupack.stages.capture.raising.modulated import Modulated, factor, modulated
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of, numbers
from cpupack.stages.capture.raising.shapes import reshaped
from cpupack.stages.capture.raising.written_out import put_back

Handler = Callable[[Raiser, dict[str, Any]], fx.Node]
_CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d)
_MOST_MIXED = 8
"""Filters of a mixture: with more of them, INT8 is no faster than FP32 with the mixed ones."""
_VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "contiguous", "clone", "alias")
_PRODUCTS = ("mm", "matmul")


@dataclass(frozen=True)
class _Filters:
    """One sample's convolution of images: ``groups`` of ``outputs`` and ``inputs`` channels each."""

    groups: int
    outputs: int
    inputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


def by_sample(otherwise: Handler, *, transposed: bool = False) -> Handler:
    """Return the handler of convolutions: those with filters of each sample, else ``otherwise``."""

    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        if not isinstance(a["groups"], fx.Node) or a["groups"] in r.known:
            return otherwise(r, a)
        try:
            turned = transposed or a.get("transposed", False)
            if (found := modulated(r, a["weight"], len(r.shape(a["weight"])) + 1)) is not None:
                own = _filters(r, a, joined=0 if turned else 1)
                if (own.groups == 1 or not found.second.nodes) and len(r.shape()) < 5:
                    return _modulated(r, a, own, found, transposed=turned)
            if turned:
                return _put_together(r, a)
            mixture = _mixture(r, a["weight"])
            return _convolved(r, a) if mixture is None else _mixed(r, a, *mixture)
        except NotRaised as error:
            raise _refusal(r.node) from error

    return handler


def _refusal(node: fx.Node) -> ModelError:
    return ModelError(
        f"the model cannot be captured: {scope_of(node)} convolves each sample with filters of its own, in as "
        f"many groups as the batch has samples{line_of(node)}",
        hint="convolve the whole batch with each of the filters that are mixed, then mix the results: the sum "
        "is the same. docs/how-to/capture-refused.md shows it",
    )


def _mixture(r: Raiser, weight: Any) -> tuple[fx.Node, torch.Tensor, str] | None:
    """Return the shares ``(batch, filters)`` of constant filters, these as rows, and their name; None for others."""
    while isinstance(weight, fx.Node) and weight not in r.known and name_of(weight) in _VIEWS:
        weight = weight.args[0]
    if not isinstance(weight, fx.Node) or name_of(weight) not in _PRODUCTS:
        return None
    shares, held = weight.args[:2]
    if not isinstance(shares, fx.Node) or shares in r.known or not r.is_known(held):
        return None
    filters = r.tensor(held)
    assert filters is not None
    shape, moves = r.shape(shares), r.dynamic(shares)
    if len(shape) != 2 or moves != (True, False) or shape[0] != _batch(r) or not r.is_float(shares):
        return None
    if filters.ndim != 2 or len(filters) > _MOST_MIXED:
        return None
    return r.activation(shares), filters.float(), r.weight_name(held)


def _mixed(r: Raiser, a: dict[str, Any], shares: fx.Node, filters: torch.Tensor, name: str) -> fx.Node:
    """A convolution with all filters of a mixture, group by group, and the sum of the results by each one's share.

    The sum is a convolution of one pixel whose weights are ones: it is INT8, and takes what comes behind with it.
    """
    own, count, sizes = _filters(r, a, joined=1), len(filters), r.shape()[2:]
    spatial, kernel = len(sizes), r.shape(a["weight"])[2:]
    if spatial > 2:
        raise NotRaised
    by_group = filters.reshape(count, own.groups, own.outputs, own.inputs, *kernel).transpose(0, 1)
    found = _layer(r, a, own, _samples(r, a, own), by_group.flatten(0, 2), name)
    channels = own.groups * count * own.outputs
    apart = r.call(torch.reshape, shares, (-1, 1, count, 1))
    of_channels = r.method("expand", apart, -1, own.groups, count, own.outputs)
    share = r.call(torch.reshape, of_channels, (-1, channels, *[1] * spatial))
    add = _CONVS[spatial - 1](channels, own.groups * own.outputs, 1, groups=own.groups, bias=False, device="meta")
    ones = torch.eye(own.outputs).repeat(own.groups, count)
    add.weight = nn.Parameter(ones.reshape(add.weight.shape), requires_grad=False)
    total = r.module(add, r.call(torch.mul, found, share), word="sum")
    return _finished(r, a, total, own.groups * own.outputs)


def _modulated(r: Raiser, a: dict[str, Any], own: _Filters, found: Modulated, *, transposed: bool) -> fx.Node:
    """A convolution with constant filters; the factors of inputs go before it, those of outputs behind it."""
    spatial = len(r.shape()) - 2
    before, behind = (found.first, found.second) if transposed else (found.second, found.first)
    x = _samples(r, a, own)
    if (scale := factor(r, before, spatial)) is not None:
        x = r.call(torch.mul, x, scale)
    if transposed:
        conv = _TRANSPOSED[spatial - 1](
            own.groups * own.inputs, own.groups * own.outputs, tuple(found.filters.shape[2:]),
            numbers(a["stride"], spatial), numbers(a["padding"], spatial), numbers(a["output_padding"], spatial),
            own.groups, bias=False,
            dilation=numbers(a["dilation"], spatial), device="meta",
        )  # fmt: skip
        conv.weight = nn.Parameter(found.filters, requires_grad=False)
        y = r.module(conv, x, word=_word(r), owner=found.name)
    else:
        y = _layer(r, a, own, x, found.filters, found.name)
    if (scale := factor(r, behind, spatial)) is not None:
        y = r.call(torch.mul, y, scale)
    return _finished(r, a, y, own.groups * own.outputs)


def _samples(r: Raiser, a: dict[str, Any], own: _Filters) -> fx.Node:
    """Return the input as that of a layer, ``(batch, channels, ...)``."""
    x, sizes = _images(r, a["input"]), r.shape(a["input"])[2:]
    return r.call(torch.reshape, x, (-1, own.groups * own.inputs, *sizes)) if len(sizes) == 1 else x


def _layer(r: Raiser, a: dict[str, Any], own: _Filters, x: fx.Node, weight: torch.Tensor, name: str) -> fx.Node:
    """A convolution with constant filters in each sample's groups."""
    padding, spatial = a["padding"], len(r.shape()) - 2
    if isinstance(padding, str):
        pads = _padding(padding, own, spatial)
        x, padding = r.call(F.pad, x, list(pads[: 2 * spatial]), "constant", 0.0, word="pad"), 0
    conv = _CONVS[spatial - 1](
        own.groups * own.inputs, len(weight), tuple(weight.shape[2:]), numbers(a["stride"], spatial),
        numbers(padding, spatial), numbers(a["dilation"], spatial), own.groups, bias=False, device="meta",
    )  # fmt: skip
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return r.module(conv, x, word=_word(r), owner=name)


def _convolved(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """A convolution: the windows of each sample as columns, multiplied by its filters as rows."""
    x, filters = _images(r, a["input"]), _filters(r, a, joined=1)
    pads, weight = _padding(a["padding"], filters, len(r.shape()) - 2), _weights(r, a)
    if any(pads):
        x = r.call(F.pad, x, list(pads), "constant", 0.0, word="pad")
    height, width = _plane(r.shape(a["input"])[2:])
    height, width = height + pads[2] + pads[3], width + pads[0] + pads[1]
    if filters.kernel == (1, 1) and filters.stride == (1, 1):
        places = height * width
    else:
        x = r.call(UNFOLD, x, list(filters.kernel), list(filters.dilation), [0, 0], list(filters.stride), word="unfold")
        places = math.prod(_plane(r.shape()[2:]))
    rows = filters.inputs * math.prod(filters.kernel)
    columns = r.call(torch.reshape, x, (-1, filters.groups, rows, places))
    filled = r.call(torch.reshape, weight, (-1, filters.groups, filters.outputs, rows))
    found = r.call(torch.matmul, filled, columns, word=_word(r))
    return _finished(r, a, found, filters.groups * filters.outputs)


def _put_together(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """A transposed convolution: what each value gives to its window, then the windows put where they belong."""
    x, filters, weight = _images(r, a["input"]), _filters(r, a, joined=0), _weights(r, a)
    places = math.prod(_plane(r.shape(a["input"])[2:]))
    rows = filters.outputs * math.prod(filters.kernel)
    values = r.call(torch.reshape, x, (-1, filters.groups, filters.inputs, places))
    filled = r.call(torch.reshape, weight, (-1, filters.groups, filters.inputs, rows))
    turned = r.call(torch.permute, filled, (0, 1, 3, 2))
    found = r.call(torch.matmul, turned, values, word=_word(r))
    channels = filters.groups * filters.outputs
    windows = r.call(torch.reshape, found, (-1, channels * math.prod(filters.kernel), places))
    own = _pair(a["padding"], len(r.shape()) - 2, 0)
    whole = put_back(
        r, windows, _plane(r.shape()[2:]), _plane(r.shape(a["input"])[2:]), channels, kernel=filters.kernel,
        stride=filters.stride, dilation=filters.dilation, padding=own,
    )  # fmt: skip
    return _finished(r, a, whole, channels)


def _word(r: Raiser) -> str:
    return str(r.node.target._opname)  # type: ignore[union-attr]  # an OpOverload


def _batch(r: Raiser) -> int:
    return r.shape(r.source)[0]


def _plane(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return height and width; a sequence has one row."""
    if len(sizes) not in {1, 2}:
        raise NotRaised
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _pair(given: Any, spatial: int, alone: int) -> tuple[int, int]:
    return _plane(numbers(given, spatial)) if spatial == 2 else (alone, *numbers(given, 1))  # type: ignore[return-value]


def _images(r: Raiser, source: fx.Node) -> fx.Node:
    """Return the input ``(1, batch * channels, ...)`` as images of each sample."""
    shape, moves = r.shape(source), r.dynamic(source)
    if shape[0] != 1 or moves != (False, True, *[False] * (len(shape) - 2)) or shape[1] % _batch(r):
        raise NotRaised
    whole = (_batch(r), shape[1] // _batch(r), *_plane(shape[2:]))
    return reshaped(r, r.activation(source), shape, whole, (True, False, False, False))


def _weights(r: Raiser, a: dict[str, Any]) -> fx.Node:
    if not r.is_float() or not r.is_float(a["weight"]):
        raise NotRaised
    return r.activation(a["weight"])


def _filters(r: Raiser, a: dict[str, Any], *, joined: int) -> _Filters:
    """Return what one sample's filters are; ``joined`` is 1 where they are ``(batch * outputs, inputs, ...)``."""
    shape, moves, batch = r.shape(a["weight"]), r.dynamic(a["weight"]), _batch(r)
    groups = a["groups"].meta["val"]
    groups = int(groups.node.hint) if isinstance(groups, torch.SymInt) else int(groups)
    if not moves[0] or any(moves[1:]) or shape[0] % groups or groups % batch:
        raise NotRaised
    spatial, first, second = len(shape) - 2, shape[0] // groups, shape[1]
    outputs, inputs = (first, second) if joined else (second, first)
    return _Filters(
        groups // batch, outputs, inputs, _plane(shape[2:]), _pair(a["stride"], spatial, 1),
        _pair(a["dilation"], spatial, 1),
    )  # fmt: skip


def _padding(given: Any, filters: _Filters, spatial: int) -> tuple[int, int, int, int]:
    """Return what a convolution pads: left, right, above and below. ``"same"`` pads an odd total more at the end."""
    if given == "valid":
        return 0, 0, 0, 0
    if given == "same":
        total = [step * (size - 1) for step, size in zip(filters.dilation, filters.kernel, strict=True)]
        (above, left), (below, right) = [each // 2 for each in total], [each - each // 2 for each in total]
        return left, right, above, below
    height, width = _pair(given, spatial, 0)
    return width, width, height, height


def _finished(r: Raiser, a: dict[str, Any], found: fx.Node, channels: int) -> fx.Node:
    """Add the bias of each sample, and give the result the shape that the call has: the batch among the channels."""
    sizes, batch = r.shape()[2:], _batch(r)
    whole = r.call(torch.reshape, found, (-1, channels, *sizes))
    if a["bias"] is not None:
        bias = r.call(torch.reshape, r.activation(a["bias"]), (-1, channels, *[1] * len(sizes)))
        whole = r.call(torch.add, whole, bias)
    return reshaped(r, whole, (batch, channels, *sizes), r.shape(), r.dynamic())
