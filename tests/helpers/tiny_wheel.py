"""A tiny traced model with everything a wheel needs, made without the stages that come before packaging."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cpupack.artifacts import FloatModel, FusedModel, Gate, Samples, ScriptedModel, VerifyReport
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.host.cpu import detect_isa
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.signature import Signature
from cpupack.stages.package import WheelContents
from cpupack.targets import Target
from cpupack.targets.x86 import activation_bits

INPUT_SHAPE = (3, 8, 8)
LABELS = ("cat", "dog", "snow\N{SNOWMAN}man")
GATE = Gate("min_sqnr_db", bound=15.0, measured=41.5, passed=True)
RECIPE_TEXT = '# the recipe as it was written\nschema = 1\n[package]\nname = "tiny-int8"\n'


@dataclass(frozen=True)
class TinyWheel:
    """The saved TorchScript (``model_path``), its FP32 module, and golden inputs and outputs."""

    model_path: Path
    module: torch.nn.Module
    pixels: np.ndarray
    outputs: np.ndarray

    def contents(
        self,
        *,
        name: str = "tiny-int8",
        version: str = "1.0.0",
        description: str = "",
        random_weights: bool = False,
        labels: tuple[str, ...] = LABELS,
        sqnr_db: float = 41.5,
        cpu: str = "x86_64",
        images: bool = True,
    ) -> WheelContents:
        recipe = _recipe(name, version, description, images=images)
        spec = PreprocessSpec.from_dict(recipe.preprocess.model_dump()) if recipe.preprocess else None
        floats = normalize(self.pixels, PreprocessSpec(resize=8, crop=8))
        data = self.pixels if images else np.ascontiguousarray(floats)
        return WheelContents(
            loaded=LoadedRecipe(recipe=recipe, path=self.model_path.parent / "recipe.toml", text=RECIPE_TEXT),
            model=FloatModel(
                module=self.module,
                signature=Signature.plain(INPUT_SHAPE, (len(LABELS),), spec),
                weights_origin="random, seed 0" if random_weights else "weights.pt",
                random_weights=random_weights,
                weights_sha256=None if random_weights else "ab" * 32,
                parameters=sum(parameter.numel() for parameter in self.module.parameters()),
                macs=4 * 3 * 3 * 3 * 6 * 6 + 4 * len(LABELS),
                fp32_bytes=sum(parameter.numel() * 4 for parameter in self.module.parameters()),
                labels=labels,
            ),
            fused=FusedModel(self.module, "fx", (("0", "1"),), max_abs_diff=0.0, max_abs_output=1.0),
            scripted=ScriptedModel(
                path=self.model_path,
                target=_target(cpu),
                size_bytes=self.model_path.stat().st_size,
                int8_operators=2,
                fp32_operators=1,
                operators={"quantized::conv2d_relu": 1, "quantized::linear": 1, "aten::mean": 1},
            ),
            report=VerifyReport("synthetic", 16, True, sqnr_db, 0.999, 0.9375, speedup=2.5, gates=(GATE,)),
            target=_target(cpu),
            calibration=Samples(data, "synthetic", ("a",) * len(data), spec, synthetic=True),
            golden={"input": data, "output": self.outputs, "output_fp32": self.outputs},
            notes=("head stays FP32: [quantize] skip",),
        )


def make_tiny(directory: Path) -> TinyWheel:
    """Trace and save a convolution, a ReLU, a mean and a linear layer (seeded)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(4, len(LABELS)),
        ).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    batch = torch.from_numpy(normalize(pixels, PreprocessSpec(resize=8, crop=8)))
    path = directory / "tiny.pt"
    with torch.inference_mode():
        torch.jit.save(torch.jit.freeze(torch.jit.trace(module, batch)), str(path))
        outputs = module(batch).numpy()
    return TinyWheel(path, module, pixels, outputs)


def _target(cpu: str) -> Target:
    if cpu == "aarch64":
        return Target("aarch64", "qnnpack", "neon", 8, conv_add=False, platform_tag="manylinux_2_28_aarch64")
    isa = detect_isa() or "avx2"
    return Target("x86_64", "fbgemm", isa, activation_bits(isa), False, "manylinux_2_28_x86_64")


def _recipe(name: str, version: str, description: str, *, images: bool) -> Recipe:
    tables = {
        "schema": 1,
        "package": {"name": name, "version": version, "description": description},
        "model": {"source": "python:tiny.py:a|b", "weights": "weights.pt", "input_shape": list(INPUT_SHAPE)},
        "calibration": {"source": "synthetic", "samples": 4},
    }
    if images:
        tables["preprocess"] = {"resize": 8, "crop": 8}
    return Recipe.model_validate(tables)
