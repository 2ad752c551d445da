"""A manifest as text: the rows that a wheel's README and ``cpupack inspect`` both show."""

from __future__ import annotations

from typing import Any

from cpupack.runtime.files import MANIFEST_NAME
from cpupack.runtime.manifest import Manifest, parse_manifest
from cpupack.runtime.open_sizes import open_sizes_of
from cpupack.runtime.signature import signature_of
from cpupack.runtime.tasks.decode import FASTER_RCNN
from cpupack.targets import ENGINES


def fact_rows(manifest: Manifest, *, measured: bool = True) -> list[tuple[str, str]]:
    """Return (label, value) rows: source, weights, sizes, operators, target, accuracy and plan.

    Without ``measured``, what another build of the same recipe would measure differently is left out.
    """
    if not measured:
        manifest = parse_manifest(manifest.to_json(), MANIFEST_NAME)
    model, target = manifest.model, manifest.target
    rows = [
        ("Source", model["source"]),
        ("Weights", "RANDOM, not trained" if manifest.random_weights else model["weights"]),
        ("Licence of the weights", model.get("license") or "not stated"),
        *_ends(manifest),
        ("Size", _sizes(model["fp32_bytes"], model["int8_bytes"])),
        ("Parameters, MACs", f"{scaled(model['parameters'])}, {scaled(model['macs'])}"),
        ("Operators", f"{model['int8_operators']} INT8, {model['fp32_operators']} FP32"),
        ("Quantization", _quantization(manifest)),
        ("Calibrated on", _calibration(manifest.calibration)),
        ("Engine", f"{engine_text(target)}, {target['activation_bits']}-bit activations"),
        ("CPU required", target["cpu"] + (f" with {target['isa']} or better" if target["isa"] else "")),
        ("Torch required", manifest.torch_text),
    ]
    rows += accuracy_rows(manifest.accuracy)
    if measured:
        if manifest.accuracy["speedup"] is None:
            reason = untimed_reason((manifest.task or {}).get("decoder"), target["cpu"])
            rows.append(("Speed", f"not measured: {reason}; `{manifest.name} bench` measures the wheel by itself"))
        rows.append(("Plan", plan_text(manifest)))
    return [(label, " ".join(value.split())) for label, value in rows]


def untimed_reason(decoder: str | None, cpu: str) -> str:
    """Return why a build did not time its model against FP32. ``decoder`` is that of the task."""
    if decoder == FASTER_RCNN:
        return "the step between the two stages of the detector is Python in FP32, so a ratio would say nothing"
    return f"the build host is no {cpu} CPU"


def accuracy_rows(accuracy: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows about accuracy and speed. Anything that was not measured has no row."""
    compared = f"on {accuracy['samples']} samples ({accuracy['data']})"
    sqnr = accuracy["sqnr_db"]
    outputs = accuracy.get("outputs") or []
    worst = f" in the worst, {accuracy['worst_output']}," if len(outputs) > 1 else ""
    rows = [("Outputs against FP32", f"SQNR {_db(sqnr)}{worst} {compared}")]
    if len(outputs) > 1:
        rows += [
            (f"Output {each['name']}", f"SQNR {_db(each['sqnr_db'])}, cosine {each['cosine']:.4f}") for each in outputs
        ]
    if (meaning := accuracy.get("meaning")) is not None:
        rows.append(
            ("Cosine to FP32", f"mean {meaning['mean_cosine']:.4f}, worst {meaning['worst_cosine']:.4f} {compared}")
        )
        if meaning["spearman"] is not None:
            near = f"recall@{meaning['neighbours']} {meaning['recall']:.3f}"
            rows.append(("Order of similarities", f"Spearman {meaning['spearman']:.4f}, {near} {compared}"))
    if accuracy["agreement"] is not None:
        of = " of the pixels" if accuracy.get("likeness") is not None else ""
        rows.append(("Same class as FP32", f"{accuracy['agreement']:.2%}{of} {compared}"))
    if accuracy.get("likeness") is not None:
        rows.append(("Results like FP32's", f"{accuracy['likeness_name']} {accuracy['likeness']:.4f} {compared}"))
    if accuracy.get("decisions") is not None:
        rows.append(("Same decisions as FP32", f"{accuracy['decisions']:.2%} {compared}"))
    for key, label in (("top1", "Top-1"), ("top5", "Top-5")):
        fp32, int8 = accuracy[f"{key}_fp32"], accuracy[f"{key}_int8"]
        if fp32 is not None and int8 is not None:
            labelled = accuracy["labelled_samples"]
            interval = accuracy.get(f"{key}_int8_ci95")
            span = f" (95 % interval {interval[0] * 100:.2f} to {interval[1] * 100:.2f})" if interval else ""
            rows.append((label, f"INT8 {int8:.2%}{span}, FP32 {fp32:.2%} on {labelled} labelled samples"))
    if accuracy.get("metric") is not None:
        measured = f"INT8 {accuracy['metric_int8']:.6g}, FP32 {accuracy['metric_fp32']:.6g}"
        rows.append(("Metric", f"{measured} ({accuracy['metric']}, {accuracy['metric_goal']})"))
    for gate in accuracy["gates"]:
        verdict = "held" if gate["passed"] else "FAILED"
        of = f" for {gate['output']}" if gate.get("output") else ""
        measured = "infinite" if gate["measured"] is None else f"{gate['measured']:.4g}"  # JSON has no infinity
        rows.append((f"Gate {gate['name']}", f"{measured}{of}, bound {gate['bound']:g}: {verdict}"))
    if accuracy["speedup"] is not None:
        rows.append(("Speed", f"{accuracy['speedup']:.2f} times FP32 on the build host, same batch and threads"))
    return rows


def _db(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.1f} dB"


def _ends(manifest: Manifest) -> list[tuple[str, str]]:
    """Return the rows about inputs and outputs, by name where there are several."""
    signature = signature_of(manifest)
    if not signature.is_plain:
        return [("Inputs", signature.inputs_text()), ("Outputs", signature.outputs_text())]
    shape = " x ".join(str(size) for size in manifest.input_shape)
    if (sizes := open_sizes_of(manifest)) is not None:
        shape = f"{manifest.input_shape[0]} channels, {sizes.text()}"
    return [("Input", f"{shape}, " + ("images" if manifest.preprocess else "float32 arrays"))]


def plan_text(manifest: Manifest) -> str:
    """Return the tuned setting as text, or the reason why there is none."""
    plan = manifest.plan
    if not plan.tuned:
        return f"chosen on the host ({plan.reason})" if plan.reason else "chosen on the host"
    text = f"{plan.instances} x {plan.threads} threads, batch {plan.batch_size}, tuned for {plan.objective}"
    row = manifest.bench["build"]
    if row is None:
        return text
    return f"{text}: {row['throughput_per_s']:.1f} samples/s on {manifest.build['host']['cpu']}"


def engine_text(target: dict[str, Any]) -> str:
    """Return the engine's name. If the wheel contains its kernels, say so."""
    engine = ENGINES.get(target["engine"])  # an older wheel may name an engine that no longer exists
    return f"{target['engine']} (kernels in the wheel)" if engine and engine.libraries else str(target["engine"])


def scaled(count: int) -> str:
    """Return a count with an SI prefix: ``25.6 M``."""
    for limit, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {prefix}"
    return str(count)


def megabytes(size: int) -> str:
    """Return a size in bytes as people read it, in decimal units: ``25.6 MB``."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1e3:.1f} kB" if size < 10**6 else f"{size / 1e6:.1f} MB"


def _sizes(fp32_bytes: int, int8_bytes: int) -> str:
    text = f"INT8 {megabytes(int8_bytes)}, FP32 {megabytes(fp32_bytes)}"
    # A very small INT8 model is larger than FP32: the archive and its code outweigh a few hundred weights.
    return f"{text} ({fp32_bytes / int8_bytes:.1f} times smaller)" if int8_bytes < fp32_bytes else text


def _quantization(manifest: Manifest) -> str:
    quantize = manifest.quantize
    if quantize["mode"] == "dynamic":
        return "dynamic"
    return f"{quantize['mode']}, {quantize['observer']} observer"


def _calibration(calibration: dict[str, Any] | None) -> str:
    if calibration is None:
        return "nothing (no calibration needed)"
    text = f"{calibration['samples']} samples of {calibration['origin']}"
    return f"{text} data, good only to measure speed" if calibration["synthetic"] else text
