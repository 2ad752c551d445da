"""The native kernels as torch sees them: one operator, its errors, several threads, several packages in a process.

Programs here have one layer, written by hand: uint8 pixels in, a matrix product, float32 out.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.graph.native_model import NativeModel
from cpupack.runtime.engine import library
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.errors import HostError, RunnerError
from cpupack.runtime.host import cpu
from cpupack.stages import script
from helpers import program_header
from helpers.tiny_package import RUNTIME
from helpers.waiting import PATIENCE_S

LIBRARY = library.path_for("x86_64")
CHANNELS, OUTPUTS = 4, 5
WEIGHTS = np.random.default_rng(0).integers(-128, 128, (OUTPUTS, CHANNELS), dtype=np.int8)

HEADER, BUFFER, LAYER = map(program_header.struct_format, ("header", "buffer", "layer"))
MAGIC, VERSION = map(program_header.constant, ("CPUPACK_MAGIC", "CPUPACK_VERSION"))
INPUT_PIXELS, CONV = (program_header.enum("op")[name] for name in ("INPUT_PIXELS", "CONV"))
FLOAT_OUT = program_header.enum("flag")["FLOAT_OUT"]
BLOCK = 32  # output channels of a block; with chunks of four bytes a block is simply (channel, four inputs)


def runs_here() -> bool:
    return library.runs_on(cpu.machine(), cpu.detect_isa())


needs_kernels = pytest.mark.skipif(not runs_here(), reason="the native kernels do not run on this CPU")


def program(magic: int = MAGIC, version: int = VERSION) -> torch.Tensor:
    """A linear layer on the four channels of an image of one pixel, and nothing else."""
    layers, buffers = 2, 1
    weights = np.zeros((BLOCK, CHANNELS), np.int8)
    weights[:OUTPUTS] = WEIGHTS
    scales, biases = np.full(BLOCK, 0.5, np.float32), np.arange(BLOCK, dtype=np.float32)
    constants = weights.tobytes() + scales.tobytes() + biases.tobytes()
    at = struct.calcsize(HEADER) + buffers * struct.calcsize(BUFFER) + layers * struct.calcsize(LAYER)
    identity = (1, magic, version)  # the kernels know a program by it, so other programs need another one
    data = struct.pack(
        HEADER, magic, version, buffers, layers, CHANNELS, 0, 1, 1, OUTPUTS, *identity, 64, at
    ) + struct.pack(BUFFER, 1, 1, CHANNELS, 0, 0, 0, 1, 0, 0, CHANNELS)
    window = (1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1)  # of rows and columns, then of frames
    data += struct.pack(LAYER, INPUT_PIXELS, 0, -1, -1, 0, *window, CHANNELS, *(0,) * 8, 0, 0, *(0,) * 4, *(0,) * 4)
    offsets = (0, weights.nbytes, weights.nbytes + scales.nbytes, 0)
    data += struct.pack(
        LAYER, CONV, FLOAT_OUT, 0, -1, -1, *window, OUTPUTS, 1, 1, 4, *(0,) * 3, 0, 255, 0, 0, *(0,) * 4, *offsets
    )
    return torch.frombuffer(bytearray(data + constants), dtype=torch.uint8)


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, CHANNELS, 1, 1), dtype=torch.uint8, generator=generator)


def expected(batch: torch.Tensor) -> np.ndarray:
    return batch.flatten(1).numpy().astype(np.float32) @ WEIGHTS.T.astype(np.float32) * 0.5 + np.arange(OUTPUTS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is this program alone, saved as the build does it."""
    library.load()
    path = tmp_path_factory.mktemp("native") / "model.pt"
    script.save(NativeModel(program().numpy().tobytes(), (OUTPUTS,), {}), pixels(2), path)
    return path


def run_python(code: str, *arguments: object, path: Path = RUNTIME.parent.parent) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False, env={**os.environ, "PYTHONPATH": str(path)},
    )  # fmt: skip


# --- the operator


@needs_kernels
@pytest.mark.parametrize("count", [0, 1, 33])
def test_the_operator_computes(count: int) -> None:
    library.load()
    batch = pixels(count)
    found = torch.ops.cpupack.run_3(batch, program(), OUTPUTS)
    np.testing.assert_array_equal(found.numpy(), expected(batch))


@needs_kernels
def test_a_saved_model_runs_in_a_pool_whatever_torchs_engine_is(saved: Path) -> None:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "qnnpack"
        with InstancePool(saved, library.ENGINE, threads=2, instances=2) as pool:
            futures = [(batch, pool.submit(batch)) for batch in (pixels(3, seed) for seed in range(20))]
            for batch, future in futures:
                np.testing.assert_array_equal(future.result().numpy(), expected(batch))
        assert torch.backends.quantized.engine == "qnnpack"
    finally:
        torch.backends.quantized.engine = before


@needs_kernels
def test_several_threads_call_one_module(saved: Path) -> None:
    module = torch.jit.load(str(saved))
    wrong: list[int] = []

    def call(seed: int) -> None:
        batch = pixels(seed + 1, seed)
        library.set_threads(seed % 2 + 1)
        with torch.inference_mode():
            wrong.extend(seed for _ in range(300) if not np.array_equal(module(batch).numpy(), expected(batch)))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


BAD_CALLS = {
    "of another type": (lambda: (pixels(1).double(), program(), OUTPUTS), "neither float32 nor uint8"),
    "float32 for pixels": (lambda: (pixels(1).float(), program(), OUTPUTS), "uint8 pixels alone"),
    "too many channels": (
        lambda: (pixels(1).expand(1, 4, 2, 1).contiguous(), program(), OUTPUTS),
        r"shape \(1, 4, 2, 1\); the program takes \(n, 4, 1, 1\)",
    ),
    "not in order": (lambda: (pixels(4).flatten(1).t().contiguous().t(), program(), OUTPUTS), "not channels_last"),
    "three dimensions": (lambda: (pixels(1)[0], program(), OUTPUTS), "shape"),
    "other outputs": (lambda: (pixels(1), program(), OUTPUTS + 1), "another number of outputs"),
    "a short program": (lambda: (pixels(1), program()[:8], OUTPUTS), "too short"),
    "no program": (lambda: (pixels(1), program(magic=1), OUTPUTS), "not one of this format"),
    "a program cut off": (lambda: (pixels(1), program()[:-64], OUTPUTS), "damaged"),
    "a later program": (lambda: (pixels(1), program(version=99), OUTPUTS), "another version"),
    "a program of floats": (lambda: (pixels(1), program().float(), OUTPUTS), "not a dense uint8 tensor"),
}


@needs_kernels
@pytest.mark.parametrize("name", BAD_CALLS)
def test_what_it_cannot_run_is_a_runtime_error(name: str) -> None:
    library.load()
    make, why = BAD_CALLS[name]
    with pytest.raises(RuntimeError, match=f"cpupack::run_3: .*{why}"):
        torch.ops.cpupack.run_3(*make())


@needs_kernels
def test_an_error_leaves_the_instance_alive_and_is_one_line(saved: Path) -> None:
    with InstancePool(saved, library.ENGINE, threads=1, instances=1) as pool:
        with pytest.raises(RunnerError, match=r"batch of shape \(1, 4, 1, 2\): it takes \(n, 4, 1, 1\)") as caught:
            pool.run(torch.zeros((1, CHANNELS, 1, 2), dtype=torch.uint8))
        assert "\n" not in str(caught.value)
        assert pool.run(pixels(1)).shape == (1, OUTPUTS)


@needs_kernels
def test_neither_calls_nor_errors_keep_their_tensors() -> None:
    library.load()

    def owners(tensor: torch.Tensor) -> int:
        return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata))

    batch, code = pixels(1), program()
    before = owners(batch), owners(code)
    for _ in range(3):
        torch.ops.cpupack.run_3(batch, code, OUTPUTS)
        with pytest.raises(RuntimeError):
            torch.ops.cpupack.run_3(batch, code, OUTPUTS + 1)
    assert (owners(batch), owners(code)) == before


# --- loading


TWO_PACKAGES = """
import sys, threading, importlib
import numpy as np, torch
natives = [importlib.import_module(f"{name}._runtime.engine.library") for name in ("one", "two")]
threads = [threading.Thread(target=each.load) for each in natives * 4]
for thread in threads: thread.start()
for thread in threads: thread.join()
described = [each.describe() for each in natives]
assert described[0] == described[1], described
assert described[0]["loaded"] and described[0]["isa"] in ("amx", "vnni", "avx2")
for each in natives:
    each.set_threads(2)
module = torch.jit.load(sys.argv[1])
print(module(torch.ones(1, 4, 1, 1, dtype=torch.uint8)).tolist(), len(described))
"""


@needs_kernels
def test_two_packages_in_a_fresh_process_share_one_operator(saved: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(RUNTIME, tmp_path / name / "_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    done = run_python(TWO_PACKAGES, saved, path=tmp_path)
    wanted = expected(torch.ones(1, CHANNELS, 1, 1, dtype=torch.uint8)).tolist()
    assert (done.returncode, done.stdout) == (0, f"{wanted} 2\n"), done.stderr


def test_describing_tries_the_library_without_torch() -> None:
    code = """
import sys
from cpupack.runtime.engine import library
found = library.describe()
print(found["loaded"], "torch" in sys.modules, any("cpupack_int8" in line for line in open("/proc/self/maps")))
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "False False True\n"), done.stderr


@needs_kernels
def test_the_library_is_described(saved: Path) -> None:
    found = library.describe()
    assert found["path"] == str(LIBRARY)
    assert found["isa"] in {"amx", "vnni", "avx2"}
    assert (found["loaded"], found["problem"]) == (True, None)
    assert len(found["sha256"]) == 64


@needs_kernels
def test_a_package_without_the_library_says_what_to_do(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(RUNTIME, tmp_path / "one" / "_runtime", ignore=ignored)
    code = """
from one._runtime import errors
from one._runtime.engine import library as native
try:
    native.load()
except errors.HostError as error:
    print(error)
"""
    done = run_python(code, path=tmp_path)
    assert "is missing; in a checkout run: make kernels; else reinstall" in done.stdout, done.stderr


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretend that this process has loaded nothing yet."""
    monkeypatch.setattr(library, "_process", library._Process("fresh"))
    return monkeypatch


@pytest.mark.parametrize(
    ("machine", "isa", "why"),
    [
        ("riscv64", None, "for x86_64 and aarch64, and this host is riscv64"),
        ("i686", None, "for x86_64 and aarch64, and this host is i686"),
        ("x86_64", None, "need avx2 and this CPU has no AVX2; build the wheel again"),
        ("aarch64", None, "need neon and this CPU has no NEON; build the wheel again"),
    ],
)
def test_other_cpus_are_refused(fresh: pytest.MonkeyPatch, machine: str, isa: str | None, why: str) -> None:
    fresh.setattr(cpu, "machine", lambda: machine)
    fresh.setattr(cpu, "detect_isa", lambda: isa)
    with pytest.raises(HostError, match=why):
        library.load()
    found = library.describe()
    assert (found["isa"], found["loaded"]) == (None, False)
    assert why in found["problem"]


@needs_kernels
def test_a_library_that_the_system_does_not_load(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / library.LIBRARIES[cpu.machine()]).write_text("not a library")
    fresh.setattr(library, "__file__", str(tmp_path / "engine" / "library.py"))
    with pytest.raises(HostError, match="cannot load the native kernels"):
        library.load()


@needs_kernels
def test_threads_start_at_one() -> None:
    library.load()
    with pytest.raises(ValueError, match="count is 0"):
        library.set_threads(0)
