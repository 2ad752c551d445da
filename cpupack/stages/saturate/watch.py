"""Runs an INT8 model and records the inputs and weights of each operator, called by a module or by a function."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cpupack.stages.saturate.pairs import Geometry, PairSums, PairWatcher

_CONV = re.compile(r"\.Conv(\d)dPackedParamsBase$")
_HOLDER = re.compile(r"(\._packed_params)+$")


class OperatorWatcher(TorchDispatchMode):
    """Inside ``with``, records the inputs of every operator with packed INT8 weights. Dynamic operators are left out.

    A layer has the name of the module that holds its weights. The weights of a function have a name from FX.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._layers: dict[str, PairWatcher] = {}
        # The same packed weights are a new Python object at each call, but with the same hash.
        self._names = {
            hash(value): _HOLDER.sub("", f"{name}.{key}").lstrip(".")
            for name, child in module.named_modules()
            for key, value in vars(child).items()
            if isinstance(value, torch.ScriptObject)
        }

    def sums(self) -> dict[str, PairSums]:
        """Return the result for each layer's 16-bit sums, in the order of the first call."""
        return {name: layer.finish() for name, layer in self._layers.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packed = next((value for value in args if isinstance(value, torch.ScriptObject)), None)
        if packed is not None and isinstance(args[0], torch.Tensor) and args[0].is_quantized:
            self._watch(args[0], packed, str(func))
        return func(*args, **(kwargs or {}))

    def _watch(self, values: torch.Tensor, packed: Any, function: str) -> None:
        name = self._names.get(hash(packed), function)
        conv = _CONV.search(packed._type().qualified_name())
        if name not in self._layers:
            weights, geometry = _unpack(packed, is_conv=conv is not None)
            self._layers[name] = PairWatcher(weights.int_repr(), geometry)
        codes = values.int_repr()
        if conv and codes.ndim == int(conv[1]) + 1:
            codes = codes.unsqueeze(2)  # torch runs a 1-D convolution as a 2-D convolution of height 1
        self._layers[name].add(codes, int(values.q_zero_point()))


def _unpack(packed: Any, *, is_conv: bool) -> tuple[torch.Tensor, Geometry]:
    if not is_conv:
        weights, _ = torch.ops.quantized.linear_unpack(packed)
        return weights, Geometry()
    weights, _ = packed.unpack()
    geometry = Geometry(
        int(packed.groups()), packed.stride(), packed.padding(), packed.dilation(), bool(packed.transpose())
    )
    return weights, geometry
