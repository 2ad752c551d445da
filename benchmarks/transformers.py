"""Measure vision transformers and ConvNeXt beside FP32 torch, OpenVINO and ONNX Runtime, in one process, by turns.

``python benchmarks/transformers.py prepare NAME`` makes each engine's model once, into the folder that ``--cache``
names; ``--own`` makes ours alone. ``measure NAME`` adds a row for each setting to
``benchmarks/results/ISA/transformers.jsonl``, and ``table`` prints all rows.

Weights are random, with what trained transformers have: heavy tails, and norms of which a few channels are far larger.
Images are smooth noise. SQNR is against FP32, on images that no engine was calibrated with. Each engine has the
quantizer that its documentation recommends for transformers: NNCF with ``ModelType.TRANSFORMER`` (static, SmoothQuant),
and ONNX Runtime's ``quantize_dynamic`` per channel.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from random_weights import like_trained
from torch import nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import Samples
from cpupack.runtime.engine import library
from cpupack.runtime.host.cpu import cpu_info, detect_isa

Array = npt.NDArray[np.float32]
Call = Callable[[], Array]
RESULTS = Path(__file__).parent / "results"
NAMES = ("vit_b_16", "swin_t", "convnext_tiny")
SHAPE = (3, 224, 224)
CALIBRATION, HELD_OUT = (8, 0), (8, 9)
OURS = "cpupack"
_WARM_CALLS = 3


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "measure", "table"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cpupack-transformers")
    parser.add_argument("--own", action="store_true", help="prepare: our model alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15.0)
    options = parser.parse_args()
    if options.command == "table":
        sys.stdout.write(table())
        return
    torch.set_num_threads(options.threads)
    for name in options.names or NAMES:
        place = options.cache / name
        place.mkdir(parents=True, exist_ok=True)
        if options.command == "measure":
            measure(name, place, options)
            continue
        module = network(name)
        prepare_own(module, place)
        if not options.own:
            prepare_others(module, place)


# ---- networks and images ----


def network(name: str) -> nn.Module:
    """Return a network of torchvision with weights like trained ones."""
    from cpupack.model.vision import import_torchvision

    torch.manual_seed(0)
    module: nn.Module = getattr(import_torchvision().models, name)()
    like_trained(module)
    return module.eval()


def images(count: int, seed: int) -> Array:
    """Return smooth noise, float32 ``(count, *SHAPE)``."""
    random = np.random.default_rng(seed)
    low = torch.from_numpy(random.standard_normal((count, 3, 16, 16)).astype(np.float32))
    smooth = F.interpolate(low, SHAPE[1:], mode="bicubic").numpy()
    found: Array = np.ascontiguousarray(smooth + 0.2 * random.standard_normal((count, *SHAPE)).astype(np.float32))
    return found


# ---- engines ----


def prepare_own(module: nn.Module, place: Path) -> None:
    """Take a network through the stages of a build, with default settings, and keep the model."""
    from cpupack.artifacts import FloatModel
    from cpupack.pipeline.candidates import candidates
    from cpupack.progress import SilentProgress
    from cpupack.recipe import Recipe
    from cpupack.runtime.signature import Signature
    from cpupack.stages.calibrate import calibrate
    from cpupack.stages.capture import capture
    from cpupack.stages.fuse import fuse
    from cpupack.stages.quantize import quantize

    count, seed = CALIBRATION
    data = Samples(images(count, seed), "noise", tuple(str(row) for row in range(count)))
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "package": {"name": "transformer"},
            "model": {"source": "python:none.py:none", "weights": "factory", "input_shape": list(SHAPE)},
            "calibration": {"source": "synthetic", "samples": count},
        }
    )
    module.requires_grad_(requires_grad=False)
    with torch.inference_mode():
        outputs = tuple(module(torch.zeros(1, *SHAPE)).shape[1:])
    model = FloatModel(module, Signature.plain(SHAPE, outputs), "random", True, None, 0, 0, 0)
    progress = SilentProgress()
    calibrated = calibrate(fuse(capture(model, data, recipe, progress), recipe, progress), data, 4, progress)
    target = next(iter(candidates(recipe, "x86_64", ["native"])))
    torch.save(quantize(calibrated, module, recipe, target).module, place / "own.pt")


def prepare_others(module: nn.Module, place: Path) -> None:
    """Convert a network for OpenVINO and ONNX Runtime, and quantize it as they recommend."""
    import nncf
    import openvino
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = str(place / "f.onnx")
    torch.backends.mha.set_fastpath_enabled(False)  # ONNX has no such call
    torch.onnx.export(
        module, (torch.from_numpy(images(1, 0)),), plain, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    quantize_dynamic(plain, str(place / "q.onnx"), weight_type=QuantType.QInt8, per_channel=True)
    model = openvino.convert_model(plain)
    openvino.save_model(model, place / "f.xml", compress_to_fp16=False)
    data = images(*CALIBRATION)
    samples = nncf.Dataset(list(range(len(data))), lambda row: data[row : row + 1])
    quantized = nncf.quantize(model, samples, subset_size=len(data), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, place / "q.xml")


def _own(place: Path, batch: Array) -> Call:
    library.load()
    library.set_threads(torch.get_num_threads())
    model, x = torch.load(place / "own.pt", weights_only=False), torch.from_numpy(batch)

    def call() -> Array:
        with torch.inference_mode():
            found: Array = model(x).numpy()
        return found

    return call


def _torch(module: nn.Module, batch: Array, *, bfloat16: bool = False) -> Call:
    x = torch.from_numpy(batch)

    def call() -> Array:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found: Array = module(x).float().numpy()
        return found

    return call


def _openvino(path: Path, batch: Array, precision: str = "f32") -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([len(batch), *SHAPE])
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: np.array(request.infer(batch, share_inputs=True)[0])


def _onnxruntime(path: Path, batch: Array) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": batch})[0]


# ---- rows ----


def measure(name: str, place: Path, options: argparse.Namespace) -> None:
    """Call the engines by turns, and add a row with each one's median and its ratio to ours."""
    batch = images(options.batch, HELD_OUT[1])
    engines: dict[str, Call] = {
        OURS: _own(place, batch),
        "torch FP32": _torch(network(name), batch),
        "openvino INT8": _openvino(place / "q.xml", batch),
        "openvino FP32": _openvino(place / "f.xml", batch),
        "onnxruntime INT8, dynamic": _onnxruntime(place / "q.onnx", batch),
    }
    if detect_isa() == "amx":  # BF16 is OpenVINO's default there for what is not INT8
        engines["openvino INT8 and BF16"] = _openvino(place / "q.xml", batch, "bf16")
        engines["torch BF16"] = _torch(network(name), batch, bfloat16=True)
    results = {}
    for _ in range(_WARM_CALLS):
        results = {engine: call() for engine, call in engines.items()}
    times: dict[str, list[float]] = {engine: [] for engine in engines}
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        for engine, call in engines.items():
            began = time.perf_counter()
            call()
            times[engine].append(time.perf_counter() - began)
    row: dict[str, Any] = {
        "name": name, "threads": options.threads, "batch": options.batch, "rounds": len(times[OURS]),
        "cpu": cpu_info()[0], "date": time.strftime("%Y-%m-%d"), "engines": {},
    }  # fmt: skip
    for engine, found in times.items():
        ratios = [other / own for other, own in zip(found, times[OURS], strict=True)]
        error = sqnr_db(results["torch FP32"], results[engine])
        row["engines"][engine] = {
            "p50_ms": round(1e3 * statistics.median(found), 2),
            "times_ours": round(statistics.median(ratios), 3),
            "sqnr_db": round(error, 2) if math.isfinite(error) else None,
        }
    path = RESULTS / (detect_isa() or "baseline") / "transformers.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    sys.stdout.write(_lines(row))


def table() -> str:
    """Return all rows as a table, the newest of each setting."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*/transformers.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            newest[path.parent.name, row["name"], row["threads"], row["batch"]] = row
    head = "| network | threads, batch | engine | p50 ms | cpupack | SQNR |\n|---|---|---|---:|---:|---:|\n"
    return head + "".join(map(_lines, newest.values()))


def _lines(row: dict[str, Any]) -> str:
    """Return a row's lines of the table: the fifth column says how many times as fast cpupack is."""
    lines = []
    for engine, found in row["engines"].items():
        error = "" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
        ratio = "" if engine == OURS else f"{found['times_ours']:.2f}"
        setting = f"{row['name']} | {row['threads']}, {row['batch']}"
        lines.append(f"| {setting} | {engine} | {found['p50_ms']:.1f} | {ratio} | {error} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
