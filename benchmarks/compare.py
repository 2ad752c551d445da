"""Runs ``cpupack compare`` on every recipe for ImageNet and keeps the answers: ``python benchmarks/compare.py``.

Each model's answer goes to benchmarks/results/ISA/MODEL.json with all raw rounds, ISA being the host's instruction set
(amx, avx2, ...), and the table of all results there to benchmarks/README.md. ``--table`` writes the table anew and
measures nothing. What follows ``--`` goes to ``cpupack compare``. With ``-- --input uint8-vs-float32``, the other
engines' best case, the answer is kept in a file of its own. ``--busy`` keeps the answers of a host that does other work
at the same time in results/ISA/busy/, so that they replace none from a quiet host.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cpupack.comparison.options import MIXED
from cpupack.runtime.host.cpu import ISA_LEVELS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TABLE = Path(__file__).parent / "README.md"
MODELS = ("resnet50", "resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0")
TEXTS = ("minilm", "bert_base")
"""Measured where they are asked for. Of these all engines get batches of like length, padded to their longest."""
_HEAD = """\
# Side by side with other engines

<!-- Written by `python benchmarks/compare.py`. -->

A setting is instances x threads, and the batch size. The columns "cpupack" say how many times as fast cpupack is, first
in samples/s, then in the latency of one request: the median of paired, interleaved rounds, with its 95 % interval.
"Same class" is the share of samples with FP32's class. Texts have no class. They differ in length: the other engines
get batches of like length, each padded to its longest.

All engines start from the same FP32 model and calibration data. Each runs in a process of its own at its own best
threads x instances x batch. `cpupack compare --help` has the rules, and `results/` has every raw round. The hosts
were measured at different times, so do not compare figures of two sections with each other.
"""


def main() -> None:
    """Measure the models that are asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--table", action="store_true", help="write the table from the results that are there")
    parser.add_argument("--busy", action="store_true", help="the host does other work: keep the answers apart")
    own, passed = split_arguments(sys.argv[1:])
    arguments = parser.parse_args(own)
    unknown = sorted(set(arguments.models) - {*MODELS, *TEXTS})
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}")
    if not arguments.table:
        for model in arguments.models or MODELS:
            measure(model, passed, busy=arguments.busy)
    TABLE.write_text(table(), encoding="utf-8")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return a script's own arguments and what follows ``--``."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def measure(model: str, options: list[str], *, busy: bool = False) -> None:
    """Compare a recipe of this repository and keep the answer."""
    compared(ROOT / "recipes" / f"{model}.toml", model, options, busy=busy)


def compared(recipe: Path, model: str, options: list[str], *, busy: bool = False) -> None:
    """Run one comparison and keep its answer; a failure leaves the last one as it was."""
    print(f"== {model}", file=sys.stderr, flush=True)  # noqa: T201 - a script
    command = [sys.executable, "-m", "cpupack", "compare", str(recipe), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result = json.loads(done.stdout)
    path = _place(result["host"]["isa"], model, result["rules"]["input"], busy=busy)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(done.stdout)
    part.replace(path)


def _place(isa: str, model: str, given: str, *, busy: bool) -> Path:
    directory = RESULTS / isa / "busy" if busy else RESULTS / isa
    return directory / (f"{model}.{MIXED}.json" if given == MIXED else f"{model}.json")


def table() -> str:
    """Return the page of all results."""
    parts = [_HEAD]
    for isa in reversed(ISA_LEVELS):
        for name, given, busy in itertools.product((*MODELS, *TEXTS), ("", MIXED), (False, True)):
            path = _place(isa, name, given, busy=busy)
            if path.exists():
                result = json.loads(path.read_text("utf-8"))
                heading = f"## {name}, {isa}" + (", ready floats for the others" if given == MIXED else "")
                heading += ", busy host" if busy else ""
                parts += [heading, "", _facts(result, busy=busy), "", *_rows(result), "", *_closing(result)]
    return "\n".join(parts).rstrip() + "\n"


def _facts(result: dict[str, Any], *, busy: bool) -> str:
    host, rules = result["host"], result["rules"]
    weights = "random weights" if result["model"]["random_weights"] else result["model"]["weights"]
    versions = {what: version for engine in result["engines"].values() for what, version in engine["versions"].items()}
    return (
        f"{result['date'][:10]}, {rules['cores']} cores of {host['cpu']} ({host['isa']}), {weights}; input: "
        f"{rules['input_text']}; {', '.join(f'{what} {version}' for what, version in sorted(versions.items()))}."
        + (f" Other work ran too (load {host['load_1m']:.0f}): rates are too low, intervals wide." if busy else "")
    )


def _rows(result: dict[str, Any]) -> list[str]:
    lines = [
        "| engine | setting | samples/s | cpupack | p50 ms | p99 ms | cpupack | SQNR | same class |",
        "|---|---|---:|---|---:|---:|---|---:|---:|",
    ]
    for name, engine in result["engines"].items():
        fast, quick = (result[mode]["engines"].get(name) for mode in ("throughput", "latency"))
        if not (fast and quick):
            lines.append(f"| {name} | {engine['status']}: {engine['reason']} |" + " |" * 7)
            continue
        setting = engine["setting"]
        same = "" if engine["agreement"] is None else f"{engine['agreement']:.1%}"
        sqnr = "equal" if engine["sqnr_db"] is None else f"{engine['sqnr_db']:.1f} dB"
        lines.append(
            f"| {name} | {setting['instances']} x {setting['threads']}, batch {setting['batch_size']} "
            f"| {fast['median']:,.1f} | {_ratio(fast)} | {quick['p50_ms']:.2f} | {quick['p99_ms']:.2f} "
            f"| {_ratio(quick)} | {sqnr} | {same} |"
        )
    return lines


def _closing(result: dict[str, Any]) -> list[str]:
    lines = []
    if files := result.get("end_to_end"):
        rates = [
            f"{name} {row['median']:,.1f}" + (f", cpupack {ratio} times as fast" if (ratio := _ratio(row)) else "")
            for name, row in files["engines"].items()
        ]
        lines.append(f"From {files['files']} JPEG files, images/s: {'; '.join(rates)}.")
    if peak := result["int8_peak"]:
        share = peak["cpupack_share"]["median"]
        lines.append(f"cpupack reaches {share:.0%} of the INT8 rate that was measured in the same rounds.")
    return [*lines, ""] if lines else []


def _ratio(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


if __name__ == "__main__":
    main()
