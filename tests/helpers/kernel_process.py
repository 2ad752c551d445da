"""Run a test module of the kernels in a process of its own: with lesser instruction sets, or with damaged programs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from cpupack.runtime.engine import library

TIMEOUT_S = int(os.environ.get("CPUPACK_TEST_TIMEOUT_S", "300"))  # kernels/check.py: other builds are slower

Case = tuple[torch.Tensor, torch.Tensor, int]  # samples, program, outputs


def call(module: str, expression: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Print an expression of the module ``tests``, which sees ``arguments`` as text in ``sys.argv[1:]``."""
    tests = Path(__file__).parent.parent
    code = f"import json, sys\nimport {module} as tests\nprint({expression})\n"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(
            map(str, (tests / "runtime", tests, tests.parent)))},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip


def digests(cases: Mapping[str, Callable[[], Case]]) -> dict[str, str]:
    """Return a hash of the results of every program, and the instruction set that made them."""
    library.load()
    found = {"isa": library.describe()["isa"]}
    for name, made in cases.items():
        results = torch.nan_to_num(torch.ops.cpupack.run_3(*made()), nan=12345.0)
        found[name] = hashlib.sha256(results.numpy().tobytes()).hexdigest()
    return found


def same_digests_with(isa: str, module: str, here: Mapping[str, str]) -> None:
    """Fail unless the module's ``digests()`` are these in a process held to a lesser instruction set."""
    if isa in {here["isa"], {"avx2": "vnni"}.get(here["isa"])}:
        pytest.skip(f"this CPU has no more than {here['isa']}")
    done = call(module, "json.dumps(tests.digests())", CPUPACK_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**here, "isa": isa}


def damage_survived(module: str, seed: int, *, ran: int, refused: int) -> None:
    """Fail unless the module's ``damage(seed)`` comes back, and more programs than these ran and were refused."""
    done = call(module, "*tests.damage(int(sys.argv[1]))", seed)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = tuple(map(int, done.stdout.split()))
    assert counts[0] > ran, counts
    assert counts[1] > refused, counts
