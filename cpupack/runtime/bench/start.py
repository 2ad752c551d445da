"""Measures the start in fresh processes: from the import to the first prediction, and the memory it leaves resident."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import HostError, RunnerError
from ..host import processes
from ..manifest import Manifest
from ..plan.decide import Plan
from ..signature import signature_of
from .results import Start

PROCESSES = 3
_TIMEOUT_S = 120.0

_CHILD = (
    processes.ENDS_WITH_PARENT
    + """
import json, os, sys, time
given = json.loads(sys.argv[1])
sys.path[:] = given["path"]
import importlib, warnings
warnings.simplefilter("ignore")
began = time.monotonic()
module = importlib.import_module(given["package"])
runner_class = module.Runner
imported = time.monotonic()
with runner_class(**given["setting"]) as runner:
    loaded = time.monotonic()
    import numpy
    runner({each["name"]: numpy.full(each["shape"], each["fill"], each["dtype"]) for each in given["inputs"]})
    predicted = time.monotonic()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
resident = pages * os.sysconf("SC_PAGE_SIZE")
sys.stdout.write(json.dumps([began, imported, loaded, predicted, resident]))
"""
)
"""What a process does that wants one prediction and nothing else.

It has the import path of this process, but not the working directory, whatever lies there.
"""


def measure_start(package_dir: Path, manifest: Manifest, plan: Plan) -> Start:
    """Start ``PROCESSES`` processes one after the other, and return the median of each figure. Raises RunnerError."""
    given = {
        "path": [str(package_dir.parent.absolute()), *filter(None, sys.path)],
        "package": package_dir.name,
        "setting": {"threads": plan.threads, "instances": plan.instances, "batch_size": plan.batch_size},
        "inputs": [
            {
                "name": each.name,
                "shape": [1, *(each.pixel_shape or each.shape)],
                "dtype": "uint8" if each.pixel_shape else each.dtype,
                "fill": each.default or 0,
            }
            for each in signature_of(manifest).inputs
        ],
    }
    rows = [_start(given) for _ in range(PROCESSES)]
    return Start(*(statistics.median(column) for column in zip(*rows, strict=True)))


def _start(given: dict[str, Any]) -> tuple[float, float, float, float, float]:
    """Return milliseconds of the interpreter, the import, the load and the first call, and the resident bytes."""
    since = time.monotonic()
    try:
        command = [processes.interpreter(), "-I", "-c", _CHILD, str(os.getpid()), json.dumps(given)]
        done = processes.run(command, timeout_s=_TIMEOUT_S)
    except HostError as error:
        raise HostError(f"{error}; use --no-start") from error
    except subprocess.TimeoutExpired:
        raise RunnerError(f"a fresh process made no prediction within {_TIMEOUT_S:.0f} s; use --no-start") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RunnerError(f"a fresh process failed: {lines[-1] if lines else done.returncode}; use --no-start")
    began, imported, loaded, predicted, resident = json.loads(done.stdout)
    ends = [since, began, imported, loaded, predicted]
    interpreter_ms, import_ms, load_ms, first_ms = (1000.0 * (end - begin) for begin, end in pairwise(ends))
    return interpreter_ms, import_ms, load_ms, first_ms, float(resident)
