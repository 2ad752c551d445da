"""An INT8 model that is one operator: the engine's program, and the call that runs it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


class NativeModel(nn.Module):
    """Takes uint8 pixels with their mask or normalized float32, NCHW; returns float32 ``(n, outputs)``.

    ``program`` is the engine's (``stages/quantize/native/program.py``). The operator ``cpupack::run_1`` must be
    registered before this is called or loaded (``runtime/native.py``). ``operators`` counts the kinds of its layers.
    """

    def __init__(self, program: bytes, outputs: int, operators: dict[str, int]) -> None:
        super().__init__()
        self.operators = operators
        self.register_buffer("program", torch.from_numpy(np.frombuffer(program, np.uint8).copy()))
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = torch.ops.cpupack.run_1(x, self.program, self.outputs)
        return result
