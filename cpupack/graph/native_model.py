"""INT8 models of the native engine: one program, or several with FP32 between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from cpupack.runtime.engine.lengths import Lengths
from cpupack.runtime.engine.program import Layout
from cpupack.runtime.engine.sizes import Sizes

FP32_PREFIX = "cpupack::float_"
"""How the names of a program's layers in FP32 begin."""
CONVERSIONS = ("cpupack::dequantize", "cpupack::quantize", "cpupack::float_input")
"""Layers of a program that only turn codes into float32 values, or back, or take the caller's."""


@dataclass(frozen=True)
class Look:
    """Where the result of a call of the FP32 graph is while a program runs.

    ``node`` is the call's name in the graph. After ``layer`` the codes ``(n, *shape)``, shape being height, width and
    channels, have it in their ``channels`` (first, end); value = (code - zero_point) * scale. Without a layer it is
    among the results of the engine, from value ``first`` of each sample on. ``part`` is the number of the program.
    With ``steps`` the buffer has float32 values (``shape`` is in bytes), and those of a sample, ``(*sizes)``, lie at
    these distances from value ``first`` on.
    """

    node: str
    layer: int | None = None
    part: int = 0
    first: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    channels: tuple[int, int] = (0, 0)
    scale: float = 1.0
    zero_point: int = 0
    sizes: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Steps:
    """What computes a layer: layers ``first`` to ``end`` of program ``part``, or torch: ``call`` of the FP32 graph."""

    part: int = 0
    first: int = 0
    end: int = 0
    call: str = ""


class NativeModel(nn.Module):
    """Takes uint8 pixels with their mask or normalized float32, NCHW; returns float32.

    ``program`` is the engine's (``stages/quantize/native/program.py``). The operator ``cpupack::run_3`` must be
    registered before this is called or loaded (``runtime/engine/library.py``). ``operators`` counts its layers by kind;
    ``looks`` says where to see the result of each, None for those that are not to be seen, and ``steps`` what computes
    each. With ``lengths`` the programs of other lengths follow the one that this module runs; with ``sizes`` the runner
    makes those of other sizes of it. ``head`` and ``tail`` are
    the parts of the model that stay FP32; the engine's result has ``output_shape`` without the batch, or is an image
    that it has by positions (``image``). ``pixel_input`` says that it takes pixels. ``choices`` says how layers were
    lowered, where that depends on sizes (``stages/quantize/native/choices.py``).
    """

    def __init__(
        self,
        program: bytes,
        output_shape: tuple[int, ...],
        operators: dict[str, int],
        looks: tuple[Look | None, ...] = (),
        *,
        steps: tuple[Steps, ...] = (),
        pixel_input: bool = False,
        image: bool = False,
        head: nn.Module | None = None,
        tail: nn.Module | None = None,
        lengths: Lengths | None = None,
        sizes: Sizes | None = None,
        choices: Mapping[Any, float] | None = None,
    ) -> None:
        super().__init__()
        self.choices = dict(choices or {})
        self.lengths, self.sizes = lengths, sizes
        self.operators, self.looks, self.steps = operators, looks, steps
        self.pixel_input, self.image = pixel_input, image
        self.register_buffer("program", torch.from_numpy(np.frombuffer(program, np.uint8).copy()))
        self.outputs = int(np.prod(output_shape))
        self.result_shape = (*output_shape[1:], output_shape[0]) if image else output_shape
        self.head, self.tail = head, tail

    def with_lengths(self, program: bytes, lengths: Lengths) -> NativeModel:
        """Return this model, which is a program alone, with the programs of several lengths in one block.

        Its results must not be an image: those of a length are cut and filled in the order of the model's output.
        """
        assert not self.image
        found = NativeModel(
            program, self.result_shape, self.operators, self.looks, steps=self.steps, pixel_input=False, lengths=lengths
        )
        return found.eval()

    def with_sizes(self, sizes: Sizes, program: bytes | None = None) -> NativeModel:
        """Return this model, which is a program alone, as one for inputs of several sizes.

        ``program`` is its own one with the tables at the end that ``sizes`` refer to, None where there are none.
        """
        found = NativeModel(
            self.get_buffer("program").numpy().tobytes() if program is None else program,
            (self.result_shape[-1], *self.result_shape[:-1]) if self.image else self.result_shape,
            self.operators,
            self.looks,
            steps=self.steps,
            pixel_input=self.pixel_input,
            image=self.image,
            sizes=sizes,
        )
        return found.eval()

    @property
    def is_program(self) -> bool:
        """Whether the model only runs its program: it has no FP32 part.

        The runner lays inputs out as ``engine_input`` does, and results by ``layout``.
        """
        return self.head is None and self.tail is None

    @property
    def layout(self) -> Layout | None:
        """How the engine's results lie, None for a row."""
        return None if self.result_shape == (self.outputs,) else Layout(self.result_shape, self.image)

    def engine_input(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the engine reads when the model is given ``x``."""
        if self.head is not None:
            x = self.head(x)
        if x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x if x.dim() == 2 else x.flatten(1).contiguous()

    def engine_result(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the engine makes of ``x``, in its shape."""
        result: torch.Tensor = torch.ops.cpupack.run_3(self.engine_input(x), self.program, self.outputs)
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


@dataclass(frozen=True)
class Packing:
    """Where a tensor is among the values of a sample that a program takes or gives: from ``first`` on, row by row.

    ``shape`` is a sample's. An image ``(channels, height, width)`` is there by positions. The values are float32; the
    tensor outside has ``dtype``: the places that an argmax finds are integers.
    """

    first: int
    shape: tuple[int, ...]
    image: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def size(self) -> int:
        """Values of one sample."""
        return int(np.prod(self.shape))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Return a batch of tensors as float32 ``(n, size)``."""
        values = x if x.dtype == torch.float32 else x.to(torch.float32)
        return (values.permute(0, 2, 3, 1) if self.image else values).reshape(-1, self.size)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Return the tensors that are in ``(n, values)``."""
        own = values[:, self.first : self.first + self.size]
        if not self.image:
            return own.reshape(-1, *self.shape).to(self.dtype)
        channels, height, width = self.shape
        return own.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


class NativePart(nn.Module):
    """One program of several: takes its ``inputs``, or an image as NativeModel does, and gives its ``outputs``."""

    def __init__(self, program: bytes, inputs: tuple[Packing, ...] | None, outputs: tuple[Packing, ...]) -> None:
        super().__init__()
        self.register_buffer("program", torch.from_numpy(np.frombuffer(program, np.uint8).copy()))
        self.inputs, self.outputs = inputs, outputs
        self.values = sum(each.size for each in outputs)

    def engine_input(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return what the engine reads."""
        if self.inputs is None:
            (x,) = tensors
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        packed = [each.pack(x) for each, x in zip(self.inputs, tensors, strict=True)]
        return packed[0].contiguous() if len(packed) == 1 else torch.cat(packed, 1)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        values: torch.Tensor = torch.ops.cpupack.run_3(self.engine_input(*tensors), self.program, self.values)
        results = tuple(each.unpack(values) for each in self.outputs)
        return results[0] if len(results) == 1 else results


class MixedModel(nn.Module):
    """A graph of ``NativePart`` modules and of the calls between them that stay FP32; as NativeModel to its callers."""

    def __init__(
        self,
        graph: fx.GraphModule,
        parts: tuple[NativePart, ...],
        operators: dict[str, int],
        looks: tuple[Look | None, ...],
        *,
        steps: tuple[Steps, ...] = (),
        pixel_input: bool,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.parts, self.operators, self.pixel_input = parts, operators, pixel_input
        self.looks, self.steps = looks, steps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.graph(x)
        return result
