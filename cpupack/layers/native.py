"""The layers of a native engine's model. The error of each is measured by stopping the program after it."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.artifacts import CalibratedModel, LayerFact, Samples
from cpupack.graph.chains import residual_summands
from cpupack.graph.native_model import Look, MixedModel, NativeModel, NativePart
from cpupack.graph.proposals import after_proposals
from cpupack.layers.facts import output_sqnr_db
from cpupack.layers.times import time_shares
from cpupack.layout import batch_channels_last
from cpupack.quantized_engine import engine
from cpupack.runtime.engine import library as native_library
from cpupack.runtime.engine.prototypes import declare
from cpupack.runtime.images.inputs import model_input


def native_layers(
    model: NativeModel | MixedModel, layers: tuple[LayerFact, ...], calibrated: CalibratedModel, samples: Samples
) -> tuple[LayerFact, ...]:
    """Return ``layers`` with the SQNR of each output against that of the FP32 graph on ``samples``, and its time.

    Layers whose output is never written to memory get no SQNR.
    """
    floats = calibrated.fused.canonical
    assert isinstance(floats, fx.GraphModule)
    other_summand = {
        each.name: next(other.name for other in add.all_input_nodes if other is not each)
        for add, summands in residual_summands(floats).items()
        for each in summands
    }
    unordered = {node.name for node in after_proposals(floats)}  # their rows are other boxes than those of FP32
    wanted = {look.node for look in model.looks if look is not None}
    wanted |= {other_summand[name] for name in wanted if name in other_summand}
    with torch.inference_mode(), engine(native_library.ENGINE):
        batch = batch_channels_last(samples.tensor(slice(None)))
        keeper = _Keeper(floats, wanted)
        keeper.run(batch)
        if model.pixel_input and samples.preprocess is not None:  # it takes floats too, as they are
            pixels = model_input(samples.data, samples.preprocess, pixel_input=True)
            batch = batch_channels_last(torch.from_numpy(pixels))
        runs = _runs(model, batch)
        facts = []
        shares = time_shares(model, batch)
        for layer, look, share in zip(layers, model.looks, shares, strict=True):
            fact = dataclasses.replace(layer, time_share=share)
            if look is not None and look.node not in unordered:
                found, expected = _found(look, runs[look.part]), keeper.values[look.node]
                if len(found) != len(expected) or (look.steps and found.shape != expected.shape):
                    facts.append(fact)  # the model has the batch elsewhere
                    continue
                hidden = -keeper.values[other_summand[look.node]] if look.node in other_summand else None
                error = _error_db(expected, found.reshape(expected.shape), hidden)
                fact = dataclasses.replace(fact, output_sqnr_db=error)
            facts.append(fact)
    return tuple(facts)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A program that ran: what it read, and its results ``(n, values)``."""

    program: torch.Tensor
    x: torch.Tensor
    values: torch.Tensor


def _runs(model: NativeModel | MixedModel, batch: torch.Tensor) -> list[_Run]:
    """Run a model and return what each of its programs did."""
    if isinstance(model, NativeModel):
        x = model.engine_input(batch)
        return [_Run(model.get_buffer("program"), x, _results(x, model.get_buffer("program"), model.outputs))]
    runs: dict[NativePart, _Run] = {}

    def note(part: nn.Module, tensors: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(part, NativePart)
        x, program = part.engine_input(*tensors), part.get_buffer("program")
        runs[part] = _Run(program, x, _results(x, program, part.values))

    handles = [part.register_forward_pre_hook(note) for part in model.parts]
    model(batch)
    for handle in handles:
        handle.remove()
    return [runs[part] for part in model.parts]


def _results(x: torch.Tensor, program: torch.Tensor, outputs: int) -> torch.Tensor:
    values: torch.Tensor = torch.ops.cpupack.run_3(x, program, outputs)
    return values


def _found(look: Look, run: _Run) -> torch.Tensor:
    if look.layer is None and look.steps:
        return run.values.as_strided((len(run.values), *look.sizes), (run.values.shape[1], *look.steps), look.first)
    if look.layer is None:
        return run.values[:, look.first : look.first + look.channels[1]]
    codes = codes_after(run.program, run.x, look.layer, look.shape)
    if look.steps:
        values = torch.from_numpy(codes.reshape(len(codes), -1).view(np.float32))
        return values.as_strided((len(values), *look.sizes), (values.shape[1], *look.steps), look.first)
    return _values(codes, look)


def _error_db(expected: torch.Tensor, found: torch.Tensor, hidden: torch.Tensor | None) -> float | None:
    """Compare two results. If they are a summand x of relu(x + y), ``hidden`` is -y, and max(x, -y) is compared."""
    if hidden is not None and hidden.shape == expected.shape:
        expected, found = torch.maximum(expected, hidden), torch.maximum(found, hidden)
    return output_sqnr_db(expected, found)


def _values(codes: npt.NDArray[np.uint8], look: Look) -> torch.Tensor:
    own = codes[..., look.channels[0] : look.channels[1]].transpose(0, 3, 1, 2)
    return (torch.from_numpy(own.astype(np.float32)) - look.zero_point) * look.scale


def codes_after(
    program: torch.Tensor, x: torch.Tensor, layer: int, shape: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Return the output of ``layer`` of a program, uint8 ``(n, *shape)``. ``x`` is the input of the program.

    The native kernels must be loaded. Raises RuntimeError if the program cannot run or the layer writes no output.
    """
    library = ctypes.CDLL(native_library.describe()["path"])  # already loaded, so this returns the same library
    declare(library)
    codes = np.empty((len(x), *shape), np.uint8)
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()
    code = library.cpupack_look(
        _pointer(program), ctypes.c_int64(program.numel()), _pointer(x), int(x.is_floating_point()),
        ctypes.c_int64(len(x)), layer, codes.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    if code != 0:
        raise RuntimeError(f"layer {layer} of the program: {library.cpupack_error(code).decode()}")
    return codes


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


class _Keeper(fx.Interpreter):
    """Keeps copies of the values of some nodes, because a later call may change them in place."""

    def __init__(self, module: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.values: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted:
            self.values[n.name] = value.clone()
        return value
