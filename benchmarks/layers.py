"""Where the time of a native program goes, layer by layer, and whether new kernels are faster than old ones.

``python benchmarks/layers.py profile MODEL.pt`` compiles kernels/ with ``profile_layers.c`` and prints each layer's
time, its multiply-adds a second and its share. ``--batch`` and ``--threads`` set the call, ``--sort`` lists the slowest
first.
``python benchmarks/layers.py ratio OLD.so,OLD.pt NEW.so,NEW.pt`` runs two libraries in turns and prints the median of
old time / new time with its 95 % interval, for batch 8 on one thread and batch 1 on two.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.comparison.stats import paired_ratio
from cpupack.runtime.engine.program import Program, read_program
from cpupack.runtime.engine.program_format import LAYER
from cpupack.runtime.engine.prototypes import declare
from cpupack.stages.quantize.native.program import Op

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from hatch_build import COMPILER, FLAGS, compile_library  # noqa: E402 - it lies beside the package

PROFILER = "benchmarks/profile_layers.c"
TIMED = np.dtype([("spec", LAYER), ("in", "<i4", 4), ("out", "<i4", 4), ("ns", "<i8"), ("calls", "<i8")])
CALLS = ((8, 1), (1, 2))
"""Batches and threads of ``ratio``."""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    profiled = commands.add_parser("profile")
    profiled.add_argument("model", type=Path)
    profiled.add_argument("--batch", type=int, default=8)
    profiled.add_argument("--threads", type=int, default=1)
    profiled.add_argument("--calls", type=int, default=20)
    profiled.add_argument("--sort", action="store_true")
    compared = commands.add_parser("ratio")
    compared.add_argument("old")
    compared.add_argument("new")
    compared.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.command == "profile":
        profile(arguments.model, arguments.batch, arguments.threads, arguments.calls, slowest_first=arguments.sort)
    else:
        ratio(arguments.old, arguments.new, arguments.pairs)


@dataclass
class Engine:
    """A library, a program and a session of it, with random pixels to call it with, or floats where it takes none."""

    library: ctypes.CDLL
    program: Program
    session: Any
    batch: npt.NDArray[Any]
    result: npt.NDArray[np.float32]

    @classmethod
    def open(cls, library: Path, model: Path, batch: int, threads: int) -> Engine:
        """Load a library and a saved model, at its typical size where it has several."""
        loaded = ctypes.CDLL(str(library.resolve()))
        declare(loaded)
        program = read_program(model)
        program = program if program.sized is None else program.fixed(*program.typical_size)
        shape, random = program.pixel_shape or program.float_shape, np.random.default_rng(0)
        assert shape is not None, "the program takes neither pixels nor one array of floats"
        places = (batch, *shape[1:], shape[0])
        values: npt.NDArray[Any]
        if program.pixel_shape is not None:
            values = random.integers(0, 256, places, np.uint8)
        else:
            values = random.standard_normal(places, np.float32)
        result = np.empty((batch, program.outputs), np.float32)
        return cls(loaded, program, loaded.cpupack_new_session(threads), values, result)

    def run(self) -> float:
        """Return the time of one call in seconds."""
        memory = self.program.memory
        begin_s = time.perf_counter()
        failed = self.library.cpupack_run(
            self.session, memory.ctypes.data, memory.size, self.batch.ctypes.data,
            self.batch.dtype == np.float32, -1, len(self.batch), self.result.ctypes.data,
        )  # fmt: skip
        assert not failed, self.library.cpupack_error(failed)
        return time.perf_counter() - begin_s


def ratio(old: str, new: str, pairs: int) -> None:
    """Print how many times as fast the new library is, and whether the results are equal."""
    for batch, threads in CALLS:
        engines = [
            Engine.open(Path(lib), Path(model), batch, threads) for lib, model in (old.split(","), new.split(","))
        ]
        for engine in engines:
            once_s = min(engine.run() for _ in range(3))
        calls = max(1, int(0.06 / once_s))
        times = []
        for number in range(pairs):
            turns = engines if number % 2 == 0 else engines[::-1]
            found = {id(engine): sorted(engine.run() for _ in range(calls)) for engine in turns}
            times.append([found[id(engine)][calls // 2] for engine in engines])
        value = paired_ratio([each[0] for each in times], [each[1] for each in times])
        same = "equal" if np.array_equal(engines[0].result, engines[1].result) else "RESULTS DIFFER"
        medians = ", ".join(f"{1e3 * sorted(each[i] for each in times)[pairs // 2]:.3f}" for i in range(2))
        _say(
            f"batch {batch} on {threads}: {value.median:.3f} ({value.low:.3f} to {value.high:.3f}), "
            f"ms {medians}, {same}"
        )


def compile_profiler() -> Path:
    """Compile kernels/ with the profiler. Returns the library's path."""
    library = ROOT / "build" / "profile_layers.so"
    flags = [each for each in FLAGS if each != "-s"]
    compile_library(ROOT, library, (sys.executable, "-m", COMPILER, "cc", *flags, "-Wl,--wrap=find_kernels", PROFILER))
    return library


def profile(model: Path, batch: int, threads: int, calls: int, *, slowest_first: bool) -> None:
    """Print a line for each layer."""
    engine = Engine.open(compile_profiler(), model, batch, threads)
    for _ in range(3):
        engine.run()
    best: npt.NDArray[Any] | None = None
    totals = []
    for _ in range(calls):
        engine.library.cpupack_timed_clear()
        totals.append(engine.run())
        found = _layers(engine.library)
        if best is None:
            best = found
        else:
            best["ns"] = np.minimum(best["ns"], found["ns"])
    assert best is not None
    total_us = min(totals) * 1e6
    us = best["ns"] / 1e3
    order = np.argsort(-us) if slowest_first else np.arange(len(us))
    _say(f"batch {batch}, {threads} threads: {total_us:.0f} us; the layers {us.sum():.0f} us")
    for i in order:
        products = _products(best[i]) * batch
        rate = f"{products / (best['ns'][i] * threads):6.1f} G/s" if products else " " * 10
        _say(f"{i:4} {us[i]:8.1f} us {100 * us[i] / total_us:5.1f} % {rate}  {_words(best[i])}")
    _say("by kind:")
    kinds: dict[str, tuple[float, int]] = {}
    for i, each in enumerate(best):
        spec = each["spec"]
        kind = Op(spec["op"]).name.lower()
        if kind in ("conv", "depthwise"):
            kind += f" {spec['kernel_h']}x{spec['kernel_w']}/{spec['stride_h']}" + (
                " grouped" if spec["span_out"] else ""
            )
        before = kinds.get(kind, (0.0, 0))
        kinds[kind] = (before[0] + us[i], before[1] + _products(each) * batch)
    for kind, (took, made) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        rate = f"{made / (took * 1e3 * threads):6.1f} G/s" if made else ""
        _say(f"     {took:8.1f} us {100 * took / total_us:5.1f} % {kind} {rate}")
    _say(f"     {total_us - us.sum():8.1f} us {100 * (1 - us.sum() / total_us):5.1f} % between layers")


def _layers(library: ctypes.CDLL) -> npt.NDArray[Any]:
    pointer = ctypes.c_void_p()
    count = library.cpupack_timed(ctypes.byref(pointer))
    assert pointer.value is not None
    return np.frombuffer((ctypes.c_char * (count * TIMED.itemsize)).from_address(pointer.value), TIMED).copy()


def _products(layer: Any) -> int:
    """Multiply-adds of one sample."""
    spec = layer["spec"]
    places = int(layer["out"][0] * layer["out"][1]) or 1
    taps = int(spec["kernel_h"] * spec["kernel_w"])
    if spec["op"] == Op.CONV:
        inputs = spec["span_in"] if spec["span_out"] else layer["in"][2]
        return places * taps * int(spec["channels_out"]) * int(inputs)
    return places * taps * int(layer["out"][2]) if spec["op"] == Op.DEPTHWISE else 0


def _words(layer: Any) -> str:
    spec = layer["spec"]
    kind = Op(spec["op"]).name.lower()
    sizes = "x".join(map(str, layer["in"][:3])) + " to " + "x".join(map(str, layer["out"][:3]))
    flags = f" flags {spec['flags']}" if spec["flags"] else ""
    if kind in ("conv", "depthwise", "max_pool", "average_pool"):
        kind += f" {spec['kernel_h']}x{spec['kernel_w']}/{spec['stride_h']}"
    groups = f" groups of {spec['span_in']} to {spec['span_out']}" if spec["span_out"] else ""
    packed = (
        f" ({spec['runs']}x{spec['chunks']}x{spec['chunk_bytes']} to {spec['channels_out']})"
        if spec["op"] == Op.CONV
        else ""
    )
    return f"{kind} {sizes}{groups}{packed}{flags}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
