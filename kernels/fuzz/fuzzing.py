"""Compiles and runs the fuzzers of this directory: libFuzzer, of LLVM's clang, with its sanitizers.

libFuzzer changes programs at random, keeps those that reach code which none has reached before, and changes these
again. ``kernels/check.py fuzz`` calls this.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import PUBLIC_HEADERS, SOURCES, sources_of  # noqa: E402 - found by the line before

TARGETS = {"program": 0.8, "model_file": 0.2}
"""The fuzzers, and the share of the time that each gets."""
ISAS = ("avx2", "vnni", "amx")
NOT_HERE = 77
"""Exit code of a fuzzer whose kernels do not run on this CPU (``cpu.c``)."""
_DIRECTORY = ROOT / SOURCES / "fuzz"
_FLAGS = (
    *("-march=x86-64-v3", "-std=gnu11", "-O1", "-gline-tables-only", "-fno-omit-frame-pointer", "-Wall", "-Wextra"),
    *("-pthread", f"-I{SOURCES}", f"-I{PUBLIC_HEADERS}"),
)
_SANITIZED = ("-fsanitize=address", "-fno-sanitize-recover=all")
_GUIDED = (
    "-fsanitize=undefined,fuzzer-no-link",
    # NULL plus 0, where a layer has no such operand. C2y makes that defined, and nothing is read there.
    "-fno-sanitize=pointer-overflow",
)
"""For the engine, which decides what a program is. The kernels of an instruction set would take minutes to compile with
it; gcc's undefined-behaviour sanitizer has them (``make sanitize``)."""
_LINK = ("-fsanitize=address,undefined,fuzzer", "-Wl,--wrap=mmap,--wrap=munmap", "-pthread", "-lm")
_ENVIRONMENT = {"ASAN_OPTIONS": "allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


@dataclass(frozen=True)
class Found:
    """What a fuzzer did. ``failure`` is the file that breaks the kernels, None if there is none."""

    target: str
    isa: str
    runs: int
    reached: int
    failure: Path | None


def find_clang() -> str | None:
    """Return a clang that has libFuzzer, the newest one; None without."""
    names = ["clang", *(f"clang-{number}" for number in range(30, 13, -1))]
    for clang in filter(None, map(shutil.which, names)):
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory) / "empty.c"
            source.write_text("int LLVMFuzzerTestOneInput(const char *data, long size) { return !data && size; }\n")
            command = [clang, "-fsanitize=address,undefined,fuzzer", str(source), "-o", f"{directory}/empty"]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return clang
    return None


def compile_fuzzers(clang: str, build: Path, workers: int, isas: Collection[str]) -> dict[str, Path]:
    """Compile all fuzzers into ``build``, what has changed; return their files by name. Raises CalledProcessError.

    Kernels of instruction sets that are not among ``isas`` are only there to link: without a sanitizer, in a tenth of
    the time.
    """
    # torch's operator needs torch, which no fuzzer has.
    sources = [path for path in sources_of(ROOT, "x86_64") if path.parent.name != "torch"]
    own = sorted(_DIRECTORY.glob("*.c"))
    found = (path for directory in (ROOT / SOURCES, ROOT / PUBLIC_HEADERS) for path in directory.rglob("*.*"))
    newest_s = max(path.stat().st_mtime for path in (*found, Path(__file__)) if path.suffix not in {".pyc", ".md"})
    build.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        part_of, flags = source.parent.name, (*_FLAGS, *_SANITIZED)
        only_linked = part_of in ISAS and part_of not in isas
        if only_linked:
            flags = (*_FLAGS, "-O0")
        elif part_of not in (*ISAS, "fuzz"):
            flags += _GUIDED
        name = build / f"{part_of}-{source.stem}{'-linked' if only_linked else ''}.o"
        if not name.exists() or name.stat().st_mtime < newest_s:
            part = name.with_suffix(".part")
            command = [clang, *flags, "-c", str(source.relative_to(ROOT)), "-o", str(part)]
            subprocess.run(command, cwd=ROOT, check=True)
            part.replace(name)
        return name

    with ThreadPoolExecutor(workers) as pool:
        objects = dict(zip((*sources, *own), pool.map(compiled, (*sources, *own)), strict=True))
    fuzzers = {}
    for target in TARGETS:
        parts = [str(name) for source, name in objects.items() if source not in own or source.stem not in TARGETS]
        fuzzers[target] = build / target
        main = objects[_DIRECTORY / f"{target}.c"]
        subprocess.run([clang, *parts, str(main), *_LINK, "-o", str(fuzzers[target])], cwd=ROOT, check=True)
    return fuzzers


def write_corpus(build: Path) -> Path:
    """Write the programs that the fuzzers begin with (``corpus.py``); return their directory."""
    seeds = build / "seeds"
    shutil.rmtree(seeds, ignore_errors=True)
    subprocess.run([sys.executable, str(_DIRECTORY / "corpus.py"), str(seeds)], cwd=ROOT, check=True)
    return seeds


def runs_here(fuzzer: Path, isa: str) -> bool:
    """Whether this CPU runs the kernels of an instruction set."""
    done = subprocess.run(
        [str(fuzzer), "-runs=0"], env={**os.environ, "CPUPACK_ISA": isa}, capture_output=True, check=False
    )
    return done.returncode != NOT_HERE


def run_fuzzer(fuzzer: Path, isa: str, seeds: Path, seconds: int) -> Found:
    """Run a fuzzer for a time. What it learns stays in ``corpus`` beside it, for the next time."""
    kept, failures = fuzzer.parent / "corpus" / fuzzer.name, fuzzer.parent / "failures"
    for directory in (kept, failures):
        directory.mkdir(parents=True, exist_ok=True)
    before = set(failures.iterdir())
    # A process that was stopped for a while is not slow: no report of what takes ten seconds.
    options = [f"-max_total_time={seconds}", "-timeout=600", "-report_slow_units=600", "-rss_limit_mb=4096"]
    options += ["-max_len=65536"]
    command = [str(fuzzer), *options, "-print_final_stats=1", f"-artifact_prefix={failures}/", str(kept), str(seeds)]
    environment = {**os.environ, **_ENVIRONMENT, "CPUPACK_ISA": isa}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    new = sorted(set(failures.iterdir()) - before)
    if done.returncode or new:
        sys.stderr.write(done.stderr[-6000:])
    runs, reached = (_last(pattern, done.stderr) for pattern in (r"number_of_executed_units: (\d+)", r" cov: (\d+)"))
    failure = new[0] if new else failures if done.returncode else None
    return Found(fuzzer.name, isa, runs, reached, failure)


def _last(pattern: str, text: str) -> int:
    found: Sequence[str] = re.findall(pattern, text)
    return int(found[-1]) if found else 0
