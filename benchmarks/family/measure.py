"""One architecture through the stages of a build: what each engine makes of it, as a row of plain data."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import CalibratedModel, CapturedModel, FloatModel, QuantizedModel, Samples
from cpupack.errors import CpupackError, QuantizationError
from cpupack.graph.names import scoped_name
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
from cpupack.stages.script import script, script_float
from family.architectures import Architecture
from family.weights import make_realistic

Row = dict[str, Any]
TORCH_ENGINES = ("onednn",)
SAMPLES = 16
_ROUNDS = 5
_ROUND_S = 0.15
_SPEED_BATCH = 4


def measure(architecture: Architecture, *, samples: int, torch_engines: tuple[str, ...], speed: bool) -> Row:
    """Return the row of ``architecture``. What one of the stages refuses is in it, with the reason."""
    started = time.monotonic()
    row: Row = {"name": architecture.name, "source": architecture.source, "size": architecture.size}
    row["convolutional"] = architecture.convolutional
    progress = SilentProgress()
    loaded = _loaded(architecture, samples)
    try:
        model = load(loaded, progress)
        # The engines are compared on the images of the calibration: a random network may answer to others with values
        # that are far larger, and then all that is measured is how many of them are clipped.
        images = _images(loaded, samples)
        make_realistic(model.module, images.tensor(slice(None)))
        captured = capture(model, images, loaded.recipe, progress)
        calibrated = calibrate(fuse(captured, loaded.recipe, progress), images, 8, progress)
    except CpupackError as error:
        return row | {"refused": str(error)}
    row["capture_s"] = round(time.monotonic() - started, 1)
    row["multiply_adds"] = sum(multiply_adds(captured).values())
    built: dict[str, QuantizedModel] = {}
    for name in ("native", *torch_engines):
        try:
            built[name] = _quantized(loaded, model, calibrated, name)
        except QuantizationError as error:
            row[f"{name}_refused"] = str(error)
            continue
        row[f"{name}_sqnr_db"] = _sqnr_db(model, built[name], images, name)
    if "native" in built:
        row |= _natively(captured, built["native"])
    if speed:
        row |= _speeds(model, built, images)
    return row | {"seconds": round(time.monotonic() - started, 1)}


def _loaded(architecture: Architecture, samples: int) -> LoadedRecipe:
    settings = {
        "schema": 1,
        "package": {"name": architecture.name.replace("_", "-")},
        "model": {
            "source": architecture.source, "kwargs": architecture.kwargs, "weights": "random",
            "input_shape": [3, architecture.size, architecture.size],
        },
        "preprocess": {
            "resize": [architecture.size, architecture.size],
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        },
        "calibration": {"source": "synthetic", "samples": samples},
    }  # fmt: skip
    return LoadedRecipe(recipe=Recipe.model_validate(settings), path=Path(__file__).parent / "recipe.toml", text="")


def _images(loaded: LoadedRecipe, samples: int) -> Samples:
    return open_source(
        "synthetic", loaded, samples=samples, seed=0, skip_corrupt=False, labelled=False, progress=SilentProgress()
    )


def _quantized(loaded: LoadedRecipe, model: FloatModel, calibrated: CalibratedModel, name: str) -> QuantizedModel:
    target = next(each for each in candidates(loaded.recipe, "x86_64", ["native", name]) if each.engine == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize(calibrated, model.module, loaded.recipe, target)


def _sqnr_db(model: FloatModel, int8: QuantizedModel, evaluation: Samples, name: str) -> float | None:
    """Return the SQNR of all outputs against FP32; None where they are equal."""
    pixels = model_input(evaluation.data, evaluation.preprocess, pixel_input=int8.pixel_input)
    with torch.inference_mode(), engine(name):
        expected = model.module(batch_channels_last(evaluation.tensor(slice(None))))
        actual = int8.module(batch_channels_last(torch.from_numpy(pixels)))
    found = sqnr_db(expected.numpy(), actual.numpy())
    return round(found, 1) if math.isfinite(found) else None


def multiply_adds(captured: CapturedModel) -> dict[str, int]:
    """Return the multiply-adds of one sample by the name of the call, of layers with weights and matrix products."""
    graph = captured.module
    assert isinstance(graph, fx.GraphModule)
    counts = {}
    for node in graph.graph.nodes:
        shape, operands = node.meta.get("shape"), [each.meta.get("shape") for each in node.all_input_nodes]
        if not shape:
            continue
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            counts[scoped_name(node)] = module.weight.numel() * math.prod(shape[2:])
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            counts[scoped_name(node)] = module.weight.numel() * math.prod(operands[0][2:])
        elif isinstance(module, nn.Linear):
            counts[scoped_name(node)] = module.weight.numel() * math.prod(shape[1:-1])
        elif node.target is torch.matmul:
            counts[scoped_name(node)] = math.prod(shape[1:]) * operands[0][-1]
        elif node.target is nn.functional.scaled_dot_product_attention:
            queries, keys, values = operands[:3]
            counts[scoped_name(node)] = math.prod(queries[1:-1]) * keys[-2] * (queries[-1] + values[-1])
    return counts


def _natively(captured: CapturedModel, int8: QuantizedModel) -> Row:
    """Return how much runs in INT8, and which calls do not, by reason."""
    counts = multiply_adds(captured)
    in_float: dict[str, list[str]] = {}
    for fact in int8.layers:
        if fact.precision == "fp32":
            kinds = in_float.setdefault(fact.reason, [])
            if fact.kind not in kinds:
                kinds.append(fact.kind)
    names = {fact.name for fact in int8.layers if fact.precision == "fp32"}
    left = sum(count for name, count in counts.items() if name in names)
    total = sum(counts.values())
    return {
        "native_share": round(1 - left / total, 4) if total else None,
        "layers": len(int8.layers),
        "fp32_layers": len([fact for fact in int8.layers if fact.precision == "fp32"]),
        "fp32": in_float,
        "pixel_input": int8.pixel_input,
    }


def _speeds(model: FloatModel, built: dict[str, QuantizedModel], evaluation: Samples) -> Row:
    """Time the engines and FP32 torch in turns, one thread; return milliseconds of a batch and the median ratios."""
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs: dict[str, Callable[[], object]] = {}
        path = script_float(model, Path(directory) / "fp32.pt", evaluation.tensor(slice(_SPEED_BATCH)))
        runs["fp32"] = _run("onednn", path, batch_channels_last(evaluation.tensor(slice(_SPEED_BATCH))))
        for name in (each for each in ("native", "onednn") if each in built):
            path = Path(directory) / f"{name}.pt"
            script(built[name], model.input_shape, path, evaluation.tensor(slice(1)))
            rows = evaluation.data[:_SPEED_BATCH]
            pixels = model_input(rows, evaluation.preprocess, pixel_input=built[name].pixel_input)
            runs[name] = _run(name, path, batch_channels_last(torch.from_numpy(pixels)))
        rounds = [{name: _milliseconds(run) for name, run in runs.items()} for _ in range(_ROUNDS)]
    row: Row = {f"{name}_ms": round(statistics.median(each[name] for each in rounds), 3) for name in runs}
    for other in (each for each in ("fp32", "onednn") if each in runs and "native" in runs):
        row[f"native_over_{other}"] = round(statistics.median(each[other] / each["native"] for each in rounds), 2)
    return row


def _run(name: str, path: Path, batch: torch.Tensor) -> Callable[[], object]:
    with engine(name):
        module = torch.jit.load(str(path)).eval()

    def run() -> object:
        with torch.inference_mode(), engine(name):
            return module(batch)

    for _ in range(3):
        run()
    return run


def _milliseconds(run: Callable[[], object]) -> float:
    calls, started = 0, time.perf_counter()
    while True:
        run()
        calls += 1
        passed = time.perf_counter() - started
        if passed > _ROUND_S:
            return passed / calls * 1e3
