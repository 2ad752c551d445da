"""ScriptedModel -> VerifyReport: what the saved file answers in a fresh process, how fast, and if the gates hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cpupack import accuracy
from cpupack.artifacts import (
    Contender,
    FloatArray,
    FloatModel,
    Gate,
    QuantizedModel,
    Reference,
    Samples,
    ScriptedModel,
    VerifyReport,
)
from cpupack.errors import CalibrationError, VerificationError
from cpupack.layout import batch_channels_last
from cpupack.progress import Progress
from cpupack.quantized_engine import engine
from cpupack.recipe import Evaluation
from cpupack.runtime.inputs import model_input
from cpupack.runtime.preprocess import PreprocessSpec
from cpupack.workers.client import run_worker

BATCH_SIZE = 16
_EQUAL_SAMPLES = 16
_GOLDEN_SAMPLES = 4
_ROUNDS = 7
_ROUND_S = 0.15


def run_reference(model: FloatModel, samples: Samples, progress: Progress) -> Reference:
    """Run the FP32 model as loaded. Raises CalibrationError for labels that the model has no class for."""
    if samples.labels is not None:
        classes = model.output_shape[0] if len(model.output_shape) == 1 else 0
        largest = int(samples.labels.max())
        if largest >= classes:
            raise CalibrationError(
                f"[evaluation] {samples.origin} has class {largest}, the model's output has shape {model.output_shape}",
                hint="class folders are numbered in alphabetical order, or matched with [model] labels by name",
            )
    rows: list[FloatArray] = []
    with torch.inference_mode():
        for batch in samples.batches(BATCH_SIZE):
            rows.append(model.module(batch_channels_last(batch)).numpy())
            progress.step(sum(map(len, rows)), len(samples), "samples")
    return Reference(samples, np.concatenate(rows))


def compare(quantized: QuantizedModel, scripted: ScriptedModel, reference: Reference, directory: Path) -> Contender:
    """Reload the saved model in a fresh process and compare it with the INT8 module and with FP32.

    ``directory`` takes the exchanged files. Raises VerificationError when the saved model does not answer exactly as
    the module it was made from.
    """
    samples = reference.samples
    replayed = _replay(scripted, samples, directory)
    actual = replayed["all"]
    for name in {"all", "floats"} & replayed.keys():
        expected = _run_quantized(quantized, samples, pixel_input=scripted.pixel_input and name == "all")
        got = replayed[name][: len(expected)]
        if not np.array_equal(got, expected):
            raise VerificationError(
                f"the saved {scripted.target.engine} model differs from the quantized module by up to "
                f"{float(np.abs(got - expected).max()):.3g}",
                hint="the trace depends on its example input; make forward independent of batch size and values",
            )
    report = VerifyReport(
        data=samples.origin,
        samples=len(samples),
        equal_to_quantized=True,
        sqnr_db=accuracy.sqnr_db(reference.outputs, actual),
        cosine=accuracy.cosine(reference.outputs, actual),
        agreement=accuracy.agreement(reference.outputs, actual),
    )
    if (labels := samples.labels) is not None:
        report = dataclasses.replace(
            report,
            labelled_samples=len(labels),
            top1_fp32=accuracy.top_k(reference.outputs, labels, 1),
            top1_int8=accuracy.top_k(actual, labels, 1),
            top5_fp32=accuracy.top_k(reference.outputs, labels, 5),
            top5_int8=accuracy.top_k(actual, labels, 5),
        )
    kept = slice(0, _GOLDEN_SAMPLES)
    golden = {
        "input": samples.data[kept],
        "output": replayed["golden"],
        "output_fp32": reference.outputs[kept],
    }
    return Contender(quantized, scripted, report, golden)


def race(
    contenders: Sequence[Contender],
    float_path: Path,
    input_shape: tuple[int, ...],
    preprocess: PreprocessSpec | None,
    directory: Path,
    *,
    batch_size: int,
    threads: int,
) -> list[Contender]:
    """Time the contenders and FP32 in one fresh process, interleaved; return them with their speedup, fastest first.

    Each is given what its runner would give it: pixels where it takes them, floats normalized beforehand where not.
    The speedup is the median over the rounds of FP32's time by the contender's. Rows are ``{round, name, latency_ms}``.
    """
    entries: list[dict[str, Any]] = [
        {
            "name": "fp32",
            "path": str(float_path),
            "engine": contenders[0].scripted.target.engine,
            "pixel_input": False,
        }
    ]
    entries += [
        {
            "name": each.scripted.target.engine,
            "path": str(each.scripted.path),
            "engine": each.scripted.target.engine,
            "pixel_input": each.scripted.pixel_input,
        }
        for each in contenders
    ]
    rows_path = directory / "race-rows.json"
    spec = {
        "entries": entries,
        "input_shape": list(input_shape),
        "preprocess": preprocess.to_dict() if preprocess else None,
        "batch_size": batch_size,
        "threads": threads,
        "rounds": _ROUNDS,
        "round_s": _ROUND_S,
        "rows": str(rows_path),
    }
    run_worker("race", spec, directory / "race.json")
    rows = json.loads(rows_path.read_text(encoding="utf-8"))
    timed = [
        dataclasses.replace(
            each,
            report=dataclasses.replace(
                each.report,
                speedup=_median_ratio(rows, each.scripted.target.engine),
                speed_rows=tuple({**row, "batch_size": batch_size, "threads": threads} for row in rows),
            ),
        )
        for each in contenders
    ]
    return sorted(timed, key=lambda each: each.report.speedup or 0.0, reverse=True)


def judge(contender: Contender, evaluation: Evaluation) -> Contender:
    """Return the contender with each gate that the recipe sets and that could be measured."""
    report = contender.report
    gates = []
    if evaluation.max_drop is not None and report.top1_fp32 is not None and report.top1_int8 is not None:
        drop = report.top1_fp32 - report.top1_int8
        # 0.80 - 0.79 is a little more than 0.01 in binary; no sample count makes a step as small as 1e-9.
        gates.append(Gate("max_drop", evaluation.max_drop, drop, drop <= evaluation.max_drop + 1e-9))
    at_least = (
        ("min_top1", evaluation.min_top1, report.top1_int8),
        ("min_agreement", evaluation.min_agreement, report.agreement),
        ("min_sqnr_db", evaluation.min_sqnr_db, report.sqnr_db),
        ("min_speedup", evaluation.min_speedup, report.speedup),
    )
    gates += [
        Gate(name, bound, measured, measured >= bound)
        for name, bound, measured in at_least
        if bound is not None and measured is not None
    ]
    return dataclasses.replace(contender, report=dataclasses.replace(report, gates=tuple(gates)))


def choose(contenders: Sequence[Contender]) -> Contender:
    """Return the first contender that passes every gate; give the fastest first.

    Raises VerificationError with the numbers of all of them when none does.
    """
    for each in contenders:
        if each.report.passed:
            return each
    lines = []
    for each in contenders:
        for gate in each.report.gates:
            verdict = "ok" if gate.passed else "FAILED"
            name = f"{each.scripted.target.engine}: {gate.name}"
            lines.append(f"  {name} = {gate.bound:g}, measured {gate.measured:.4g}  {verdict}")
    raise VerificationError(
        f"[evaluation] the gates do not hold (on {contenders[0].report.data}):\n" + "\n".join(lines),
        hint="more calibration samples, another [quantize] observer, or [quantize] skip for sensitive layers",
    )


def _median_ratio(rows: list[dict[str, Any]], name: str) -> float:
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        by_round.setdefault(row["round"], {})[row["name"]] = row["latency_ms"]
    return median(times["fp32"] / times[name] for times in by_round.values())


def _run_quantized(quantized: QuantizedModel, samples: Samples, *, pixel_input: bool) -> FloatArray:
    """Run the first samples through the INT8 module here, in the batches that the replay uses."""
    data = samples.data[: min(_EQUAL_SAMPLES, BATCH_SIZE)]
    batch = torch.from_numpy(model_input(data, samples.preprocess, pixel_input=pixel_input))
    with torch.inference_mode(), engine(quantized.target.engine):
        output: FloatArray = quantized.module(batch_channels_last(batch)).numpy()
    return output


def _replay(scripted: ScriptedModel, samples: Samples, directory: Path) -> dict[str, FloatArray]:
    """Return the saved model's outputs on ``all`` samples, on the ``golden`` ones, and on the first as ``floats``.

    The golden ones are a batch of their own, because dynamic quantization measures its ranges over its batch. Floats
    are the other input of a model that takes pixels.
    """
    inputs = directory / "replay-inputs.npy"
    np.save(inputs, samples.data)
    rows = {"all": len(samples), "golden": min(_GOLDEN_SAMPLES, len(samples))}
    if scripted.pixel_input:
        rows["floats"] = min(_EQUAL_SAMPLES, len(samples))
    jobs = {
        name: {
            "outputs": str(directory / f"replay-{name}.npy"),
            "rows": count,
            "batch_size": min(count, BATCH_SIZE),
            "floats": name == "floats",
        }
        for name, count in rows.items()
    }
    spec = {
        "model": str(scripted.path),
        "engine": scripted.target.engine,
        "inputs": str(inputs),
        "jobs": list(jobs.values()),
        "preprocess": samples.preprocess.to_dict() if samples.preprocess else None,
        "pixel_input": scripted.pixel_input,
    }
    run_worker("replay", spec, directory / "replay.json")
    return {name: np.load(str(job["outputs"])) for name, job in jobs.items()}
