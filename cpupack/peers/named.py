"""A model as other engines take it: one tensor for each input and each output, in place of rows of them all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.model.one_row import OneRow
from cpupack.runtime.signature import OutputSpec, Signature


def with_named_inputs(module: nn.Module, signature: Signature, names: tuple[str, ...]) -> nn.Module:
    """Return a module whose arguments are ``names`` and whose result is a tuple of the outputs, or the only one.

    ``module`` takes and gives rows. It is returned itself where it has one float input and one output. What the recipe
    applies to an output, such as a softmax, is part of the result: the wheel's runner does it too.
    """
    if signature.is_plain:
        return module
    graph = fx.Graph()
    inputs = tuple(graph.placeholder(name) for name in names)
    graph.output(graph.call_module("model", inputs))
    return fx.GraphModule({"model": _Outputs(module, signature)}, graph).eval()


class _Outputs(nn.Module):
    """Calls the user's model with a tensor for each input."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = module.user if isinstance(module, OneRow) else module
        self._call = module.outputs if isinstance(module, OneRow) else lambda inputs: [module(*inputs)]
        self._outputs = signature.outputs
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        found = self._call(inputs)
        finished = tuple(_finished(spec, each) for spec, each in zip(self._outputs, found, strict=True))
        return finished if len(finished) > 1 else finished[0]


def _finished(spec: OutputSpec, values: torch.Tensor) -> torch.Tensor:
    match spec.apply:
        case "softmax":
            return values.softmax(spec.dim)
        case "sigmoid":
            return values.sigmoid()
        case "argmax":
            return values.argmax(spec.dim)
    return values


def arrays_of(signature: Signature, rows: npt.NDArray[np.float32]) -> list[npt.NDArray[np.generic]]:
    """Return the inputs ``(n, *shape)`` that lie in rows ``(n, values)``, each of its own dtype and contiguous."""
    found = []
    for spec, place in zip(signature.inputs, signature.input_places(), strict=True):
        part = rows[:, place]
        if spec.preprocess is not None:  # an image lies there by positions
            channels, height, width = spec.shape
            part = part.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        found.append(np.ascontiguousarray(part.reshape(-1, *spec.shape), spec.dtype))
    return found
