"""Lower the families of torchvision's classifiers with random weights, and write docs/explanation/families.md.

``python benchmarks/families.py [NAME...]`` takes some minutes and about 4 GB. Images are synthetic and mostly small:
what the table shows is that every structure has kernels, and that its error against FP32 is that of rounding.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import CalibratedModel, FloatModel, Samples
from cpupack.errors import QuantizationError
from cpupack.layout import batch_channels_last
from cpupack.pipeline.candidates import candidates
from cpupack.progress import SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.runtime.images.inputs import model_input
from cpupack.sources import open_source
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.load import load
from cpupack.stages.quantize import quantize

ENGINES = ("native", "onednn")
SMALL = 96
SIZES = {"alexnet": 224, "vgg11_bn": 224, "inception_v3": 299, "vit_b_32": 224, "swin_t": 224}
KWARGS = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"init_weights": True}}
MODELS = (
    "alexnet", "vgg11_bn", "squeezenet1_1", "resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d",
    "regnet_x_400mf", "regnet_y_1_6gf", "densenet121", "googlenet", "inception_v3", "mnasnet1_0", "mobilenet_v2",
    "mobilenet_v3_large", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_32",
    "swin_t",
)  # fmt: skip
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "families.md"
HEAD = """\
# Families of models and their engines

<!-- Written by `python benchmarks/families.py`. -->

SQNR of the logits against FP32, with random weights and BatchNorms, synthetic images and default settings. Random
networks say little about trained ones, but engines can be compared on them. Calls that have no native kernel run
in FP32 between the parts that do. A network of zeros as output has "inf dB".

| model | input | native | onednn | layers in INT8 |
|---|---|---:|---:|---|
"""


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    rows = [row(name) for name in names or MODELS]
    if not names:
        PAGE.write_text(HEAD + "".join(rows), encoding="utf-8")


def row(name: str) -> str:
    size = SIZES.get(name, SMALL)
    progress = SilentProgress()
    loaded = LoadedRecipe(recipe=Recipe.model_validate(settings(name, size)), path=Path.cwd() / "recipe.toml", text="")
    model = load(loaded, progress)
    calibration, evaluation = (images(loaded, seed) for seed in (0, 1))
    vary_norms(model)
    captured = capture(model, calibration, loaded.recipe, progress)
    calibrated = calibrate(fuse(captured, loaded.recipe, progress), calibration, 8, progress)
    found = [logits_db(loaded, model, calibrated, evaluation, engine_name) for engine_name in ENGINES]
    cells = [f"{db:.1f} dB" if isinstance(db, float) else "" for db, _ in found]
    line = f"| {name} | {size} x {size} | {' | '.join(cells)} | {found[0][1]} |\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    return line


def vary_norms(model: FloatModel) -> None:
    """Give BatchNorms statistics and factors that are not 0 and 1: with those they would do nothing."""
    generator = torch.Generator().manual_seed(0)
    for norm in (each for each in model.module.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        with torch.no_grad():
            for tensor in (norm.running_var, norm.weight):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (norm.running_mean, norm.bias):
                assert tensor is not None
                tensor.normal_(generator=generator).mul_(0.1)


def settings(name: str, size: int) -> dict[str, object]:
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return {
        "schema": 1,
        "package": {"name": name.replace("_", "-")},
        "model": {
            "source": f"torchvision:{name}", "kwargs": KWARGS.get(name, {}), "weights": "random",
            "input_shape": [3, size, size],
        },
        "preprocess": {"resize": [size, size], **imagenet},
        "calibration": {"source": "synthetic", "samples": 32},
    }  # fmt: skip


def images(loaded: LoadedRecipe, seed: int) -> Samples:
    return open_source(
        "synthetic", loaded, samples=32, seed=seed, skip_corrupt=False, labelled=False, progress=SilentProgress()
    )


def logits_db(
    loaded: LoadedRecipe, model: FloatModel, calibrated: CalibratedModel, evaluation: Samples, engine_name: str
) -> tuple[float | None, str]:
    target = next(each for each in candidates(loaded.recipe, "x86_64", list(ENGINES)) if each.engine == engine_name)
    try:
        int8 = quantize(calibrated, model.module, loaded.recipe, target)
    except QuantizationError as error:
        return None, error.message.removeprefix("the native engine has ")
    pixels = model_input(evaluation.data, evaluation.preprocess, pixel_input=int8.pixel_input)
    with torch.inference_mode(), engine(engine_name), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.module(batch_channels_last(evaluation.tensor(slice(None))))
        actual = int8.module(batch_channels_last(torch.from_numpy(pixels)))
    in_float = sum(each.precision == "fp32" for each in int8.layers)
    words = f"{len(int8.layers) - in_float} layers" + (f", and {in_float} in FP32" if in_float else "")
    return sqnr_db(expected.numpy(), actual.numpy()), words


if __name__ == "__main__":
    main(sys.argv[1:])
