"""An INT8 model that is one operator: the engine's program, and what FP32 comes before and behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Look:
    """Where the result of a call of the FP32 graph is while a program runs.

    ``node`` is the call's name in the graph. After ``layer`` the codes ``(n, *shape)``, shape being height, width and
    channels, have it in their ``channels`` (first, end); value = (code - zero_point) * scale. Without a layer it is
    the engine's result.
    """

    node: str
    layer: int | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    channels: tuple[int, int] = (0, 0)
    scale: float = 1.0
    zero_point: int = 0


class NativeModel(nn.Module):
    """Takes uint8 pixels with their mask or normalized float32, NCHW; returns float32.

    ``program`` is the engine's (``stages/quantize/native/program.py``). The operator ``cpupack::run_1`` must be
    registered before this is called or loaded (``runtime/engine/library.py``). ``operators`` counts its layers by kind;
    ``looks`` says where to see the result of each, None for those that are not to be seen. ``head`` and ``tail`` are
    the parts of the model that stay FP32; the engine's result has ``output_shape`` without the batch, or is an image
    that it has by positions (``image``). ``pixel_input`` says that it takes pixels.
    """

    def __init__(
        self,
        program: bytes,
        output_shape: tuple[int, ...],
        operators: dict[str, int],
        looks: tuple[Look | None, ...] = (),
        *,
        pixel_input: bool = False,
        image: bool = False,
        head: nn.Module | None = None,
        tail: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.operators, self.looks, self.pixel_input, self.image = operators, looks, pixel_input, image
        self.register_buffer("program", torch.from_numpy(np.frombuffer(program, np.uint8).copy()))
        self.outputs = int(np.prod(output_shape))
        channels, *positions = output_shape
        self.result_shape = (*positions, channels) if image else output_shape
        self.head, self.tail = head, tail

    @property
    def is_program(self) -> bool:
        """Whether the program is all there is to the model: no FP32 part, and no change of the result's shape."""
        return self.head is None and self.tail is None and not self.image and self.result_shape == (self.outputs,)

    def engine_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the engine reads when the model is given ``x``."""
        if self.head is not None:
            x = self.head(x)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def engine_result(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the engine makes of ``x``, in its shape."""
        result: torch.Tensor = torch.ops.cpupack.run_1(self.engine_input(x), self.program, self.outputs)
        if self.result_shape != (self.outputs,):
            result = result.reshape(-1, *self.result_shape)
        if self.image:
            result = result.permute(0, 3, 1, 2)
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.engine_result(x)
        if self.tail is not None:
            result = self.tail(result)
        return result
