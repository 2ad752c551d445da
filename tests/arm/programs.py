"""Writes every program of the kernel tests, with what each of its layers leaves on x86, for ``driver.c``.

The kernel tests compare the same programs on x86 with plain numpy.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "runtime")]
import native_nets  # noqa: E402 - found by the line before
import test_float_kernels  # noqa: E402 - as the first
import test_recurrent_kernels  # noqa: E402 - as the first
import video_nets  # noqa: E402 - as the first

from arm.counting import HEAD  # noqa: E402 - as the first
from cpupack.layers.native import codes_after  # noqa: E402 - as the first
from cpupack.runtime.engine import library  # noqa: E402 - as the first

LOOK = struct.Struct("2q")


@dataclass(frozen=True)
class Case:
    """A program, its input ``(n, ...)`` in the order of memory, its float32 results and the codes of some layers."""

    name: str
    program: bytes
    x: np.ndarray[Any, Any]
    results: np.ndarray[Any, Any]
    layers: dict[int, np.ndarray[Any, Any]]


def cases() -> Iterator[Case]:
    """Run every program of the kernel tests here."""
    library.load()
    library.set_threads(1)
    for name, make in {**native_nets.NETS, **video_nets.VIDEO_NETS}.items():
        net = make()
        x, program = net.tensors()
        codes = {
            layer: codes_after(program, x, layer, net.values[number].shape[1:])
            for number, layer in native_nets.last_writers(net).items()
        }
        yield case(name, program, x, net.program.outputs, codes)
    for kind, tests in (("float", test_float_kernels), ("recurrent", test_recurrent_kernels)):
        for name in tests.NETS:
            floats = tests.made(name)
            x, program = floats.tensors()
            yield case(f"{kind} {name}", program, x, floats.program.outputs, {})


def case(
    name: str, program: torch.Tensor, x: torch.Tensor, outputs: int, layers: dict[int, np.ndarray[Any, Any]]
) -> Case:
    """Run one program on ``x``, which is channels_last where it has four dimensions."""
    results = torch.ops.cpupack.run_3(x, program, outputs).numpy()
    in_memory = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    return Case(name, program.numpy().tobytes(), in_memory.contiguous().numpy(), results, layers)


def write(file: BinaryIO, each: Case) -> None:
    """Append a case to what ``driver.c`` reads."""
    data, results = each.x.tobytes(), each.results.tobytes()
    is_float = int(each.x.dtype == np.float32)
    sizes = len(each.program), len(data), len(results), is_float, len(each.x), len(each.layers)
    file.write(HEAD.pack(each.name.encode(), *sizes))
    file.write(each.program + data + results)
    for layer, codes in each.layers.items():
        file.write(LOOK.pack(layer, codes.nbytes))
        file.write(codes.tobytes())


def main() -> None:
    """Write all cases to the file that the command line names."""
    with Path(sys.argv[1]).open("wb") as file:
        for each in cases():
            write(file, each)


if __name__ == "__main__":
    main()
