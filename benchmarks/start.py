"""How long from a new process to its first prediction, with what memory, and what pip brings for it?

    python benchmarks/start.py dist/resnet50_int8-*.whl FOLDER/onnxruntime/model.onnx FOLDER/openvino/model.xml

Each argument is a wheel of cpupack, a model of ONNX Runtime (``.onnx``) or one of OpenVINO (``.xml``).
``benchmarks/cores.py prepare FOLDER`` makes all three from one FP32 model. Wheels are installed beside the others,
without their dependencies: those of this environment serve. Fresh processes are started in turns, each engine with its
defaults: import, load, one prediction of a made-up image. Every process is printed as one JSON object a line, then the
medians. The first process of each writes byte code and reads files, and is not counted.

Columns: ``start_ms`` of the interpreter until the import begins, ``import_ms``, ``load_ms``, ``first_ms`` of the first
prediction, ``total_ms`` from the import to the first prediction, ``cpu_ms`` of all threads until then (on a busy host
the only one that can be compared), ``steady_ms`` of a later prediction; ``first_mb`` what is resident after the first
prediction, ``peak_mb`` the most memory that was resident at the end, ``pip_mb`` what pip installs beside the model.
Sizes are in MB of 1,000,000 bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement

_OURS = """
    from importlib import import_module
    runner_class = import_module(model).Runner
    imported = time.monotonic()
    runner = runner_class()
    import numpy
    sample = numpy.full((size, size, 3), 100, numpy.uint8)
    call = lambda: runner.predict(sample)
"""
_ONNXRUNTIME = """
    import numpy, onnxruntime
    imported = time.monotonic()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    sample = numpy.full((1, 3, size, size), 0.1, numpy.float32)
    call = lambda: session.run(None, {name: sample})
"""
_OPENVINO = """
    import numpy, openvino
    imported = time.monotonic()
    core = openvino.Core()
    read = core.read_model(model)
    read.reshape([1, 3, size, size])
    compiled = core.compile_model(read, "CPU", {"PERFORMANCE_HINT": "LATENCY"})
    sample = numpy.full((1, 3, size, size), 0.1, numpy.float32)
    call = lambda: compiled(sample)
"""
_CHILD = """
import json, os, resource, sys, time
model, size = sys.argv[1], int(sys.argv[2])

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6

if True:
    began = time.monotonic()
BODY
    loaded = time.monotonic()
    call()
    predicted, cpu_ms, first_mb = time.monotonic(), 1e3 * time.process_time(), resident()
calls = []
for _ in range(9):
    since = time.perf_counter()
    call()
    calls.append(time.perf_counter() - since)
json.dump({
    "import_ms": 1e3 * (imported - began), "load_ms": 1e3 * (loaded - imported), "first_ms": 1e3 * (predicted - loaded),
    "total_ms": 1e3 * (predicted - began), "cpu_ms": cpu_ms, "steady_ms": 1e3 * sorted(calls)[len(calls) // 2],
    "began": began, "first_mb": first_mb, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    "torch": "torch" in sys.modules,
}, sys.stdout)
sys.stdout.flush()
os._exit(0)  # what an engine does at its end is not measured
"""
_ENGINES = {".onnx": ("onnxruntime", _ONNXRUNTIME), ".xml": ("openvino", _OPENVINO)}


def main() -> None:
    """Install, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a wheel, an .onnx or an .xml file")
    parser.add_argument(
        "--times", type=int, default=10, metavar="N", help="processes of each model; default: %(default)s"
    )
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of the image; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.times < 1:
        parser.error(f"--times {arguments.times}: at least 1")
    for model in arguments.models:
        if model.suffix not in {".whl", *_ENGINES} or not model.is_file():
            parser.error(f"{model} is not a wheel, an .onnx or an .xml file that exists")
    with tempfile.TemporaryDirectory(prefix="cpupack-start-") as directory:
        places = {model: Path(directory) / str(number) for number, model in enumerate(arguments.models)}
        for model, home in places.items():
            if model.suffix == ".whl":
                install(model, home)
        rows: dict[Path, list[dict[str, Any]]] = {model: [] for model in places}
        for turn in range(arguments.times + 1):
            for model, home in places.items():
                measured = start(model, home, arguments.size)
                if turn:
                    rows[model].append(measured)
                    click.echo(json.dumps({"model": model.name, **measured}))
        for model, home in places.items():
            click.echo(
                f"{model.name}: {medians(rows[model])}, pip_mb {pip_bytes(requirements(model, home)) / 1e6:,.1f}"
            )


def install(wheel: Path, home: Path) -> None:
    """Unpack a wheel into a directory of its own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), str(wheel)]
    subprocess.run(command, check=True)


def start(model: Path, home: Path, size: int) -> dict[str, Any]:
    """Run one process and return its times."""
    _, body = _ENGINES.get(model.suffix, ("", _OURS))
    named = model.name.split("-")[0] if model.suffix == ".whl" else str(model)
    command = [sys.executable, "-c", _CHILD.replace("BODY", body.strip("\n")), named, str(size)]
    since = time.monotonic()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(home)}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    row = {"start_ms": 1e3 * (found.pop("began") - since), **found}
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}


def requirements(model: Path, home: Path) -> list[str]:
    """Return what pip is asked to install beside the model."""
    if model.suffix != ".whl":
        return [_ENGINES[model.suffix][0]]
    (found,) = metadata.distributions(path=[str(home)])
    return [text for text in found.requires or [] if _applies(Requirement(text))]


def pip_bytes(asked: list[str]) -> int:
    """Return the size of the files of distributions and of all that they require, as installed in this environment."""
    waiting, seen = [Requirement(text).name.lower() for text in asked], set[str]()
    total = 0
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        # Byte code is pip's too, but not every installation has it.
        files = [Path(str(file.locate())) for file in found.files or [] if file.suffix != ".pyc"]
        total += sum(file.stat().st_size for file in files if file.is_file())
        waiting += [each.name.lower() for each in map(Requirement, found.requires or []) if _applies(each)]
    return total


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def medians(rows: list[dict[str, Any]]) -> str:
    """Return the median of each column."""
    columns = [key for key in rows[0] if key != "torch"]
    return ", ".join(f"{key} {statistics.median(row[key] for row in rows):,.1f}" for key in columns)


if __name__ == "__main__":
    main()
