"""Freed memory is kept for the next request."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MEASURE = """\
import resource
from cpupack.runtime.serve.memory import keep_memory
keep_memory({})
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
source = bytes(150_000)
def use(times):
    before = faults()
    for _ in range(times):
        body = bytearray(len(source))
        body[:] = source
        del body
    return faults() - before
use(10)
print(use(100))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_a_body_is_read_into_memory_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of 150 KB has 37 pages. In a process of its own, because what is set stays."""
    for name in ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100
