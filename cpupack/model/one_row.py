"""A user's model as a function from one tensor to one: rows of all inputs in, rows of all outputs out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.arguments import Argument, with_arguments
from cpupack.model.carried import Carried, carrying
from cpupack.model.leaves import leaves_of
from cpupack.model.packed import padded_sequences
from cpupack.model.pasts import Past
from cpupack.runtime.open_inputs import names_of, typical_size
from cpupack.runtime.signature import OutputSpec
from cpupack.runtime.tensor_spec import TensorSpec, engine_input_shape, input_places, takes_rows

_DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "int64": torch.int64, "bool": torch.bool}


@dataclass(frozen=True)
class Taken:
    """One tensor of what a model returns: its name there, the shape of a sample, and the dimension of the batch.

    ``whole`` is the dtype of whole numbers and truth values, None of floats.
    """

    name: str
    shape: tuple[int, ...]
    axis: int = 0
    whole: str | None = None

    @property
    def size(self) -> int:
        """Values of one sample."""
        return OutputSpec(self.name, self.shape).size


class OneRow(nn.Module):
    """Takes one tensor, calls a user's model with its inputs, and returns one tensor.

    The tensor is that of the only float input, or a row of all inputs ``(n, values)``; images lie in it by positions,
    channels last. A row ends with the sizes of named dimensions, which the model does not read. The result is that of
    the only output in ``taken``, or a row of them. Without ``taken`` it is what the model returns. Parameters, buffers
    and modules are the user's, with the user's names.

    ``axes`` says in which dimension of each input the user's model has the batch; 0 everywhere without. The last inputs
    are the states of ``carried`` layers, which are no arguments of ``forward``, and so are the last outputs. With
    ``packs`` the user's model packs sequences, which are kept padded (``packed.py``).
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        names: Sequence[Argument],
        taken: Sequence[Taken] = (),
        *,
        axes: Sequence[int] = (),
        carried: Sequence[Carried | Past] = (),
        packs: bool = False,
    ) -> None:
        super().__init__()
        # The user's own tables: whoever looks for a layer or a weight finds it under the user's name.
        self._modules, self._parameters, self._buffers = module._modules, module._parameters, module._buffers
        self._non_persistent_buffers_set = module._non_persistent_buffers_set
        self._user = (module,)  # in a tuple, so that it is no module below this one
        self._inputs, self._names, self._taken = tuple(inputs), tuple(names), tuple(taken)
        self._axes, self._carried = tuple(axes) or (0,) * len(self._inputs), tuple(carried)
        self._packs = packs
        self.training = module.training

    def taking(self, taken: Sequence[Taken]) -> OneRow:
        """Return the same model with the outputs ``taken``."""
        return self._changed(taken, packs=self._packs)

    def packing(self, *, packs: bool = True) -> OneRow:
        """Return the same model whose packed sequences are kept padded, or not."""
        return self._changed(self._taken, packs=packs)

    def with_inputs(self, inputs: Sequence[TensorSpec]) -> OneRow:
        """Return the same model whose inputs have other sizes of their names."""
        return self._changed(self._taken, packs=self._packs, inputs=inputs)

    def _changed(self, taken: Sequence[Taken], *, packs: bool, inputs: Sequence[TensorSpec] | None = None) -> OneRow:
        return OneRow(
            self._user[0], inputs or self._inputs, self._names, taken, axes=self._axes, carried=self._carried,
            packs=packs,
        )  # fmt: skip

    @property
    def user(self) -> nn.Module:
        """The user's model."""
        return self._user[0]

    @property
    def carried(self) -> tuple[Carried | Past, ...]:
        """The recurrent layers and causal paddings whose states are inputs and outputs."""
        return self._carried

    @property
    def axes(self) -> tuple[int, ...]:
        """The dimension of the batch of each input in ``forward``."""
        return self._axes

    @property
    def taken(self) -> tuple[Taken, ...]:
        """The outputs, in order."""
        return self._taken

    @property
    def packs(self) -> bool:
        """Whether the user's model packs sequences."""
        return self._packs

    def call_user(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Return what the user's model gives for its own inputs; states of ``carried`` layers after them are unused."""
        ordered, named = with_arguments(self._names, tensors)
        if not self._packs:
            return self._user[0](*ordered, **named)
        with padded_sequences():
            return self._user[0](*ordered, **named)

    def train(self, mode: bool = True) -> OneRow:
        """Set the mode of the user's model too."""
        self._user[0].train(mode)
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> Any:
        """Return one tensor for one tensor."""
        result = self._called(self.tensors(x))
        if not self._taken:
            return result
        tensors = self._taken_of(result)
        if len(tensors) == 1:
            return tensors[0] if self._taken[0].shape else tensors[0].reshape(-1, 1)
        # Not the size in ``taken``, which is that of one size of images.
        return torch.cat([each.reshape(-1, math.prod(each.shape[1:])) for each in tensors], dim=1)

    def outputs(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the outputs ``taken``, float32, for a tensor for each input."""
        return self._taken_of(self._called(tensors))

    def tensors(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors that the user's model takes, from what this module takes."""
        if not takes_rows(self._inputs):
            return [x.movedim(0, self._axes[0]) if self._axes[0] else x]
        found = []
        for spec, place, axis in zip(self._inputs, input_places(self._inputs), self._axes, strict=True):
            part = x if len(self._inputs) == 1 and not spec.names else x[:, place]
            if spec.preprocess is not None:
                channels, height, width = spec.shape
                part = part.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
            elif len(spec.shape) != 1:
                part = part.reshape(-1, *spec.shape)
            if axis:
                part = part.movedim(0, axis)
            found.append(part if spec.dtype == "float32" else part.to(_DTYPES[spec.dtype]))
        return found

    def _called(self, tensors: Sequence[torch.Tensor]) -> Any:
        if not self._carried:
            return self.call_user(tensors)
        states = {spec.name: each for spec, each in zip(self._inputs, tensors, strict=True) if spec.state}
        with carrying(self._user[0], self._carried, states) as last:
            result = self.call_user(tensors)
        outputs = {spec.name: str(spec.state) for spec in self._inputs if spec.state}
        return leaves_of(result).tensors | {outputs[name]: each for name, each in last.items()}

    def _taken_of(self, result: Any) -> list[torch.Tensor]:
        found = leaves_of(result).tensors
        missing = [each.name for each in self._taken if each.name not in found]
        if missing:
            raise ModelError(
                f"the model returned no {missing[0]} this time, but {', '.join(found) or 'nothing'}",
                hint="forward must return the same outputs for every input",
            )
        return [
            found[each.name].float().movedim(each.axis, 0) if each.axis else found[each.name].float()
            for each in self._taken
        ]


def blank(inputs: Sequence[TensorSpec], batch: int) -> torch.Tensor:
    """Return what ``OneRow`` takes: zeros, the defaults of the inputs that have one, and 1 for lengths.

    Raises RuntimeError where the memory does not suffice.
    """
    x = torch.zeros(batch, *engine_input_shape(inputs), dtype=torch.float32)
    if takes_rows(inputs):
        for spec, place in zip(inputs, input_places(inputs), strict=True):
            x[:, place] = float(spec.least if spec.default is None else spec.default)
        if count := len(names_of(inputs)):
            x[:, -count:] = torch.tensor(typical_size(inputs)[-count:], dtype=x.dtype)
    return x
