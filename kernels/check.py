"""Run the kernel tests on another build of the kernels: with sanitizers, or with emulated instructions.

threads    gcc's thread sanitizer: teams of two to four threads run every program of the kernel tests. Needs gcc with
           its libtsan. Takes two minutes of a CPU.
sanitize   gcc's address and undefined-behaviour sanitizers, damaged programs included. Needs gcc 11 or later with its
           libasan (Debian and Ubuntu: apt-get install gcc g++). Takes two and a half minutes of a CPU.
fuzz       libFuzzer on programs and on the files of exported models, guided by what they reach, with clang's address
           and undefined-behaviour sanitizers, for --minutes (default 10) of a CPU. A failure names its file. Needs
           clang 14 or later with libFuzzer (Debian: apt-get install clang). The first time takes two minutes more,
           to compile; with `--isa avx2` half a minute.
damage     Programs with random damage to each field, on the library of `sanitize`: new seeds until the time is over
           (--minutes). A failure names its seed. Needs what `sanitize` needs.
emulate    The AVX-512 and AMX kernels from portable C, on any CPU with AVX2, with VBMI and without. Needs the headers
           of SIMDe, which pip brings (simde-py) into build/. Takes two minutes of a CPU.

Where something cannot be had, it says so and succeeds; with --required it fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hatch_build import (  # noqa: E402 - found by the line before
    COMPILER,
    FLAGS,
    LIBRARY,
    PUBLIC_HEADERS,
    SOURCES,
    compile_library,
    sources_of,
)

sys.path.insert(0, str(ROOT / "kernels" / "fuzz"))
import fuzzing  # noqa: E402 - found by the line before

SIMDE = "simde-py==0.8.2.post1"
TESTS = (
    "test_native_kernels.py", "test_float_kernels.py", "test_recurrent_kernels.py", "test_native_model.py",
    "test_kernels.py", "test_images.py",
)  # fmt: skip
OF_THE_PACKAGE = ("system_does_not_load", "the_library_is_described", "fresh_process")
"""Tests of the library in the package, whichever is under test."""
SANITIZERS = (
    *("-march=x86-64-v3", "-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra"),
    "-Wno-alloc-size-larger-than",  # gcc does not see that validate.c bounds the sizes
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *(
        "-fPIC",
        "-pthread",
        f"-I{SOURCES}",
        f"-I{PUBLIC_HEADERS}",
        "-fexceptions",
        "-shared",
        f"-Wl,--version-script={SOURCES}/exports.map",
    ),
)


THREADS = ("-march=x86-64-v3", "-std=gnu11", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{SOURCES}")

_SEEDS_A_ROUND = 4


class SkippedError(Exception):
    """Something that a check needs cannot be had here."""


def main() -> int:
    """Run the check that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("sanitize", "emulate", "threads", "fuzz", "damage"))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long `fuzz` and `damage` look (default: 10)")
    parser.add_argument(
        "--isa",
        action="append",
        choices=fuzzing.ISAS,
        help="whose kernels `fuzz` runs (default: all that this CPU has)",
    )
    parser.add_argument("--required", action="store_true", help="fail where something that is needed cannot be had")
    parser.add_argument("--workers", default="1", metavar="N", help="how many tests to run at a time (default: 1)")
    parser.add_argument("--pip-args", default="", metavar="ARGS", help="options of pip, such as an index")
    arguments = parser.parse_args()
    try:
        if arguments.check == "sanitize":
            return sanitize(arguments.workers)
        if arguments.check == "fuzz":
            return fuzz(int(arguments.workers), arguments.minutes, arguments.isa or fuzzing.ISAS)
        if arguments.check == "damage":
            return damage(arguments.workers, arguments.minutes)
        if arguments.check == "threads":
            return threads()
        return emulate(arguments.workers, arguments.pip_args.split())
    except SkippedError as reason:
        print(f"{arguments.check} SKIPPED: {reason}", file=sys.stderr)  # noqa: T201 - a script
        return 1 if arguments.required else 0


def sanitize(workers: str) -> int:
    """Compile with the sanitizers and run the tests in processes that have their library preloaded."""
    library, environment = _sanitized()
    return _run_tests(library, workers, environment)


def fuzz(workers: int, minutes: float, isas: Sequence[str]) -> int:
    """Let libFuzzer look for programs and model files that break the kernels of those ``isas`` that this CPU has."""
    clang = fuzzing.find_clang()
    if clang is None:
        raise SkippedError("there is no clang with libFuzzer; with apt: apt-get install clang")
    build = ROOT / "build" / "fuzz"
    started_s = time.monotonic()
    fuzzers = fuzzing.compile_fuzzers(clang, build, workers, isas)
    seeds = fuzzing.write_corpus(build)
    print(f"fuzz: compiled in {time.monotonic() - started_s:.0f} s", file=sys.stderr)  # noqa: T201 - a script
    here = [isa for isa in isas if fuzzing.runs_here(fuzzers["program"], isa)]
    if not here:
        raise SkippedError("this CPU runs none of the kernels")
    for target, share in fuzzing.TARGETS.items():
        for isa in here:
            seconds = max(1, round(60 * minutes * share / len(here)))
            found = fuzzing.run_fuzzer(fuzzers[target], isa, seeds / target, seconds)
            told = f"fuzz: {target} on {isa}: {found.runs:,} runs reached {found.reached:,} places in {seconds} s"
            print(told, file=sys.stderr)  # noqa: T201 - a script
            if found.failure is not None:
                again = f"CPUPACK_ISA={isa} {fuzzers[target].relative_to(ROOT)} {found.failure.relative_to(ROOT)}"
                print(f"fuzz: again with {again}", file=sys.stderr)  # noqa: T201 - a script
                return 1
    return 0


def damage(workers: str, minutes: float) -> int:
    """Damage programs with ever other seeds, on the library with the sanitizers, until the time is over."""
    library, environment = _sanitized()
    ends_s, first = time.monotonic() + 60 * minutes, int(time.time())
    rounds = 0
    while not rounds or time.monotonic() < ends_s:
        seeds = f"{first + rounds * _SEEDS_A_ROUND}:{_SEEDS_A_ROUND}"
        environment["CPUPACK_DAMAGE_SEEDS"] = seeds
        code = _run_tests(library, workers, environment, names=TESTS[:3], only="damaged")
        if code:
            print(f"damage: again with CPUPACK_DAMAGE_SEEDS={seeds}", file=sys.stderr)  # noqa: T201 - a script
            return code
        rounds += 1
    print(f"damage: {rounds * _SEEDS_A_ROUND} seeds found nothing", file=sys.stderr)  # noqa: T201 - a script
    return 0


def _sanitized() -> tuple[Path, dict[str, str]]:
    """Return the library with the sanitizers, and the variables of a process that loads it. Raises SkippedError."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise SkippedError("there is no gcc; with apt: apt-get install gcc")
    libraries = [_library_of_gcc(gcc, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    library = _compile("sanitize", (gcc, *SANITIZERS))
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        # Python and torch keep memory until the process ends.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # bounds of arrays that Python itself allocates
    }
    return library, environment


def threads() -> int:
    """Compile the driver of tests/arm for this CPU with the thread sanitizer, and run all programs with teams."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise SkippedError("there is no gcc; with apt: apt-get install gcc")
    _library_of_gcc(gcc, "libtsan.so")
    build, tests = ROOT / "build" / "threads", ROOT / "tests" / "arm"
    build.mkdir(parents=True, exist_ok=True)
    driver, programs = build / "driver", build / "programs.bin"
    # torch's operator needs torch, which is not built for this sanitizer.
    sources = [str(path) for path in sources_of(ROOT, "x86_64") if path.parent.name != "torch"]
    flags = (*THREADS, f"-I{PUBLIC_HEADERS}", str(tests / "driver.c"), *sources, "-lm", "-o", str(driver))
    subprocess.run([gcc, *flags], cwd=ROOT, check=True)
    subprocess.run([sys.executable, str(tests / "programs.py"), str(programs)], cwd=ROOT, check=True)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([str(driver), "check", str(programs), "2", "3", "4"], env=environment, check=False).returncode


def emulate(workers: str, pip_args: list[str]) -> int:
    """Compile with portable intrinsics and run the tests as AMX with VBMI, then all kernels without VBMI."""
    headers = ROOT / "build" / "simde"
    if not (headers / "simde_py").is_dir():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(headers),
            *pip_args,
            SIMDE,
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SkippedError(f"pip cannot bring {SIMDE}: {done.stderr.strip().splitlines()[-1:]}")
    flags = (*FLAGS, "-O1", "-DCPUPACK_EMULATE", "-isystem", str(headers / "simde_py" / "simde"))
    library = _compile("emulate", (sys.executable, "-m", COMPILER, "cc", *flags))
    # Without VBMI only tables differ: no damaged programs again.
    return _run_tests(library, workers, {}) or _run_tests(
        library, workers, {"CPUPACK_EMULATE_VBMI": "0"}, names=TESTS[:3], without=("damaged",)
    )


def _library_of_gcc(gcc: str, name: str) -> str:
    found = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_file():
        raise SkippedError(f"gcc has no {name}; with apt: apt-get install gcc g++")
    return str(path.resolve())


def _compile(name: str, command: tuple[str, ...]) -> Path:
    library = ROOT / "build" / name / Path(LIBRARY).name
    started_s = time.monotonic()
    compile_library(ROOT, library, command)
    print(f"{name}: compiled in {time.monotonic() - started_s:.0f} s", file=sys.stderr)  # noqa: T201 - a script
    return library


def _run_tests(
    library: Path,
    workers: str,
    environment: dict[str, str],
    *,
    names: Sequence[str] = TESTS,
    without: Sequence[str] = (),
    only: str = "",
) -> int:
    unwanted = only or " and ".join(f"not {each}" for each in (*OF_THE_PACKAGE, *without))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "library_under_test", "-n", workers, "-k", unwanted]
    command += [str(ROOT / "tests" / "runtime" / name) for name in names]
    variables = {
        "CPUPACK_TEST_LIBRARY": str(library),
        "CPUPACK_TEST_TIMEOUT_S": "3600",
        "PYTHONPATH": str(ROOT / "tests"),
        **environment,
    }
    started_s = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False).returncode
    print(f"tests: {time.monotonic() - started_s:.0f} s", file=sys.stderr)  # noqa: T201 - a script
    return code


if __name__ == "__main__":
    raise SystemExit(main())
