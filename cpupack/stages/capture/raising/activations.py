"""Handlers of functions of one value and of softmax: each becomes the module of its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

Make = Callable[[dict[str, Any]], nn.Module]


def clamp_module(low: float | None, high: float | None) -> nn.Module | None:
    """Return the module that clamps to these ends, None where only ``torch.clamp`` does."""
    if low == 0 and high is None:
        return nn.ReLU()
    if low == 0 and high == 6:
        return nn.ReLU6()
    if low is not None and high is not None and low < high:
        return nn.Hardtanh(float(low), float(high))
    return None


def _one_value(make: Make, word: str) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        source = a.get("self", a.get("input"))
        if not r.is_float(source):
            raise NotRaised
        return r.module(make(a), r.activation(source), word=word)

    return handler


def _clamp(r: Raiser, a: dict[str, Any]) -> fx.Node:
    low, high = r.constant(a.get("min", a.get("min_val"))), r.constant(a.get("max", a.get("max_val")))
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor) or not r.is_float(a["self"]):
        raise NotRaised
    module = clamp_module(low, high)
    x = r.activation(a["self"])
    if module is None:
        return r.call(torch.clamp, x, low, high)
    word = {nn.ReLU: "relu", nn.ReLU6: "relu6"}.get(type(module), "hardtanh")
    return r.module(module, x, word=word)


def _elu(a: dict[str, Any]) -> nn.Module:
    if a["input_scale"] != 1:
        raise NotRaised
    if a["scale"] == 1:
        return nn.ELU(a["alpha"])
    if abs(a["scale"] - 1.0507009873554805) < 1e-6 and abs(a["alpha"] - 1.6732632423543772) < 1e-6:
        return nn.SELU()
    raise NotRaised


def _prelu(r: Raiser, a: dict[str, Any]) -> fx.Node:
    weight = r.tensor(a["weight"])
    assert weight is not None
    module = nn.PReLU(weight.numel())
    module.weight = nn.Parameter(weight.detach().clone().float().reshape(-1), requires_grad=False)
    return r.module(module, r.activation(a["self"]), word="prelu", owner=r.weight_name(a["weight"]))


def _threshold(a: dict[str, Any]) -> nn.Module:
    if a["threshold"] == 0 and a["value"] == 0:
        return nn.ReLU()
    raise NotRaised


def _rrelu(a: dict[str, Any]) -> nn.Module:
    if a["training"]:
        raise NotRaised
    return nn.LeakyReLU((a["lower"] + a["upper"]) / 2.0)


def _softmax(kind: type[nn.Module], word: str) -> Callable[[Raiser, dict[str, Any]], fx.Node]:
    def handler(r: Raiser, a: dict[str, Any]) -> fx.Node:
        source, dim = a["self"], a["dim"]
        if not r.is_float() or not r.is_float(source):
            raise NotRaised
        axis = dim if dim < 0 else dim - len(r.shape(source))
        return r.module(kind(dim=axis), r.activation(source), word=word)

    return handler


_SIMPLE: dict[str, Make] = {
    "relu": lambda _: nn.ReLU(),
    "relu6": lambda _: nn.ReLU6(),
    "hardswish": lambda _: nn.Hardswish(),
    "hardsigmoid": lambda _: nn.Hardsigmoid(),
    "silu": lambda _: nn.SiLU(),
    "sigmoid": lambda _: nn.Sigmoid(),
    "tanh": lambda _: nn.Tanh(),
    "gelu": lambda a: nn.GELU(a["approximate"]),
    "elu": _elu,
    "selu": lambda _: nn.SELU(),
    "celu": lambda a: nn.CELU(a["alpha"]),
    "leaky_relu": lambda a: nn.LeakyReLU(a["negative_slope"]),
    "mish": lambda _: nn.Mish(),
    "softplus": lambda a: nn.Softplus(a["beta"], a["threshold"]),
    "log_sigmoid": lambda _: nn.LogSigmoid(),
    "threshold": _threshold,
    "rrelu": _rrelu,
}

HANDLERS = {
    **{name: _one_value(make, name) for name, make in _SIMPLE.items()},
    **dict.fromkeys(("clamp", "hardtanh", "clamp_min", "clamp_max", "clip"), _clamp),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("softmax", "_softmax"), _softmax(nn.Softmax, "softmax")),
    **dict.fromkeys(("log_softmax", "_log_softmax"), _softmax(nn.LogSoftmax, "log_softmax")),
}
