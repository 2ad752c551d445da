"""A real package, small: a convolutional net quantized here, laid out as a wheel lays it out."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import cpupack.runtime
from cpupack.runtime.files import BUILD_NAME, MANIFEST_NAME, ROOT_NAME
from cpupack.runtime.host import cpu
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import FileEntry, Manifest, PlanEntry, hash_file, root_text

RUNTIME = Path(cpupack.runtime.__file__).parent
INPUT_SHAPE = (3, 16, 16)
CLASSES = 4
ENGINE = "onednn" if cpu.machine() == "x86_64" else "qnnpack"
PREPROCESS = {
    "resize": 20,
    "crop": 16,
    "interpolation": "bilinear",
    "mode": "RGB",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

_INIT = '''"""Tiny INT8 classifier."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "Runner":
        from ._runtime.runner import Runner

        return partial(Runner, Path(__file__).parent)
    raise AttributeError(name)
'''
_ENTRY = """from pathlib import Path

from ._runtime import cli

HERE = Path(__file__).parent


def main() -> int:
    return cli.main(HERE)


def bench_main() -> int:
    return cli.bench_main(HERE)
"""
_MAIN = """import sys

from ._entry import main

sys.exit(main())
"""


class TinyNet(nn.Module):
    """conv-relu, a residual add, pooling, linear: one of each operator that packs weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x) + x)
        return self.head(torch.flatten(self.pool(x), 1))


def quantize_and_save(
    model: nn.Module, example: torch.Tensor, path: Path, engine: str = ENGINE
) -> torch.jit.ScriptModule:
    """Quantize with FX, trace, freeze and save, as the builder does in more words."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch.ao and torch.jit announce their own deprecation; this is a fixture, not their owner.
            warnings.simplefilter("ignore")
            prepared = prepare_fx(model.eval(), get_default_qconfig_mapping(engine), (example,))
            prepared(example)
            frozen = torch.jit.freeze(torch.jit.trace(convert_fx(prepared), example).eval())
            torch.jit.save(frozen, str(path))
            return frozen
    finally:
        torch.backends.quantized.engine = before


def write_package(
    directory: Path, *, preprocess: dict[str, Any] | None = PREPROCESS, random_weights: bool = False
) -> Path:
    """Write the importable package ``directory`` with a tiny INT8 model and return it."""
    directory.mkdir(parents=True)
    shutil.copytree(RUNTIME, directory / "_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (("__init__", _INIT), ("_entry", _ENTRY), ("__main__", _MAIN)):
        (directory / f"{name}.py").write_text(text)
    (directory / "labels.txt").write_text("cat\ndog\nbird\nfish\n")

    torch.manual_seed(0)
    model = TinyNet().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    mean, std = (np.array(PREPROCESS[key], np.float32) for key in ("mean", "std"))
    example = torch.from_numpy(np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)))
    with torch.no_grad():
        fp32 = model(example).numpy()
    quantized = quantize_and_save(model, example, directory / "model.pt")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        with torch.inference_mode():
            output = quantized(example.contiguous(memory_format=torch.channels_last)).numpy()
    finally:
        torch.backends.quantized.engine = before
    golden = pixels if preprocess else example.numpy()
    np.savez(directory / "golden.npz", input=golden, output=output, output_fp32=fp32)

    shipped = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()]
    manifest = Manifest(
        name="tiny-int8",
        import_name="tiny_int8",
        version="1.0.0+random" if random_weights else "1.0.0",
        random_weights=random_weights,
        model={
            "source": "python:tiny.py:TinyNet",
            "weights": "random" if random_weights else "tiny.pt",
            "input_shape": list(INPUT_SHAPE),
            "output_shape": [CLASSES],
            "fp32_bytes": sum(p.numel() for p in model.parameters()) * 4,
            "int8_bytes": (directory / "model.pt").stat().st_size,
        },
        target={
            "cpu": cpu.machine(),
            "engine": ENGINE,
            "isa": "avx2" if cpu.machine() == "x86_64" else None,
            "activation_bits": 8,
            "memory_format": "channels_last",
            "platform_tag": f"manylinux_2_28_{cpu.machine()}",
        },
        preprocess=preprocess,
        labels="labels.txt",
        quantize={"mode": "static", "observer": "histogram", "skip": []},
        calibration=None,
        accuracy={"sqnr_db": 30.0, "agreement": 1.0},
        plan=PlanEntry(
            tuned=False,
            objective="throughput",
            threads=None,
            instances=None,
            batch_size=None,
            max_latency_ms=None,
            reason="not tuned",
        ),
        bench={},
        torch={"version": str(torch.__version__), "requires": ">=2.10,<2.14"},
        build={"host": host_probe.fingerprint()},
        files={name: FileEntry(hash_file(directory / name), (directory / name).stat().st_size) for name in shipped},
    )
    keep_manifest(directory, manifest)
    return directory


def keep_manifest(directory: Path, manifest: Manifest, rows: Sequence[Any] = ()) -> None:
    """Write a manifest as the build does, its measured part and ``rows`` of tuning into ``build.json``."""
    (directory / MANIFEST_NAME).write_text(manifest.to_json())
    (directory / ROOT_NAME).write_text(root_text(manifest))
    facts = {"plan": {"rows": list(rows)}, "measured": manifest.measured()}
    (directory / BUILD_NAME).write_text(json.dumps(facts))
