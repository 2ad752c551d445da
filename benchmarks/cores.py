"""Measure a recipe's package on 1, 2, 4, ... cores beside OpenVINO and ONNX Runtime.

``python benchmarks/cores.py prepare FOLDER`` builds the package and the INT8 models of the others into FOLDER, as
``cpupack compare`` makes them. Add ``--recipe``, ``--set KEY=VALUE`` or ``--own`` (only the package, after a change).
``python benchmarks/cores.py measure FOLDER --out ROWS.jsonl`` measures them on this host by the rules of ``cpupack
compare``: a process for each engine, interleaved rounds, all others stopped. FOLDER may come from another machine:
measuring needs this checkout, numpy, Pillow, openvino and onnxruntime, but neither torch nor cpupack's other
requirements. ``python benchmarks/cores.py table ROWS.jsonl...`` prints the page benchmarks/cores.md.

On N cores, a batch above 1 is measured with N instances of one thread and with one instance of N threads, and batch 1
with one instance of N threads, one request at a time. The processes may run only on the first N cores; of SMT siblings
the first is used, and the second when there are no other cores left.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # on a machine where cpupack is not installed

from cpupack.comparison.rounds import BUILD_TIMEOUT_S, participants  # noqa: E402 - after the path
from cpupack.peers import OURS  # noqa: E402 - as the first
from cpupack.peers.job import Data, Job  # noqa: E402 - as the first
from cpupack.peers.process import EngineProcess  # noqa: E402 - as the first
from cpupack.progress import SilentProgress  # noqa: E402 - as the first
from cpupack.runtime.host.cgroup import parse_cpu_list, read_text  # noqa: E402 - as the first
from cpupack.runtime.host.cpu import cpu_info, detect_isa  # noqa: E402 - as the first
from cpupack.runtime.tune.space import Setting  # noqa: E402 - as the first

PEERS = ("openvino", "onnxruntime")
SETTLE_S = 0.2
_HEAD = """\
# From one core to many

<!-- Written by `python benchmarks/cores.py table`. -->

On N cores, a batch of 32 is measured with N instances of one thread and with one instance of N threads (instances x
threads), and each engine is shown with the better of the two. Batch 1 is one instance of N threads, one request at a
time. The engines' processes may run only on those cores. They take turns in rounds, and all others are stopped. The
figures are medians of the rounds, and "faster by" is their ratio. `results/` has every round.
"""
KEPT_SAMPLES = 16
"""Samples that travel with FOLDER. Speed does not depend on what is in the pictures."""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("prepare", help="build the package and the models of the others")
    making.add_argument("folder", type=Path)
    making.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "resnet50.toml")
    making.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    making.add_argument("--own", action="store_true", help="build the package again, and nothing else")
    measuring = verbs.add_parser("measure", help="measure what was prepared, on this host")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--out", type=Path, help="where rows go, one JSON object a line (default: stdout)")
    measuring.add_argument("--cores", type=_numbers, default=(1, 2, 4, 8, 16), metavar="N,...")
    measuring.add_argument("--batches", type=_numbers, default=(32, 1), metavar="N,...")
    measuring.add_argument("--input", choices=["uint8", "float32"], default="uint8", help="what the others get")
    measuring.add_argument("--rounds", type=int, default=5)
    measuring.add_argument("--round-s", type=float, default=0.8)
    telling = verbs.add_parser("table", help="print a table of rows")
    telling.add_argument("rows", type=Path, nargs="+", metavar="ROWS.jsonl")
    arguments = parser.parse_args()
    match arguments.verb:
        case "prepare":
            prepare(arguments.folder.resolve(), arguments.recipe, tuple(arguments.overrides), own=arguments.own)
        case "measure":
            measure(arguments)
        case _:
            sys.stdout.write(page(arguments.rows))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def prepare(folder: Path, recipe: Path, overrides: tuple[str, ...], *, own: bool) -> None:
    """Write the package, the models of the others unless ``own``, a few samples and the job into ``folder``."""
    import numpy as np

    from cpupack.comparison.subject import from_recipe
    from cpupack.recipe.file import load_recipe

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        subject = from_recipe(load_recipe(recipe, overrides), work, SilentProgress())
        told = dataclasses.replace(subject.job, input_kind="uint8")
        for name in () if own else PEERS:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            job = dataclasses.replace(told, engine=name, directory=str(folder / name))
            with EngineProcess(job, work / f"build-{name}", timeout_s=BUILD_TIMEOUT_S) as process:
                _say(f"{name}: {process.ask('build')['settings']}")
            for spare in ("fp32.onnx", "prepared.onnx"):
                (folder / name / spare).unlink(missing_ok=True)
            shutil.rmtree(folder / name / "tmp", ignore_errors=True)
        package = Path(told.package["source"]) / told.package["import_name"]
        shutil.rmtree(folder / "package", ignore_errors=True)
        shutil.copytree(package, folder / "package" / package.name)
        np.save(folder / "evaluation.npy", np.load(told.evaluation.path, mmap_mode="r")[:KEPT_SAMPLES])
        facts = {
            "model": subject.recipe.recipe.model.source,
            "weights": "random" if subject.model.random_weights else subject.recipe.recipe.model.weights,
            "import_name": package.name,
            "input_shape": list(told.input_shape),
            "preprocess": told.evaluation.preprocess,
            "activation_bits": told.activation_bits,
        }
    (folder / "prepared.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _job(folder: Path, engine: str, cores: int, input_kind: str) -> Job:
    """Return the job of an engine that serves what ``prepare`` wrote, wherever ``folder`` is now."""
    facts = json.loads((folder / "prepared.json").read_text("utf-8"))
    return Job(
        engine=engine,
        directory=str(folder / engine),
        recipe_path="",
        recipe_text="",
        weights="",
        input_shape=tuple(facts["input_shape"]),
        calibration=None,
        calibration_batch=1,
        evaluation=Data(str(folder / "evaluation.npy"), KEPT_SAMPLES, facts["preprocess"]),
        reference="",
        package={"source": str(folder / "package"), "import_name": facts["import_name"]},
        dynamic=False,
        cores=cores,
        activation_bits=facts["activation_bits"],
        input_kind=input_kind,
    )


def measure(arguments: argparse.Namespace) -> None:
    """Measure every number of cores that this host has, and write a line of facts and a line for each round."""
    folder, allowed = arguments.folder.resolve(), os.sched_getaffinity(0)
    ordered = cores_first(allowed)
    names = [OURS, *(name for name in PEERS if (folder / name).is_dir())]
    counts = [count for count in arguments.cores if count <= len(ordered)]
    for count in sorted(set(arguments.cores) - set(counts)):
        _say(f"skipped {count} cores: only {len(ordered)} CPUs may be used here")
    out = arguments.out.open("w", encoding="utf-8") if arguments.out else sys.stdout
    _write(out, {"facts": host_facts(folder, arguments)})
    try:
        for count in counts:
            os.sched_setaffinity(0, ordered[:count])  # the engines' processes inherit it
            for batch, setting in settings(count, arguments.batches):
                for row in _rows(folder, names, count, setting, arguments, single=batch == 1):
                    _write(out, {"cores": count, "cpus": ordered[:count], **row})
    finally:
        os.sched_setaffinity(0, allowed)
        if out is not sys.stdout:
            out.close()


def settings(cores: int, batches: Sequence[int]) -> Iterator[tuple[int, Setting]]:
    """Yield each batch size with the ways to share ``cores`` that it is measured with."""
    for batch in batches:
        shares = {(cores, 1)} if batch == 1 else {(1, cores), (cores, 1)}
        for threads, instances in sorted(shares):
            yield batch, Setting(threads=threads, instances=instances, batch_size=batch)


def _rows(
    folder: Path, names: list[str], cores: int, setting: Setting, arguments: argparse.Namespace, *, single: bool
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch, participants(Path(scratch)) as running:
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            kind = "uint8" if name == OURS else arguments.input
            running.enter(_job(folder, name, cores, kind).at(setting, single=single), _enter)
        for name, reason in running.failed.items():
            raise SystemExit(f"{name} on {cores} cores, {setting}: {reason}")
        found = running.play(
            arguments.rounds,
            lambda process: process.ask("round", duration_s=arguments.round_s, settle_s=SETTLE_S),
            SilentProgress(),
        )
        for name, reason in running.failed.items():
            raise SystemExit(f"{name} on {cores} cores, {setting}: {reason}")
    rows = [
        {
            **dataclasses.asdict(setting),
            "round": row["round"],
            "position": row["position"],
            "engine": row["engine"],
            "throughput_per_s": round(row["throughput_per_s"], 2),
            "p50_ms": round(row["latency_ms"]["p50"], 4),
        }
        for row in found
    ]
    said = ", ".join(f"{name} {_median(rows, name):,.0f}" for name in names)
    _say(f"{cores} cores, {setting.instances} x {setting.threads}, batch {setting.batch_size}: {said} a second")
    return rows


def _enter(process: EngineProcess) -> None:
    process.ask("open")
    process.ask("round", duration_s=0.5, settle_s=0.5)


def cores_first(cpus: set[int], root: Path = Path("/")) -> list[int]:
    """Return the CPUs, one of each physical core first, then their SMT siblings, as the kernel's files tell them."""
    seen: set[int] = set()
    first: list[int] = []
    later: list[int] = []
    for cpu in sorted(cpus):
        (later if cpu in seen else first).append(cpu)
        seen |= parse_cpu_list(_siblings(root, cpu) or str(cpu))
    return first + later


def _siblings(root: Path, cpu: int) -> str | None:
    return read_text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")


def host_facts(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the rows were measured on, with and how."""
    prepared = json.loads((folder / "prepared.json").read_text("utf-8"))
    allowed = os.sched_getaffinity(0)
    siblings = {_siblings(Path("/"), cpu) for cpu in allowed}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_info()[0],
        "isa": detect_isa(),
        "cpus": len(allowed),
        "physical_cores": len(siblings) if None not in siblings else None,
        "model": prepared["model"],
        "weights": prepared["weights"],
        "input": "uint8",
        "input_of_the_others": arguments.input,
        "rounds": arguments.rounds,
        "round_s": arguments.round_s,
        "versions": {name: metadata.version(name) for name in PEERS if (folder / name).is_dir()},
    }


def page(paths: Sequence[Path]) -> str:
    """Return a page with the table of each file of rows."""
    parts = [_HEAD]
    for path in paths:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        parts += [f"## {path.stem}", "", table(rows)]
    return "\n".join(parts)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table: of each batch and number of cores, each engine at the better way to share them.

    Ratios are of medians, because the better ways of two engines may have been measured in different rounds.
    """
    facts, *measured = rows
    told = facts["facts"]
    names = [name for name in (OURS, *PEERS) if any(row["engine"] == name for row in measured)]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    lines = [
        f"{told['date'][:10]}, {told['cpus']} CPUs ({told['physical_cores']} physical cores) of {told['cpu']} "
        f"({told['isa']}); {told['model']}, {told['weights']} weights; the others get {told['input_of_the_others']}; "
        f"{versions}.",
        "",
        f"| batch | cores | {' | '.join(f'{name}, images/s' for name in names)} | cpupack is faster by |",
        "|---:|---:|" + "---:|" * len(names) + "---|",
    ]
    for batch in sorted({row["batch_size"] for row in measured}, reverse=True):
        for cores in sorted({row["cores"] for row in measured}):
            here = [row for row in measured if (row["batch_size"], row["cores"]) == (batch, cores)]
            if not here:  # the run was ended before it came to them
                continue
            best = {name: max(_by_setting(here, name)) for name in names}
            cells = [f"{rate:,.0f} ({instances} x {threads})" for rate, instances, threads in best.values()]
            faster = [f"{best[OURS][0] / best[name][0]:.2f} ({name})" for name in names[1:]]
            lines.append(f"| {batch} | {cores} | {' | '.join(cells)} | {', '.join(faster)} |")
    return "\n".join(lines) + "\n"


def _by_setting(rows: list[dict[str, Any]], name: str) -> list[tuple[float, int, int]]:
    """Return the median rate of ``name`` with each way to share the cores, with instances and threads."""
    shares = {(row["instances"], row["threads"]) for row in rows}
    return [
        (_median([row for row in rows if (row["instances"], row["threads"]) == share], name), *share)
        for share in shares
    ]


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row["throughput_per_s"] for row in rows if row["engine"] == name))


def _write(out: Any, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")
    out.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
