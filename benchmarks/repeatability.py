"""Does a second run land where the first said it would? ``python benchmarks/repeatability.py NAME-bench``.

Runs an installed wheel's bench again and again, each time in a fresh process. Each run but the last is one trial: it
says where a second run's headline falls 19 times in 20 (``headline_repeat95``), and the next run either does so or not.
Prints every run as one JSON object a line, then the count. Exit code 1 when fewer than nine of ten trials agree among
those whose two runs both call themselves valid.

    python benchmarks/repeatability.py resnet18-int8-bench --trials 10 -- --scenario single-stream --duration 5

In place of the console script, ``--module resnet18_int8`` runs ``python -m resnet18_int8 bench``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

ENOUGH = 0.9


def main() -> int:
    """Run the benches, print the rows and the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", help="the wheel's console script NAME-bench")
    parser.add_argument("--module", help="the wheel's import name, in place of the console script")
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--pause", type=float, default=0.0, metavar="SECONDS", help="between two runs")
    own, passed = split(sys.argv[1:])
    arguments = parser.parse_args(own)
    if (arguments.bench is None) == (arguments.module is None):
        parser.error("name either the console script or --module")
    if arguments.trials < 1:
        parser.error(f"--trials {arguments.trials}: at least 1")
    command = [arguments.bench] if arguments.bench else [sys.executable, "-m", arguments.module, "bench"]
    rows = []
    for number in range(arguments.trials + 1):
        if number:
            time.sleep(arguments.pause)
        rows.append(row(run([*command, "--json", *passed])))
        say(json.dumps(rows[-1]))
    found = judge(rows)
    say(text(found))
    return 0 if found["valid_agree"] >= ENOUGH * found["valid"] else 1


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before ``--`` and what after it."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def run(command: list[str]) -> dict[str, Any]:
    """Return the result of one bench."""
    result: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return result


def row(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a trial needs of a result."""
    keys = (
        "scenario", "threads", "instances", "batch_size", "headline", "headline_value", "headline_repeat95",
        "throughput_per_s", "throughput_ci95_per_s", "windows_per_s", "latency_ms", "valid", "invalid_reasons",
    )  # fmt: skip
    return {key: result[key] for key in keys}


def judge(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of trials and of those that agree, of all and of the valid ones."""
    trials = [(first, second, agrees(first, second)) for first, second in pairwise(rows)]
    valid = [agree for first, second, agree in trials if first["valid"] and second["valid"]]
    return {
        "trials": len(trials),
        "agree": sum(agree for _, _, agree in trials),
        "valid": len(valid),
        "valid_agree": sum(valid),
    }


def agrees(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether the second run's headline lies where the first said."""
    low, high = first["headline_repeat95"]
    return bool(low <= second["headline_value"] <= high)


def text(found: dict[str, int]) -> str:
    """Return the count as a sentence."""
    return (
        f"{found['agree']} of {found['trials']} trials agree; of the {found['valid']} whose two runs are valid, "
        f"{found['valid_agree']}"
    )


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201 - a script


if __name__ == "__main__":
    sys.exit(main())
