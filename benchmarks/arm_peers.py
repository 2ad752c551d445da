"""How many instructions an inference executes on ARM in ONNX Runtime and in torch's qnnpack.

``python benchmarks/arm_peers.py MODEL.onnx...`` and ``... WHEEL.whl...`` print a row for each: model, engine, CPU,
instructions of one image. MODEL.onnx is an INT8 model, for instance that of ``benchmarks/networks.py prepare``, and
WHEEL an aarch64 wheel that was built with ``--set target.aarch64.engine=qnnpack``. The aarch64 packages are pip's own,
in the environment of ``tests/arm/environment.py``.

A process counts all its instructions, so each model runs in two, one of them with twenty images more; the row is a
twentieth of the difference. One before them writes Python's byte code. ``benchmarks/arm_instructions.py`` counts the
native engine. Counts are no times.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from arm import counting, emulator, environment, wheels  # noqa: E402 - found by the line before

ONNXRUNTIME = "onnxruntime==1.32.0"
CPUS = ("cortex-a72", "neoverse-n1", "max")
MORE_RUNS = 20
_ONNX = """\
import sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
image = np.random.default_rng(0).standard_normal((1, *given.shape[1:])).astype(np.float32)
for _ in range(int(sys.argv[2])):
    session.run(None, {given.name: image})
"""
_WHEEL = """\
import importlib, sys
import numpy as np
runner = importlib.import_module(sys.argv[1]).Runner(threads=1, instances=1, batch_size=1)
image = np.random.default_rng(0).integers(0, 256, (1, *runner.pixel_shape()), dtype=np.uint8)
for _ in range(int(sys.argv[2])):
    runner(image)
runner.close()
"""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="ONNX_OR_WHEEL")
    parser.add_argument("--cpus", nargs="+", default=CPUS, choices=CPUS)
    arguments = parser.parse_args()
    print("model,engine,cpu,instructions")  # noqa: T201 - a script
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as directory:
            for cpu in arguments.cpus:
                name, engine, count = counted(model.resolve(), Path(directory), cpu)
                print(f"{name},{engine},{cpu},{count}", flush=True)  # noqa: T201 - a script


def counted(model: Path, directory: Path, cpu: str) -> tuple[str, str, int]:
    """Return the model's name, the engine that ran it, and the instructions of one image."""
    if model.suffix == ".onnx":
        made = environment.ensure()
        sites = [environment.add("site-onnxruntime", [ONNXRUNTIME]), made.directory / "site"]
        name = model.parent.parent.name if model.stem == "model" else model.stem
        return name, "onnxruntime", _difference(made, cpu, sites, _ONNX, str(model))
    made = environment.ensure(torch=True)
    installed = wheels.install(made, model, directory / f"venv-{cpu}")
    (own,) = installed.directory.glob("lib/python3*/site-packages")
    sites = [own, made.directory / "site", made.directory / "site-torch"]
    return installed.package, "qnnpack", _difference(made, cpu, sites, _WHEEL, installed.package)


def _difference(made: environment.ArmEnvironment, cpu: str, sites: list[Path], code: str, model: str) -> int:
    _, few, more = (_process(made, cpu, sites, [code, model, str(runs)]) for runs in (2, 2, 2 + MORE_RUNS))
    return (more - few) // MORE_RUNS


def _process(made: environment.ArmEnvironment, cpu: str, sites: list[Path], arguments: list[str]) -> int:
    """Return how many instructions a Python process on a CPU executes, all its threads together."""
    qemu, libraries = emulator.qemu_with_plugins()
    command = [str(qemu), "-cpu", cpu, "-L", str(made.directory / "cpus" / cpu), "-U", "LD_LIBRARY_PATH"]
    command += ["-plugin", str(counting.compile_plugin()), str(environment.interpreter()), "-c", *arguments]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(map(str, sites))}
    variables |= {"LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    found = re.search(r"^instructions (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise RuntimeError(f"{arguments[1]} does not run on {cpu}: {done.stderr[-2000:]}")
    return int(found[1])


if __name__ == "__main__":
    main()
