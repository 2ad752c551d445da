"""Package: from the verified model to an ordinary hatchling project, and from that to a wheel."""

from __future__ import annotations

import dataclasses
import json
import keyword
import platform
import shutil
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli
import torch
from packaging.version import Version

import cpupack
import cpupack.runtime
from cpupack.artifacts import (
    FloatModel,
    FusedModel,
    Recovery,
    Samples,
    ScriptedModel,
    StagedProject,
    TunePlan,
    VerifyReport,
)
from cpupack.errors import PackagingError
from cpupack.recipe import LoadedRecipe
from cpupack.runtime.files import (
    BUILD_NAME,
    GOLDEN_NAME,
    LABELS_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    RECIPE_NAME,
    RECOVERED_NAME,
    TUNE_NAME,
    VERIFY_NAME,
)
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import FileEntry, Manifest, PlanEntry, hash_file, read_manifest
from cpupack.runtime.plain import to_plain
from cpupack.targets import Target
from cpupack.templates import render, to_toml
from cpupack.wheel import sbom
from cpupack.wheel.build import build_wheel, check_out, publish
from cpupack.wheel.facts import fact_rows

__all__ = ["WheelContents", "build_wheel", "check_out", "finish", "publish", "requirements", "stage_project"]

OLDEST_TORCH = "2.10"
REQUIRES_PYTHON = ">=3.11"
RUNTIME_REQUIREMENTS = ("jinja2>=3.1,<4", "numpy>=1.26,<3", "pillow>=10,<14", "psutil>=5.9,<8")
BUILD_REQUIRES = "hatchling>=1.28,<2"
_TAKEN = frozenset({"torch", "numpy", "pil", "psutil", "jinja2", "cpupack"})


@dataclass(frozen=True)
class WheelContents:
    """Everything that goes into one wheel.

    ``calibration`` is used for facts only (origin and counts). ``golden`` has ``input``, ``output`` and
    ``output_fp32``: inputs, and what the saved and the FP32 model answered to them at the build.
    """

    loaded: LoadedRecipe
    model: FloatModel
    fused: FusedModel
    scripted: ScriptedModel
    report: VerifyReport
    target: Target
    calibration: Samples | None
    golden: dict[str, npt.NDArray[Any]]
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        if missing := {"input", "output", "output_fp32"} - set(self.golden):
            raise ValueError(f"golden has no {', '.join(sorted(missing))}")


def stage_project(contents: WheelContents, directory: Path) -> StagedProject:
    """Write the wheel's project into ``directory``, which is made and must be empty.

    The project runs as it is (``PYTHONPATH=directory/src``); ``build_wheel`` and ``python -m build``
    build it.
    Raises PackagingError when the recipe's name cannot be imported, or when a rendered file does
    not say what it was rendered from.
    """
    recipe = contents.loaded.recipe
    import_name = _checked_import_name(recipe.package.name, recipe.package.import_name)
    staged = StagedProject(
        root=directory,
        package_dir=directory / "src" / import_name,
        import_name=import_name,
        distribution=recipe.package.name,
        version=recipe.package.version + ("+random" if contents.model.random_weights else ""),
        platform_tag=contents.target.platform_tag,
    )
    try:
        staged.package_dir.mkdir(parents=True)
        _write_package(contents, staged)
        manifest = dataclasses.replace(_manifest(contents, staged), files=_file_entries(staged.package_dir))
        _write_project(contents, staged, manifest)
        _write_manifest(staged, manifest)
    except OSError as error:
        raise PackagingError(
            f"cannot write the wheel's project: {error}", hint="check space and permissions"
        ) from error
    return staged


def finish(staged: StagedProject, plan: TunePlan, facts: Mapping[str, Any]) -> StagedProject:
    """Write the tuned plan into ``tune.json``, the manifest (plan, bench, hashes) and the README.

    ``facts`` (of ``build_facts.py``) go into ``build.json``, which ``cpupack report`` reads.
    """
    manifest = read_manifest(staged.package_dir)
    _write_json(staged.package_dir / TUNE_NAME, dataclasses.asdict(plan))
    # As it comes: a reader wants the engines by speed and the settings as they were tried.
    text = json.dumps(to_plain(facts), indent=2, allow_nan=False) + "\n"
    (staged.package_dir / BUILD_NAME).write_text(text, encoding="utf-8")
    entry = PlanEntry(
        plan.tuned,
        plan.objective,
        plan.threads,
        plan.instances,
        plan.batch_size,
        plan.max_latency_ms,
        plan.reason,
    )
    manifest = dataclasses.replace(
        manifest,
        plan=entry,
        bench={**manifest.bench, "build": _chosen_row(plan)},
        files=_file_entries(staged.package_dir),
    )
    _write_readme(staged, manifest)
    _write_manifest(staged, manifest)
    return staged


def requirements(torch_version: str) -> list[str]:
    """Return the wheel's dependencies; torch from the oldest cpupack supports to the builder's minor."""
    # Pillow in every wheel: the runtime is one body of code, and its runner imports its preprocessing.
    # Jinja2 is one of torch's own dependencies: it renders the bench's page and adds nothing to an installation.
    return [f"torch{_torch_range(torch_version)}", *RUNTIME_REQUIREMENTS]


def _torch_range(torch_version: str) -> str:
    built = Version(torch_version)
    return f">={OLDEST_TORCH},<{built.major}.{built.minor + 1}"


def _checked_import_name(name: str, import_name: str) -> str:
    if not import_name.isidentifier() or keyword.iskeyword(import_name):
        why = "which Python cannot import"
    elif (
        import_name in {"torch", "numpy", "pil", "psutil", "jinja2", "cpupack"}
        or import_name in sys.stdlib_module_names
    ):
        why = "which hides a module of that name"
    else:
        return import_name
    raise PackagingError(
        f'[package] name = "{name}" makes the import name {import_name!r}, {why}',
        hint='choose a name like "resnet50-int8"',
    )


def _manifest(contents: WheelContents, staged: StagedProject) -> Manifest:
    recipe, model, target, scripted = (
        contents.loaded.recipe,
        contents.model,
        contents.target,
        contents.scripted,
    )
    report = dataclasses.asdict(contents.report)
    del report["speed_rows"]  # the raw measurements are in verify.json
    description = recipe.package.description or f"{recipe.model.source} quantized to INT8 for {target.cpu} CPUs."
    calibration = contents.calibration
    return Manifest(
        name=staged.distribution,
        import_name=staged.import_name,
        version=staged.version,
        random_weights=model.random_weights,
        model={
            "description": " ".join(description.split()),
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
        preprocess=recipe.preprocess.model_dump() if recipe.preprocess else None,
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
        torch={"version": torch.__version__, "requires": _torch_range(torch.__version__)},
        build={
            "cpupack": cpupack.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "host": {**host_probe.fingerprint(), "cores_usable": host_probe.HostProbe().budget().usable},
        },
        files={},
    )


def _recovered(contents: WheelContents) -> list[str]:
    """Return the note that says which settings are not those of ``recipe.toml``."""
    recovery = contents.recovery
    if recovery is None:
        return []
    settings = recovery.trials[recovery.winner].settings
    words = ", ".join(f"{key} = {to_toml(value)}" for key, value in settings.items())
    return [f"recovery set {words}; {RECOVERED_NAME} is the table that takes the place of {RECIPE_NAME}'s [quantize]"]


def _chosen_row(plan: TunePlan) -> dict[str, Any] | None:
    """Return the median measurement of the chosen setting, None when nothing was tuned."""
    keys = ("threads", "instances", "batch_size")
    chosen = tuple(getattr(plan, key) for key in keys)
    rows = [row for row in plan.rows if tuple(row.get(key) for key in keys) == chosen]
    rows.sort(key=lambda row: float(row["throughput_per_s"]))
    return dict(to_plain(rows[len(rows) // 2])) if plan.tuned and rows else None


def _write_package(contents: WheelContents, staged: StagedProject) -> None:
    """Write ``src/IMPORT_NAME`` except the manifest."""
    package_dir = staged.package_dir
    context = {
        "name": staged.distribution,
        "import_name": staged.import_name,
        "version": staged.version,
        "cpu": contents.target.cpu,
    }
    for name in ("__init__.py", "__main__.py", "_bound.py", "_entry.py"):
        _write_python(package_dir / name, f"project/{name}.j2", context)
    runtime = Path(cpupack.runtime.__file__).parent
    library = contents.target.record.library
    kernels = [] if library is None else [runtime / library]
    for source in sorted([*runtime.rglob("*.py"), *runtime.rglob("templates/*.j2"), *kernels]):
        copy = package_dir / "_runtime" / source.relative_to(runtime)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    (package_dir / "py.typed").touch()
    shutil.copyfile(contents.scripted.path, package_dir / MODEL_NAME)
    _write_arrays(package_dir / GOLDEN_NAME, contents.golden)
    if contents.model.labels:
        _write_labels(package_dir / LABELS_NAME, contents.model.labels)
    (package_dir / RECIPE_NAME).write_text(contents.loaded.text, encoding="utf-8")
    if contents.recovery is not None:
        (package_dir / RECOVERED_NAME).write_text(contents.recovery.toml, encoding="utf-8")
    _write_json(package_dir / VERIFY_NAME, dataclasses.asdict(contents.report))
    untuned = TunePlan(tuned=False, objective=contents.loaded.recipe.tune.objective, reason="not tuned at the build")
    _write_json(package_dir / TUNE_NAME, dataclasses.asdict(untuned))


def _write_project(contents: WheelContents, staged: StagedProject, manifest: Manifest) -> None:
    """Write what surrounds the package: pyproject.toml, build hook, bill of materials, README."""
    needed = requirements(torch.__version__)
    sbom_name = f"sbom/{staged.import_name}.cdx.json"
    scripts = {
        staged.distribution: f"{staged.import_name}._entry:main",
        f"{staged.distribution}-bench": f"{staged.import_name}._entry:bench_main",
    }
    context: dict[str, Any] = {
        "cpupack_version": cpupack.__version__,
        "build_requires": BUILD_REQUIRES,
        "name": staged.distribution,
        "import_name": staged.import_name,
        "version": staged.version,
        "description": manifest.model["description"],
        "requires_python": REQUIRES_PYTHON,
        "dependencies": needed,
        "scripts": scripts,
        "sbom": sbom_name,
    }
    text = render("project/pyproject.toml.j2", **context)
    _check_pyproject(text, context)
    (staged.root / "pyproject.toml").write_text(text, encoding="utf-8")
    _write_python(staged.root / "hatch_build.py", "project/hatch_build.py.j2", {"platform_tag": staged.platform_tag})
    (staged.root / sbom_name).parent.mkdir()
    bill = sbom.render_sbom(manifest, model_file=MODEL_NAME, requirements=needed)
    (staged.root / sbom_name).write_text(bill, encoding="utf-8")
    _write_readme(staged, manifest)


def _write_readme(staged: StagedProject, manifest: Manifest) -> None:
    context = {
        "name": manifest.name,
        "import_name": manifest.import_name,
        "version": manifest.version,
        "description": manifest.model["description"],
        "random_weights": manifest.random_weights,
        "takes_images": manifest.preprocess is not None,
        "shape": ", ".join(str(size) for size in manifest.input_shape),
        "facts": [(label, value.replace("|", "\\|")) for label, value in fact_rows(manifest)],
    }
    (staged.root / "README.md").write_text(render("project/README.md.j2", **context), encoding="utf-8")


def _write_manifest(staged: StagedProject, manifest: Manifest) -> None:
    (staged.package_dir / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def _write_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write an ``.npz`` file: ``numpy.savez`` with order and dates of its members fixed, no pickles."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in sorted(arrays.items()):
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _write_labels(path: Path, labels: tuple[str, ...]) -> None:
    for index, label in enumerate(labels):
        if len(label.splitlines()) != 1:
            raise PackagingError(f"label {index} is {label!r}: not one line of text", hint="mend [model] labels")
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _write_python(path: Path, template: str, context: dict[str, Any]) -> None:
    text = render(template, **context)
    try:
        compile(text, path.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise PackagingError(f"rendered {path.name} is not Python: {error}", hint="this is a bug in cpupack") from error
    path.write_text(text, encoding="utf-8")


def _check_pyproject(text: str, context: dict[str, Any]) -> None:
    """Parse the rendered TOML back and compare it with what it was rendered from."""
    try:
        parsed = tomli.loads(text)
        wheel = parsed["tool"]["hatch"]["build"]["targets"]["wheel"]
        said = {key: parsed["project"][key] for key in ("name", "version", "description", "dependencies", "scripts")}
        said |= {"requires_python": parsed["project"]["requires-python"], "sbom": wheel["sbom-files"][0]}
        said["import_name"] = wheel["packages"][0].removeprefix("src/")
    except (tomli.TOMLDecodeError, KeyError) as error:
        raise PackagingError(f"rendered pyproject.toml is damaged: {error}", hint="this is a bug in cpupack") from error
    for key, value in said.items():
        if value != context[key]:
            raise PackagingError(
                f"rendered pyproject.toml says {key} = {value!r}, not {context[key]!r}",
                hint="this is a bug in cpupack",
            )


def _file_entries(package_dir: Path) -> dict[str, FileEntry]:
    """Return hash and size of every file that ships, except the manifest itself.

    Tuning imports the package, so compiled files may lie about: hatchling leaves them out, and so does this.
    """
    return {
        path.relative_to(package_dir).as_posix(): FileEntry(hash_file(path), path.stat().st_size)
        for path in sorted(package_dir.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME and "__pycache__" not in path.parts
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(to_plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
