"""A short run of the fuzzers that coverage guides; ``make fuzz`` runs them for as long as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.native_reference import runs_here

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.night,
    pytest.mark.skipif(not runs_here(), reason="the native kernels do not run on this CPU"),
]


def test_a_short_run_finds_nothing_and_goes_beyond_its_seeds() -> None:
    """With the kernels of AVX2 alone, since those of VNNI and AMX take minutes to compile. ``make fuzz`` has all."""
    command = [sys.executable, str(ROOT / "kernels" / "check.py"), "fuzz", "--minutes", "0.25", "--isa", "avx2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "SKIPPED" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.findall(r"fuzz: (\w+) on \w+: ([\d,]+) runs reached ([\d,]+) places", done.stderr)
    assert {target for target, *_ in found} == {"program", "model_file"}
    for _, runs, places in found:
        assert int(runs.replace(",", "")) > 400  # the seeds alone are that many
        assert int(places.replace(",", "")) > 500  # the checks of programs, and what runs them
