"""Sets ``NAME tune`` against measuring every setting: ``python benchmarks/tuning.py WHEEL``.

WHEEL is a built wheel, or the directory of an importable package that was built or staged. Every setting of the space
is measured in ``--rounds`` rounds in alternating order, each run in a fresh process, as the tuner does it; the best is
the one of highest median throughput. Then the package's own ``tune`` searches with a fifth of the time that this took.

Every run is printed as one JSON line as it comes; the last line is the answer: share_of_best, share_of_time, passed
(share_of_best at least 0.95, share_of_time at most 0.2), best and tuned. Exit code 1 when not passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from cpupack.runtime.files import MANIFEST_NAME
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.tune.command import DEFAULT_BATCH_SIZES, BenchProcess
from cpupack.runtime.tune.space import Setting, make_space

SHARE_OF_BEST, SHARE_OF_TIME = 0.95, 0.2


def main() -> int:
    """Measure everything, tune, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, metavar="WHEEL", help="a wheel, or a package's directory")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of every setting (default: 3)")
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS", help="of one run (default: 1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        package_dir = unpacked(arguments.package, Path(scratch))
        environ = {
            **os.environ,
            "PYTHONPATH": str(package_dir.parent),
            "XDG_CACHE_HOME": scratch,
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        begin_s = time.monotonic()
        rates = measure_everything(package_dir, environ, arguments.rounds, arguments.duration)
        exhaustive_s = time.monotonic() - begin_s
        begin_s = time.monotonic()
        found = tune(package_dir, environ, SHARE_OF_TIME * exhaustive_s)
        tuned_s = time.monotonic() - begin_s
    best = max(rates, key=rates.__getitem__)
    tuned = Setting(found["threads"], found["instances"], found["batch_size"])
    share, of_time = rates[tuned] / rates[best], tuned_s / exhaustive_s
    # Python takes a moment to start and end; the tuner's own clock keeps the budget.
    passed = share >= SHARE_OF_BEST and found["searched_s"] <= SHARE_OF_TIME * exhaustive_s
    say(
        share_of_best=share,
        share_of_time=of_time,
        passed=passed,
        best={**asdict(best), "throughput_per_s": rates[best]},
        tuned={**asdict(tuned), "throughput_per_s": rates[tuned]},
        settings=len(rates),
        exhaustive_s=exhaustive_s,
        tuned_s=tuned_s,
        tuned_runs=len(found["rows"]),
        reason=found["reason"],
    )
    return 0 if passed else 1


def unpacked(package: Path, scratch: Path) -> Path:
    """Return the package's directory; a wheel is unpacked in ``scratch``."""
    if package.is_dir():
        return package.resolve()
    with zipfile.ZipFile(package) as archive:
        archive.extractall(scratch / "wheel")
    (manifest,) = (scratch / "wheel").glob(f"*/{MANIFEST_NAME}")
    return manifest.parent


def measure_everything(
    package_dir: Path, environ: dict[str, str], rounds: int, duration_s: float
) -> dict[Setting, float]:
    """Return the median throughput of every setting, in samples a second."""
    manifest, budget = read_manifest(package_dir), HostProbe().budget()
    space = make_space(budget.usable, "throughput", None, DEFAULT_BATCH_SIZES, budget.most)
    settings = [Setting(*layout, size) for layout in space.layouts for size in space.batch_sizes]
    measure = BenchProcess(manifest.import_name, manifest.version, "offline", environ, cwd=package_dir.parent)
    rates: dict[Setting, list[float]] = defaultdict(list)
    for number in range(rounds):
        for setting in settings if number % 2 == 0 else reversed(settings):
            row = measure(setting, duration_s)
            rates[setting].append(row["throughput_per_s"])
            say(
                search="everything",
                round=number,
                **asdict(setting),
                throughput_per_s=row["throughput_per_s"],
                disturbed=row["disturbed"],
            )
    return {setting: median(found) for setting, found in rates.items()}


def tune(package_dir: Path, environ: dict[str, str], budget_s: float) -> dict[str, Any]:
    """Run the package's ``tune`` and return its answer."""
    command = [sys.executable, "-m", package_dir.name, "tune", "--json", "--objective", "throughput"]
    command += ["--budget-s", f"{budget_s:.3f}"]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True, cwd=package_dir.parent)
    found: dict[str, Any] = json.loads(done.stdout)
    for row in found["rows"]:
        keys = ("round", "threads", "instances", "batch_size", "throughput_per_s", "cost_s", "disturbed", "error")
        say(search="tune", **{key: row[key] for key in keys if key in row})
    return found


def say(**facts: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(facts), flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    sys.exit(main())
