"""How long from a new process to its first prediction, and with what memory? ``python benchmarks/start.py WHEEL...``.

Installs each wheel beside the others, without its dependencies (those of this environment serve), and starts fresh
processes in turns: import, ``Runner()``, one ``predict`` of a made-up image. Prints every process as one JSON object a
line, then the medians. The first process of each wheel writes byte code and reads files, and is not counted.

    python benchmarks/start.py dist/resnet50_int8-*.whl dist/resnet50_onednn-*.whl --times 10

Columns: ``start_ms`` of the interpreter until the import begins, ``import_ms``, ``runner_ms``, ``first_ms`` of the
first prediction, ``total_ms`` from the start of the process, ``steady_ms`` of a later prediction; ``peak_mb`` the most
memory that was resident, ``after_mb`` what is so at the end.
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
from pathlib import Path
from typing import Any

import click

_CHILD = """
import sys, time
began = time.time()
import importlib, json, resource
module = importlib.import_module(sys.argv[1])
imported = time.time()
with module.Runner() as runner:
    import numpy as np
    sample = np.random.default_rng(0).integers(0, 256, (int(sys.argv[2]), int(sys.argv[2]), 3)).astype(np.uint8)
    made = time.time()
    runner.predict(sample)
    predicted = time.time()
    calls = []
    for _ in range(9):
        since = time.perf_counter()
        runner.predict(sample)
        calls.append(time.perf_counter() - since)
pages = int(open("/proc/self/statm").read().split()[1])
json.dump({
    "import_ms": 1e3 * (imported - began), "runner_ms": 1e3 * (made - imported), "first_ms": 1e3 * (predicted - made),
    "steady_ms": 1e3 * sorted(calls)[len(calls) // 2], "began": began, "predicted": predicted,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "after_mb": pages * resource.getpagesize() / 2**20, "torch": "torch" in sys.modules,
}, sys.stdout)
"""


def main() -> None:
    """Install, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    parser.add_argument(
        "--times", type=int, default=10, metavar="N", help="processes of each wheel; default: %(default)s"
    )
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS", help="of the image; default: %(default)s")
    arguments = parser.parse_args()
    if arguments.times < 1:
        parser.error(f"--times {arguments.times}: at least 1")
    with tempfile.TemporaryDirectory(prefix="cpupack-start-") as directory:
        homes = {wheel: install(wheel, Path(directory) / str(number)) for number, wheel in enumerate(arguments.wheels)}
        rows: dict[Path, list[dict[str, Any]]] = {wheel: [] for wheel in homes}
        for turn in range(arguments.times + 1):
            for wheel, home in homes.items():
                measured = start(wheel, home, arguments.size)
                if turn:
                    rows[wheel].append(measured)
                    click.echo(json.dumps({"wheel": str(wheel), **measured}))
    for wheel, measured_all in rows.items():
        click.echo(f"{wheel}: {medians(measured_all)}")


def install(wheel: Path, home: Path) -> Path:
    """Unpack a wheel into a directory of its own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), str(wheel)]
    subprocess.run(command, check=True)
    return home


def start(wheel: Path, home: Path, size: int) -> dict[str, Any]:
    """Run one process and return its times."""
    command = [sys.executable, "-c", _CHILD, wheel.name.split("-")[0], str(size)]
    since = time.time()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(home)}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    began, predicted = found.pop("began"), found.pop("predicted")
    row = {"start_ms": 1e3 * (began - since), "total_ms": 1e3 * (predicted - since), **found}
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}


def medians(rows: list[dict[str, Any]]) -> str:
    """Return the median of each column."""
    columns = [key for key in rows[0] if key != "torch"]
    return ", ".join(f"{key} {statistics.median(row[key] for row in rows):,.1f}" for key in columns)


if __name__ == "__main__":
    main()
