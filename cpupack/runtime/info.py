"""``info``: what is in the package, what it needs, this host, and the plan for it. Imports no torch."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

from .engine import library
from .engine.contract import check_cpu, check_torch, model_path
from .engine.program import is_program
from .errors import HostError
from .host import probe as host_probe
from .host.limits import why_no_thread
from .manifest import Manifest, read_manifest
from .open_sizes import OpenSizes
from .plan import decide as planning
from .signature import Signature
from .threads import may_start

_LABEL_WIDTH = 13
_TEXT_WIDTH = 100
_ORDER = (
    "explicit arguments, OMP_NUM_THREADS (else MKL_NUM_THREADS), this host's tuned table, the build's tuned plan on an "
    "equal CPU, the usable cores; the first that has a number decides"
)


def collect(package_dir: Path) -> dict[str, Any]:
    """Return the manifest, the plan with its reasons, the host, and its problems with the package.

    Raises IntegrityError when the manifest is missing or damaged.
    """
    manifest = read_manifest(package_dir)
    here = host_probe.describe(engine=manifest.target["engine"])
    kernels = library.describe() if manifest.target["engine"] == library.ENGINE else None
    needs_torch = not is_program(model_path(package_dir, manifest), manifest.target["engine"])
    plan = planning.decide(manifest)
    problems = _problems(manifest, kernels) + (_torch_problems(manifest, here["torch"]) if needs_torch else [])
    problems += _thread_problems(plan.threads * plan.instances)
    return {
        "manifest": dataclasses.asdict(manifest),
        "plan": dataclasses.asdict(plan),
        "host": here,
        "kernels": kernels,
        "images": _images(manifest),
        "torch": {"needed": needs_torch, "text": manifest.torch_text},
        "runs_here": not problems,
        "problems": problems,
    }


def format_info(facts: dict[str, Any]) -> str:
    """Return what ``collect`` found as lines for a terminal."""
    manifest, plan, here = facts["manifest"], facts["plan"], facts["host"]
    model, target = manifest["model"], manifest["target"]
    isa = f" with {target['isa']} or better" if target["isa"] else ""
    lines = [f"{manifest['name']} {manifest['version']}"]
    if model.get("description"):
        lines += _wrapped(model["description"], indent=0)
    if manifest["random_weights"]:
        lines.append("RANDOM WEIGHTS: its speed is real, its predictions mean nothing")
    lines += _section(
        "Model",
        {
            "source": f"{model.get('source')}, weights: {model.get('weights')}",
            **_ends(manifest),
            "size": _sizes(model.get("fp32_bytes"), model.get("int8_bytes")),
            "accuracy": _accuracy(manifest["accuracy"]),
            "calibration": _calibration(manifest["calibration"]),
            "build bench": _build_bench(manifest["bench"].get("build")),
        },
    )
    lines += _section(
        "Needs",
        {
            "cpu": target["cpu"] + isa,
            "engine": f"{target['engine']}, {target.get('activation_bits')}-bit activations",
            "torch": facts["torch"]["text"],
        },
    )
    lines += _section(
        "This host",
        {
            "cpu": f"{here['cpu']} ({here['isa'] or here['machine']})",
            "board": here["board"],
            "cores": f"{here['cores_usable']} usable: {here['cores_usable_reason']}",
            "torch": (here["torch"] or "not installed") if facts["torch"]["needed"] else None,
            "kernels": _kernels(facts["kernels"]),
            "allocator": here["allocator"],
            "images": _decoding(facts["images"]),
        },
    )
    lines += _section(
        "Plan here",
        {
            **{
                key.replace("_", " "): f"{plan[key]} - {plan['reasons'][key]}"
                for key in ("threads", "instances", "batch_size")
            },
            "cpus": _cpus(plan),
            "order": _ORDER,
        },
    )
    lines.append("")
    if not facts["problems"]:
        untried = " torch was found, and not loaded to see." if facts["torch"]["needed"] else ""
        return "\n".join([*lines, f"This host can run it.{untried}"])
    lines.append("This host CANNOT run it:")
    for problem in facts["problems"]:
        lines += _wrapped(f"- {problem}", indent=2)
    return "\n".join(lines)


def _problems(manifest: Manifest, kernels: dict[str, Any] | None) -> list[str]:
    """Return why this host cannot run the package."""
    problems = []
    try:
        check_cpu(manifest)
        if kernels is not None and kernels["problem"] is not None:
            problems.append(kernels["problem"])
    except HostError as error:
        problems.append(str(error))
    return problems


def _thread_problems(count: int) -> list[str]:
    """Return why as many threads as the plan has cannot run beside this one. They are started to see."""
    return [] if may_start(count) else [why_no_thread()]


def _torch_problems(manifest: Manifest, installed: str | None) -> list[str]:
    """Return what is wrong with the torch that is installed, without importing it."""
    if installed is None:
        return [f'torch is not installed; run: pip install "torch{manifest.torch["requires"]}"']
    try:
        check_torch(manifest, installed)
    except HostError as error:
        return [str(error)]
    return []


def _images(manifest: Manifest) -> dict[str, Any] | None:
    from .images import fast
    from .images.preprocess import PreprocessSpec

    if manifest.preprocess is None:
        return None
    return dataclasses.asdict(fast.describe(PreprocessSpec.from_dict(manifest.preprocess)))


def _decoding(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    return f"JPEG by {found['jpeg']} ({found['jpeg_reason']}), resized by {found['resize']} ({found['resize_reason']})"


def _kernels(kernels: dict[str, Any] | None) -> str | None:
    return None if kernels is None else f"native, {kernels['isa'] or 'not usable'}"


def _section(title: str, rows: dict[str, str | None]) -> list[str]:
    lines = ["", title]
    for name, text in rows.items():
        if text is not None:
            first, *rest = _wrapped(text, indent=2 + _LABEL_WIDTH)
            lines += [f"  {name:<{_LABEL_WIDTH}}{first.lstrip()}", *rest]
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    """Break long text at ``_TEXT_WIDTH``; paths and URLs stay whole, so that they can be copied."""
    margin = " " * indent
    return textwrap.wrap(
        text,
        _TEXT_WIDTH,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [margin]


def _cpus(plan: dict[str, Any]) -> str:
    reason = str(plan["reasons"]["cpus"])
    if plan["cpus"] is None:
        return reason
    groups: dict[tuple[int, ...], list[str]] = {}
    for number, cpus in enumerate(plan["cpus"]):
        groups.setdefault(tuple(cpus), []).append(str(number))
    pinned = [
        f"instance{'s' * (len(numbers) > 1)} {', '.join(numbers)} on CPUs {_ranges(cpus)}"
        for cpus, numbers in groups.items()
    ]
    return "; ".join(pinned) + f" - {reason}"


def _ranges(cpus: tuple[int, ...]) -> str:
    """Return CPUs as the kernel lists them: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _ends(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the rows about inputs and outputs, by name where there are several."""
    if manifest["inputs"] and manifest["outputs"]:
        signature = Signature.from_dicts(manifest["inputs"], manifest["outputs"])
        if manifest.get("sizes") is not None:
            signature = dataclasses.replace(signature, sizes=OpenSizes.from_dict(manifest["sizes"]))
        if not signature.is_plain:
            return {"inputs": signature.inputs_text(), "outputs": signature.outputs_text()}
    return {"input": _input(manifest), "output": _output(manifest)}


def _input(manifest: dict[str, Any]) -> str:
    shape = " x ".join(map(str, manifest["model"]["input_shape"]))
    if manifest.get("sizes") is not None:
        kind = "float32 array" if manifest["preprocess"] is None else "image"
        text = OpenSizes.from_dict(manifest["sizes"]).text()
        return f"{kind}, {manifest['model']['input_shape'][0]} channels, {text} (tuned and measured at {shape})"
    if manifest["preprocess"] is None:
        return f"float32 array, {shape}"
    return f"image, preprocessed to {shape}"


def _output(manifest: dict[str, Any]) -> str:
    shape = manifest["model"]["output_shape"]
    if len(shape) == 1:
        return f"{shape[0]} classes{', named' if manifest['labels'] else ''}"
    text = " x ".join(map(str, shape))
    return text if manifest.get("sizes") is None else f"{text}, of an image of that size"


def _sizes(fp32_bytes: int | None, int8_bytes: int | None) -> str | None:
    if not fp32_bytes or not int8_bytes:
        return None
    # In a model of a few kilobytes the saved code is most of the file, and the INT8 file may be the larger one.
    smaller = f", {fp32_bytes / int8_bytes:.1f} x smaller" if fp32_bytes > int8_bytes else ""
    return f"{_bytes(int8_bytes)} INT8 (FP32 {_bytes(fp32_bytes)}{smaller})"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _accuracy(accuracy: dict[str, Any]) -> str | None:
    parts = []
    if accuracy.get("top1_int8") is not None and accuracy.get("top1_fp32") is not None:
        parts.append(f"top-1 {accuracy['top1_int8']:.2%} (FP32 {accuracy['top1_fp32']:.2%})")
    if accuracy.get("sqnr_db") is not None:
        parts.append(f"SQNR {accuracy['sqnr_db']:.1f} dB against FP32")
    if accuracy.get("agreement") is not None:
        pixels = " of the pixels" if accuracy.get("likeness") is not None else ""
        parts.append(f"same class as FP32 for {accuracy['agreement']:.1%}{pixels}")
    on = f", on {accuracy['samples']} samples of {accuracy['data']}" if accuracy.get("data") else ""
    return ", ".join(parts) + on if parts else None


def _calibration(calibration: dict[str, Any] | None) -> str | None:
    if calibration is None:
        return None
    synthetic = " (SYNTHETIC: for speed work only)" if calibration.get("synthetic") else ""
    return f"{calibration.get('samples')} samples of {calibration.get('origin')}{synthetic}"


def _build_bench(row: dict[str, Any] | None) -> str | None:
    if not row:
        return None
    return (
        f"{row['throughput_per_s']:,.1f} samples/s with {row['instances']} x {row['threads']} threads, "
        f"batch {row['batch_size']}, p99 {row['latency_ms']['p99']:.1f} ms"
    )
