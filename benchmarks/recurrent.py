"""Time recurrent networks beside torch, ONNX Runtime and OpenVINO: ``python benchmarks/recurrent.py [NAME...]``.

One process runs each engine in turn, round after round, with one thread. ONNX Runtime is measured with its dynamic
quantization (per channel, which has LSTMs in INT8 and leaves GRUs in FP32) and in FP32; OpenVINO with NNCF's
quantization and without (as it comes: with AMX it computes in BF16); torch in FP32. ``voice`` is the trained speaker
encoder of Resemblyzer (pip install --no-deps resemblyzer) from its mel spectrogram on; the others have random weights.
``--prepare`` writes what takes long (exports, programs) to ``--work`` and measures nothing. Results go to
benchmarks/results/ISA/recurrent.json, and with ``--table`` the page benchmarks/recurrent.md is written from them. With
``CPUPACK_ISA=vnni ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`` cpupack and torch use no more than that on a CPU with AMX,
and results go to recurrent-vnni.json. ONNX Runtime cannot be told so, and OpenVINO is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.runtime.host.cpu import detect_isa

HERE = Path(__file__).parent
VOICE = HERE.parent / "recipes" / "voice"
sys.path[:0] = [str(HERE.parent / "tests"), str(VOICE)]
RESULTS, TABLE = HERE / "results", HERE / "recurrent.md"
ROUNDS, ROUND_S = 9, 0.05
_HEAD = """\
# Recurrent networks

<!-- Written by `python benchmarks/recurrent.py --table`. -->

Milliseconds for a call of one thread (the median of interleaved rounds), and the SQNR of 16 samples against FP32 in dB,
in calls of as many. In brackets: how many times as fast cpupack is. ONNX Runtime quantizes LSTMs dynamically; GRUs it
runs in FP32 (only the linear layer after them is INT8), so its SQNR there is that of FP32 but for one layer. OpenVINO
is measured after NNCF's quantization and as it comes, in BF16 with AMX and else in FP32. `voice` is trained
(Resemblyzer's speaker encoder, on mel spectrograms of computed voices); the others have random weights. With AMX other
programs ran too, so times are too long there; the ratios are those of interleaved rounds. The rows with AMX are from
before a layer could have 16 bits for its inputs alone: `voice` and the GRUs had them for their hidden values too.

"amx, vnni at most" is a CPU with AMX where cpupack and oneDNN used VNNI at most (`CPUPACK_ISA=vnni`,
`ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`). ONNX Runtime cannot be told so. OpenVINO is left out there: limited in this way
it took 37 to 147 times as long as cpupack, which is not its best.
"""


class Classifier(nn.Module):
    """A recurrent layer and a linear layer on its last step."""

    def __init__(self, kind: Any, inputs: int, units: int, layers: int, *, both: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.r = kind(inputs, units, layers, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(units * (2 if both else 1), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.fc(self.r(x)[0][:, -1])
        return scores


class FromMels(nn.Module):
    """The speaker encoder after its spectrogram."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.lstm, self.linear = whole.lstm, whole.linear

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        raw = torch.relu(self.linear(self.lstm(mels)[1][0][-1]))
        vectors: torch.Tensor = raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True)
        return vectors


def voice() -> tuple[nn.Module, torch.Tensor]:
    """Return the trained network and mel spectrograms of 16 voices."""
    found = runpy.run_path(str(VOICE / "data.py"))
    whole, speech = found["speaker_encoder"](), found["speech"]
    sounds = torch.from_numpy(np.stack([speech(np.random.default_rng(2000 + i)) for i in range(16)]))
    with torch.inference_mode():
        cosines, sines = whole.spectrum(sounds[:, None]).transpose(1, 2).chunk(2, 2)
        mels = whole.mel(cosines * cosines + sines * sines)
    return FromMels(whole).eval(), mels.clone()


def with_noise(module: nn.Module, steps: int, inputs: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a network and 16 random sequences."""
    return module.eval(), torch.randn(16, steps, inputs, generator=torch.Generator().manual_seed(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "voice": voice,
    "lstm 64 > 128 x 2, both ways": lambda: with_noise(Classifier(nn.LSTM, 64, 128, 2, both=True), 50, 64),
    "lstm 128 > 512": lambda: with_noise(Classifier(nn.LSTM, 128, 512, 1), 50, 128),
    "gru 64 > 128": lambda: with_noise(Classifier(nn.GRU, 64, 128, 1), 100, 64),
    "gru 40 > 256 x 2": lambda: with_noise(Classifier(nn.GRU, 40, 256, 2), 100, 40),
}
BATCHES = (1, 8)
OPENVINO = ("openvino INT8", "openvino")
"""Its names in rows: after NNCF's quantization, and as it comes."""


def prepare(name: str, work: Path) -> None:
    """Write a network as ONNX, as ONNX Runtime's dynamic INT8, and as this engine's model."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from cpupack.artifacts import Samples
    from helpers.tiny_models import quantized, recipe

    module, x = NETWORKS[name]()
    fp32, int8, own, nncf_int8 = files(name, work)
    torch.onnx.export(
        module, (x[:2],), str(fp32), dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17,
    )  # fmt: skip
    quantize_dynamic(fp32, int8, weight_type=QuantType.QInt8, per_channel=True)
    shape = tuple(x.shape[1:])
    calibration = Samples(x.numpy(), "inputs", tuple(f"inputs[{i}]" for i in range(len(x))))
    _, made = quantized(module, "native", spec=recipe(shape, quantize={"observer": "minmax"}), data=calibration)
    torch.save(made.module, own)
    _quantize_for_openvino(fp32, x, nncf_int8)


def _quantize_for_openvino(fp32: Path, x: torch.Tensor, to: Path) -> None:
    import nncf
    import openvino as ov

    samples = nncf.Dataset([x[i : i + 1].numpy() for i in range(len(x))])
    ov.save_model(nncf.quantize(ov.Core().read_model(fp32), samples, subset_size=len(x)), to)


def files(name: str, work: Path) -> tuple[Path, Path, Path, Path]:
    """Return the paths of a network's FP32 ONNX file, its dynamic INT8 one, the native model and NNCF's INT8 one."""
    stem = "".join(each if each.isalnum() else "_" for each in name)
    return work / f"{stem}.onnx", work / f"{stem}.int8.onnx", work / f"{stem}.pt", work / f"{stem}.xml"


def _openvino(path: Path, shape: list[int]) -> Callable[[Any], Any]:
    """Return a call of OpenVINO for inputs of one shape, on one thread."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    model.reshape(shape)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda array: request.infer(array, share_inputs=True, share_outputs=True)[0]


def measured(name: str, work: Path) -> list[dict[str, Any]]:
    """Return a row for each batch size: milliseconds of each engine and SQNR."""
    import onnxruntime as ort

    from cpupack.accuracy import sqnr_db
    from cpupack.runtime.engine import library

    library.load()
    library.set_threads(1)
    torch.set_num_threads(1)
    module, inputs = NETWORKS[name]()
    fp32, int8, own, nncf_int8 = files(name, work)
    native = torch.load(own, weights_only=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = [ort.InferenceSession(str(each), options, providers=["CPUExecutionProvider"]) for each in (int8, fp32)]
    rows = []
    for batch in BATCHES:
        x = inputs[:batch].contiguous()
        array = x.numpy()
        calls: dict[str, Callable[[], Any]] = {
            "cpupack": partial(native, x),
            "torch": partial(module, x),
            "onnxruntime dynamic": partial(_first_output, sessions[0], array),
            "onnxruntime FP32": partial(_first_output, sessions[1], array),
        }
        models = zip(OPENVINO, (nncf_int8, fp32), strict=True)
        limited = "CPUPACK_ISA" in os.environ  # OpenVINO is far from its best then: the page says why
        peers = {} if limited else {each: _openvino(path, list(x.shape)) for each, path in models}
        calls |= {each: partial(call, array) for each, call in peers.items()}
        with torch.inference_mode():
            times = _interleaved(calls)
            reference = module(inputs).numpy()
            ways: dict[str, Callable[[torch.Tensor], Any]] = {
                "cpupack": native,
                "onnxruntime dynamic": lambda part: _first_output(sessions[0], part.numpy()),
                "onnxruntime FP32": lambda part: _first_output(sessions[1], part.numpy()),
            } | {each: partial(_copied, call) for each, call in peers.items()}
            closeness = {
                name: float(sqnr_db(reference, np.concatenate([np.asarray(way(part)) for part in inputs.split(batch)])))
                for name, way in ways.items()
            }
        rows.append({"network": name, "batch": batch, "ms": times, "sqnr_db": closeness})
    return rows


def _copied(call: Callable[[Any], Any], part: torch.Tensor) -> Any:
    return np.array(call(part.numpy()))  # the next call writes over what this one gave


def _first_output(session: Any, array: np.ndarray[Any, Any]) -> Any:
    return session.run(None, {"x": array})[0]


def _interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    counts, times = {}, {name: list[float]() for name in calls}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        counts[name] = max(1, int(ROUND_S / (time.perf_counter() - begin)))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(counts[name]):
                call()
            times[name].append((time.perf_counter() - begin) / counts[name] * 1e3)
    return times


def table() -> str:
    """Return the page of all results."""
    names = ("torch", "onnxruntime dynamic", "onnxruntime FP32", *OPENVINO)
    lines = [
        _HEAD,
        "| network | host | batch | cpupack ms | torch | ONNX Runtime dynamic | ONNX Runtime FP32 "
        "| OpenVINO INT8 | OpenVINO | SQNR: cpupack | ONNX Runtime | OpenVINO INT8 | OpenVINO |",
        f"|---|---|{'---:|' * 11}",
    ]
    for path in sorted(RESULTS.glob("*/recurrent*.json")):
        limit = path.stem.partition("-")[2]
        host = f"{path.parent.name}, {limit} at most" if limit else path.parent.name
        for row in json.loads(path.read_text("utf-8")):
            ms = {name: float(np.median(times)) for name, times in row["ms"].items()}
            times = [f"{ms[each]:.2f} ({ms[each] / ms['cpupack']:.2f}x)" if each in ms else "" for each in names]
            found = [row["sqnr_db"].get(each) for each in ("cpupack", "onnxruntime dynamic", *OPENVINO)]
            close = ["" if each is None else f"{each:.1f}" for each in found]
            cells = [row["network"], host, str(row["batch"]), f"{ms['cpupack']:.2f}", *times, *close]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare, measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(NETWORKS)}")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "recurrent", metavar="DIR")
    parser.add_argument("--prepare", action="store_true", help="write the networks, and measure nothing")
    parser.add_argument("--table", action="store_true", help="write the page from the results that are there")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
    if arguments.table:
        TABLE.write_text(table(), encoding="utf-8")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.names or NETWORKS:
        if not files(name, arguments.work)[-1].exists():
            prepare(name, arguments.work)
        if not arguments.prepare:
            rows += measured(name, arguments.work)
    if rows:
        limit = os.environ.get("CPUPACK_ISA")
        path = RESULTS / str(detect_isa()) / (f"recurrent-{limit}.json" if limit else "recurrent.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
