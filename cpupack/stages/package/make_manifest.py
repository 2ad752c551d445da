"""Makes the manifest: the description of a wheel inside the wheel."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import torch
from packaging.licenses import canonicalize_license_expression

import cpupack
from cpupack.artifacts import FloatModel, StagedProject, TunePlan
from cpupack.runtime.files import BUILD_NAME, LABELS_NAME, MANIFEST_NAME, RECIPE_NAME, RECOVERED_NAME, ROOT_NAME
from cpupack.runtime.manifest import FileEntry, Manifest, PlanEntry, hash_file
from cpupack.runtime.plain import to_plain
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.stages.package.contents import WheelContents
from cpupack.stages.package.requirements import torch_range
from cpupack.templates import to_toml


def make_manifest(contents: WheelContents, staged: StagedProject) -> Manifest:
    """Return the manifest of a project without the list of files, because not all are written yet."""
    recipe, model, target, scripted = (
        contents.loaded.recipe,
        contents.model,
        contents.target,
        contents.scripted,
    )
    report = dataclasses.asdict(contents.report)
    del report["speed_rows"]  # the raw measurements are in build.json
    description = recipe.package.description or f"{recipe.model.source} quantized to INT8 for {target.cpu} CPUs."
    calibration = contents.calibration
    return Manifest(
        name=staged.distribution,
        import_name=staged.import_name,
        version=staged.version,
        random_weights=model.random_weights,
        model={
            "description": " ".join(description.split()),
            "license": recipe.package.license and canonicalize_license_expression(recipe.package.license),
            "authors": list(recipe.package.authors),
            "urls": dict(recipe.package.urls),
            "source": recipe.model.source,
            "weights": model.weights_origin,
            "weights_sha256": model.weights_sha256,
            "input_shape": list(model.input_shape),
            "output_shape": list(model.output_shape),
            "parameters": model.parameters,
            "macs": model.macs,
            "fp32_bytes": model.fp32_bytes,
            "int8_bytes": scripted.size_bytes,
            "pixel_input": scripted.pixel_input,
            "int8_operators": scripted.int8_operators,
            "fp32_operators": scripted.fp32_operators,
            "operators": dict(scripted.operators),
        },
        target=dataclasses.asdict(target),
        preprocess=_preprocess(model),
        inputs=[{**each.to_dict(), "preprocess": _shipped(each, model)} for each in model.signature.inputs],
        outputs=[each.to_dict() for each in model.signature.outputs],
        labels=LABELS_NAME if model.labels else None,
        quantize={
            **recipe.quantize.model_dump(),
            "style": contents.fused.style,
            "fused_chains": len(contents.fused.chains),
            "fusion_max_abs_diff": contents.fused.max_abs_diff,
            "notes": [*_recovered(contents), *contents.notes],
        },
        calibration=None
        if calibration is None
        else {
            "origin": calibration.origin,
            "samples": len(calibration),
            "skipped": len(calibration.skipped),
            "synthetic": calibration.synthetic,
        },
        accuracy=to_plain(report),
        plan=PlanEntry(
            tuned=False,
            objective=recipe.tune.objective,
            threads=None,
            instances=None,
            batch_size=None,
            max_latency_ms=recipe.tune.max_latency_ms,
            reason="not tuned at the build",
        ),
        bench={"duration_s": recipe.bench.duration_s, "build": None},
        torch={
            "version": torch.__version__,
            "requires": torch_range(torch.__version__),
            "reason": scripted.torch_reason,
        },
        build={
            "cpupack": cpupack.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        files={},
        task=(model.task or TaskSpec.of(model.kind)).to_dict(),
        tokenizer=None if model.tokenizer is None else model.tokenizer.spec.to_dict(),
        sizes=None if model.sizes is None else model.sizes.to_dict(),
    )


def _preprocess(model: FloatModel) -> dict[str, Any] | None:
    return None if model.signature.takes_rows else _shipped(model.signature.inputs[0], model)


def _shipped(spec: TensorSpec, model: FloatModel) -> dict[str, Any] | None:
    """Return what the runner does to an image. Only the build cuts images of any size to the typical one."""
    if spec.preprocess is None:
        return None
    opened = model.sizes is not None and (model.sizes.is_image or bool(spec.names))
    return (dataclasses.replace(spec.preprocess, crop=None) if opened else spec.preprocess).to_dict()


def _recovered(contents: WheelContents) -> list[str]:
    """Return a note with the settings that differ from ``recipe.toml``, empty without a recovery."""
    recovery = contents.recovery
    if recovery is None:
        return []
    settings = recovery.trials[recovery.winner].settings
    words = ", ".join(f"{key} = {to_toml(value)}" for key, value in settings.items())
    return [f"recovery set {words}; {RECOVERED_NAME} has the table that replaces [quantize] in {RECIPE_NAME}"]


def chosen_row(plan: TunePlan) -> dict[str, Any] | None:
    """Return the median measurement of the chosen setting, None without tuning."""
    keys = ("threads", "instances", "batch_size")
    chosen = tuple(getattr(plan, key) for key in keys)
    rows = [row for row in plan.rows if tuple(row.get(key) for key in keys) == chosen]
    rows.sort(key=lambda row: float(row["throughput_per_s"]))
    return dict(to_plain(rows[len(rows) // 2])) if plan.tuned and rows else None


def file_entries(package_dir: Path) -> dict[str, FileEntry]:
    """Return hash and size of every file in the wheel, except the manifest, its hash and what was measured.

    Tuning imports the package, so there may be bytecode files. hatchling leaves them out, and so does this function.
    """
    return {
        path.relative_to(package_dir).as_posix(): FileEntry(hash_file(path), path.stat().st_size)
        for path in sorted(package_dir.rglob("*"))
        if path.is_file()
        and path.name not in {MANIFEST_NAME, ROOT_NAME, BUILD_NAME}
        and "__pycache__" not in path.parts
    }
