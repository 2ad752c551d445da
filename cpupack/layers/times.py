"""The share of the time of an inference that each layer of a native engine's model takes on this host."""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.graph.native_model import MixedModel, NativeModel, NativePart, Steps
from cpupack.runtime.engine import library as native_library
from cpupack.runtime.engine.program_format import HEADER
from cpupack.runtime.engine.prototypes import declare

_ROUNDS = 5
Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def time_shares(model: NativeModel | MixedModel, batch: torch.Tensor) -> list[float]:
    """Return each layer's share (0 to 1) of the time of one inference, by ``model.steps``: one thread, this batch.

    The time of each is the least of some rounds, so that other work on the host changes it little. What the model does
    between its layers (its input, its results, copies) belongs to none of them, so the sum is below 1.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [_round(model, batch) for _ in range(_ROUNDS + 1)][1:]  # the first one prepares weights and memory
    finally:
        torch.set_num_threads(threads)
    programs = [np.min([each.programs[number] for each in rounds], axis=0) for number in range(len(rounds[0].programs))]
    calls = {name: min(each.calls[name] for each in rounds) for name in rounds[0].calls}
    total = sum(int(each.sum()) for each in programs) + sum(calls.values())

    def spent(steps: Steps) -> int:
        if steps.call:
            return calls.get(steps.call, 0)
        return int(programs[steps.part][steps.first : steps.end].sum())

    return [round(spent(each) / max(total, 1), 6) for each in model.steps]


class _Round:
    """The nanoseconds of one inference: of each layer of each program, and of each call that torch runs."""

    def __init__(self) -> None:
        self.programs: list[Times] = []
        self.calls: Counter[str] = Counter()


def _round(model: NativeModel | MixedModel, batch: torch.Tensor) -> _Round:
    found = _Round()
    if isinstance(model, MixedModel):
        _Clock(model.graph, found).run(batch)
        return found
    if isinstance(model.head, fx.GraphModule):
        _Clock(model.head, found).run(batch)
    program, outputs = model.get_buffer("program"), model.outputs
    found.programs.append(profiled(program, model.engine_input(batch), outputs)[1])
    if isinstance(model.tail, fx.GraphModule):
        _Clock(model.tail, found).run(model.engine_result(batch))
    return found


class _Clock(fx.Interpreter):
    """Runs a graph and notes the time of each call; of a program, that of each layer."""

    def __init__(self, graph: fx.GraphModule, found: _Round) -> None:
        super().__init__(graph)
        self._found = found

    def run_node(self, n: fx.Node) -> Any:
        if not n.op.startswith("call"):
            return super().run_node(n)
        part: nn.Module | None = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(part, NativePart):
            tensors, _ = self.fetch_args_kwargs_from_env(n)
            x = part.engine_input(*tensors)
            self._found.programs.append(profiled(part.get_buffer("program"), x, part.values)[1])
            return super().run_node(n)
        begin = time.perf_counter_ns()
        result = super().run_node(n)
        self._found.calls[n.name] += time.perf_counter_ns() - begin
        return result


def profiled(program: torch.Tensor, x: torch.Tensor, outputs: int) -> tuple[Floats, Times]:
    """Run a program on its input; return the results ``(n, outputs)``, and the nanoseconds of each of its layers.

    The native kernels must be loaded. Raises RuntimeError if the program cannot run.
    """
    library = ctypes.CDLL(native_library.describe()["path"])  # already loaded, so this returns the same library
    declare(library)
    count = int(program.numpy()[: HEADER.itemsize].view(HEADER)[0]["layers"])
    ns, results = np.zeros(count, np.int64), np.empty((len(x), outputs), np.float32)
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()
    code = library.cpupack_profile(
        ctypes.c_void_p(program.data_ptr()), program.numel(), ctypes.c_void_p(x.data_ptr()), int(x.is_floating_point()),
        len(x), results.ctypes.data_as(ctypes.c_void_p), count, ns.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    if code != 0:
        raise RuntimeError(f"the program: {library.cpupack_error(code).decode()}")
    return results, ns
