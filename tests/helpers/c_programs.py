"""Compiles programs against an exported model, and runs them without Python's environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler; with apt: gcc")
needs_cxx = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler; with apt: g++")

EMPTY = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""The environment of a program that knows nothing of Python."""


def compile_c(exported: Path, source: Path, out: Path, compiler: str = "cc", *options: str) -> Path:
    """Compile as the export's README says, with all warnings as errors."""
    strict = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread")
    command = [compiler, "-O2", *strict, *options, str(source), "-o", str(out), f"-I{exported}", f"-L{exported}"]
    done = subprocess.run(
        [*command, "-lcpupack", f"-Wl,-rpath,{exported}"], env=EMPTY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out


def call(program: Path, *arguments: str | Path | int, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a compiled program."""
    return subprocess.run(
        [str(program), *map(str, arguments)], input=stdin, env=EMPTY, capture_output=True, check=False, timeout=600
    )


def numbers(output: bytes) -> np.ndarray:
    """Return what the example prints: a number for each result, in order."""
    rows = [line.split() for line in output.decode().splitlines()]
    assert [int(place) for place, _ in rows] == list(range(len(rows)))
    return np.array([value for _, value in rows], np.float32)  # %.9g is exact for float32


CALLER = r"""
/* caller MODEL THREADS BATCH TIMES KIND COUNT RESULTS: stdin has the input; stdout gets the results of each call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cpupack.h"
int main(int argc, char **argv) {
    if (argc != 8)
        return 2;
    struct cpupack_model *model = cpupack_load(argv[1], atoi(argv[2]));
    if (model == NULL) {
        fprintf(stderr, "load: %s\n", cpupack_last_error());
        return 3;
    }
    const int64_t batch = atoll(argv[3]);
    const int times = atoi(argv[4]), floats = strcmp(argv[5], "floats") == 0;
    const size_t count = (size_t)atoll(argv[6]), results = (size_t)atoll(argv[7]);
    const size_t bytes = count * (floats ? sizeof(float) : 1);
    void *input = malloc(bytes + 1);
    float *output = (float *)malloc(results * sizeof(float) + 1);
    if (fread(input, 1, bytes, stdin) != bytes)
        return 4;
    for (int i = 0; i < times; i++) {
        const int failed = floats ? cpupack_run_floats(model, batch, (const float *)input, count, output, results)
                                  : cpupack_run_pixels(model, batch, (const uint8_t *)input, count, output, results);
        if (failed) {
            fprintf(stderr, "run: %s\n", cpupack_last_error());
            cpupack_free(model);
            return 5;
        }
        fwrite(output, sizeof(float), results, stdout);
    }
    cpupack_free(model);
    free(input);
    free(output);
    return 0;
}
"""
"""Runs batches of any size and any claim about their size."""
