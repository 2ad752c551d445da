"""One architecture through the stages of a build: what each engine makes of it, as a row of plain data."""

from __future__ import annotations

import math
import re
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
SAMPLES = 8
CLOSE_DB = 2.0
_OTHER_SEEDS = range(1, 8)
_ROUNDS = 5
_ROUND_S = 0.1
_SPEED_BATCH = 4


def measure(architecture: Architecture, *, samples: int, torch_engines: tuple[str, ...], speed: bool) -> Row:
    """Return the row of ``architecture``. What one of the stages refuses is in it, with the reason.

    Where the native engine is more than ``CLOSE_DB`` below torch's, the row has the medians of seven other sets of
    weights: the first one was not picked at random any more.
    """
    started, began = time.monotonic(), time.process_time()
    row: Row = {"name": architecture.name, "source": architecture.source, "size": architecture.size}
    row["convolutional"] = architecture.convolutional
    loaded = _loaded(architecture, samples)
    try:
        built = _build(loaded, samples, torch_engines, seed=0)
    except CpupackError as error:
        return row | {"refused": _without_folders(str(error))}
    except Exception as error:  # noqa: BLE001 - a fault of cpupack or of the architecture: the row has it, others go on
        return row | {"crashed": _last_line(error)}
    row |= {"capture_s": round(built.capture_s, 1), "multiply_adds": sum(multiply_adds(built.captured).values())}
    row |= built.facts
    if is_behind(row):
        others = [_build(loaded, samples, torch_engines, seed=seed).facts for seed in _OTHER_SEEDS]
        for key in ("native_sqnr_db", f"{torch_engines[0]}_sqnr_db"):
            found = [each[key] for each in others if each.get(key) is not None]
            row |= {f"{key}_by_seed": found, key: round(statistics.median(found), 1)}
    if "native" in built.int8:
        row |= _natively(built.captured, built.int8["native"])
    if speed:
        try:
            row |= _speeds(built.model, built.int8, built.images)
        except Exception as error:  # noqa: BLE001 - as above
            row["speed_crashed"] = _last_line(error)
    return row | {"seconds": round(time.monotonic() - started, 1), "cpu_s": round(time.process_time() - began, 1)}


def is_behind(row: Row) -> bool:
    """Whether the native engine is more than ``CLOSE_DB`` below one of torch's engines."""
    native = row.get("native_sqnr_db")
    others = [row.get(f"{name}_sqnr_db") for name in TORCH_ENGINES]
    return native is not None and any(each is not None and native < each - CLOSE_DB for each in others)


@dataclass(frozen=True)
class _Built:
    """One architecture with one set of weights; ``facts`` has each engine's SQNR, or why there is none."""

    model: FloatModel
    captured: CapturedModel
    images: Samples
    int8: dict[str, QuantizedModel]
    facts: Row
    capture_s: float


def _build(loaded: LoadedRecipe, samples: int, torch_engines: tuple[str, ...], *, seed: int) -> _Built:
    started, progress = time.monotonic(), SilentProgress()
    model = load(loaded, progress)
    # The engines are compared on the images of the calibration: a random network may answer to others with values that
    # are far larger, and then all that is measured is how many of them are clipped.
    images = _images(loaded, samples)
    make_realistic(model.module, images.tensor(slice(None)), seed)
    captured = capture(model, images, loaded.recipe, progress)
    calibrated = calibrate(fuse(captured, loaded.recipe, progress), images, 8, progress)
    capture_s = time.monotonic() - started
    int8: dict[str, QuantizedModel] = {}
    facts: Row = {}
    for name in ("native", *torch_engines):
        try:
            found = _quantized(loaded, model, calibrated, name)
            facts[f"{name}_sqnr_db"] = _sqnr_db(model, found, images, name)
            int8[name] = found
        except QuantizationError as error:
            facts[f"{name}_refused"] = _without_folders(str(error))
        except Exception as error:  # noqa: BLE001 - as above
            facts[f"{name}_crashed"] = _last_line(error)
    return _Built(model, captured, images, int8, facts, capture_s)


def _last_line(error: Exception) -> str:
    return _without_folders("".join(traceback.format_exception_only(error)).strip())


def _without_folders(text: str) -> str:
    """Return a message without the folders of this machine: a library's files begin with its name."""
    return re.sub(r"/\S*/site-packages/", "", text)


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
    """Time the engines and FP32 torch in turns, one thread; return the milliseconds of a batch and their ratios.

    Times are those of the CPU, the least of some rounds, so that other processes on the machine change them little.
    """
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
    least = {name: min(each[name] for each in rounds) for name in runs}
    row: Row = {f"{name}_ms": round(each, 3) for name, each in least.items()}
    for other in (each for each in ("fp32", "onednn") if each in runs and "native" in runs):
        row[f"native_over_{other}"] = round(least[other] / least["native"], 2)
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
    calls, started = 0, time.thread_time()
    while True:
        run()
        calls += 1
        passed = time.thread_time() - started
        if passed > _ROUND_S:
            return passed / calls * 1e3
