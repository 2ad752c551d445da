"""Writes an ordinary hatchling project for the verified model. It runs without being built, and pip can build it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli
import torch

import cpupack
import cpupack.runtime
from cpupack.artifacts import StagedProject, TunePlan
from cpupack.errors import PackagingError
from cpupack.recipe.names import why_not_importable
from cpupack.runtime.engine.program import is_program
from cpupack.runtime.files import (
    BUILD_NAME,
    GOLDEN_NAME,
    LABELS_NAME,
    MANIFEST_NAME,
    MODEL_NAME,
    RECIPE_NAME,
    RECOVERED_NAME,
    ROOT_NAME,
    TASK_NAME,
    TOKENIZER_NAME,
)
from cpupack.runtime.host import probe as host_probe
from cpupack.runtime.manifest import Manifest, PlanEntry, read_manifest, root_hash, root_text
from cpupack.runtime.plain import to_plain
from cpupack.runtime.signature import Signature, signature_of
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.stages.package.contents import WheelContents
from cpupack.stages.package.make_manifest import chosen_row, file_entries, make_manifest
from cpupack.stages.package.requirements import BUILD_REQUIRES, EXTRAS, REQUIRES_PYTHON, requirements
from cpupack.stages.package.write import write_arrays, write_labels, write_python
from cpupack.templates import render
from cpupack.wheel import sbom
from cpupack.wheel.card import card_limits
from cpupack.wheel.facts import fact_rows
from cpupack.wheel.tools import versions

_COMPILED = {".so", ".pyc", ".part"}
"""What is not source: kernels go into a wheel by name, and byte code is made again."""


def stage_project(contents: WheelContents, directory: Path) -> StagedProject:
    """Write the wheel's project into ``directory``, which is created if missing and must be empty.

    The project runs without being built (``PYTHONPATH=directory/src``). ``build_wheel`` and ``python -m build`` build
    it. Raises PackagingError when the recipe's name cannot be imported, or when a rendered file, read back, does not
    have the values that it was rendered with.
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
        manifest = dataclasses.replace(make_manifest(contents, staged), files=file_entries(staged.package_dir))
        _write_project(contents, staged, manifest)
        _write_manifest(staged, manifest)
    except OSError as error:
        raise PackagingError(
            f"cannot write the wheel's project: {error}", hint="check space and permissions"
        ) from error
    return staged


def finish(
    staged: StagedProject,
    plan: TunePlan,
    facts: Mapping[str, Any],
    measured: Mapping[str, Any] | None = None,
) -> StagedProject:
    """Write ``facts`` (of ``build_facts.py``), the tuned plan and this host into ``build.json``.

    Everything measured goes into that file, so two builds of a recipe differ in it alone. ``measured`` is that section
    of an earlier build, which then takes the place of this one's.
    """
    if measured is None:
        measured = _measured(staged, plan, facts)
    # Keys are not sorted: a reader wants the engines by speed and the trials in their order.
    text = json.dumps({**to_plain(facts), "measured": measured}, indent=2, allow_nan=False) + "\n"
    (staged.package_dir / BUILD_NAME).write_text(text, encoding="utf-8")
    return staged


def _measured(staged: StagedProject, plan: TunePlan, facts: Mapping[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(staged.package_dir)
    entry = PlanEntry(
        plan.tuned,
        plan.objective,
        plan.threads,
        plan.instances,
        plan.batch_size,
        plan.max_latency_ms,
        plan.reason,
    )
    report = to_plain(facts.get("report") or {})
    accuracy = manifest.accuracy | {
        name: report[name] for name in ("speedup", "speedup_ci95", "gates") if name in report
    }
    bench = {**manifest.bench, "build": chosen_row(plan)}
    host = {**host_probe.fingerprint(), "cores_usable": host_probe.HostProbe().budget().usable}
    build = {**manifest.build, "host": host}
    return dataclasses.replace(manifest, plan=entry, bench=bench, accuracy=accuracy, build=build).measured()


def _checked_import_name(name: str, import_name: str) -> str:
    why = why_not_importable(import_name)
    if why is None:
        return import_name
    raise PackagingError(
        f'[package] name = "{name}" makes the import name {import_name!r}, {why}',
        hint='choose a name like "resnet50-int8"',
    )


def _write_package(contents: WheelContents, staged: StagedProject) -> None:
    """Write ``src/IMPORT_NAME`` except the manifest."""
    package_dir = staged.package_dir
    context = {
        "name": staged.distribution,
        "import_name": staged.import_name,
        "version": staged.version,
        "cpu": contents.target.cpu,
    }
    for name in ("__init__.py", "__main__.py", "_bound.py", "_entry.py", "ray.py"):
        write_python(package_dir / name, f"project/{name}.j2", context)
    runtime = Path(cpupack.runtime.__file__).parent
    library = contents.target.record.libraries.get(contents.target.cpu)
    kernels = [] if library is None else [runtime / library]
    for source in sorted([*_runtime_files(runtime), *kernels]):
        copy = package_dir / "_runtime" / source.relative_to(runtime)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    (package_dir / "py.typed").touch()
    shutil.copyfile(contents.scripted.path, package_dir / MODEL_NAME)
    _check_torch(contents, package_dir / MODEL_NAME)
    write_arrays(package_dir / GOLDEN_NAME, contents.golden)
    if contents.model.anchors is not None:
        write_arrays(package_dir / TASK_NAME, contents.model.anchors.arrays())
    if contents.model.tokenizer is not None:
        (package_dir / TOKENIZER_NAME).write_bytes(contents.model.tokenizer.file)
    if contents.model.labels:
        write_labels(package_dir / LABELS_NAME, contents.model.labels)
    (package_dir / RECIPE_NAME).write_text(contents.loaded.text, encoding="utf-8")
    if contents.recovery is not None:
        (package_dir / RECOVERED_NAME).write_text(contents.recovery.toml, encoding="utf-8")


def _runtime_files(runtime: Path) -> list[Path]:
    """Return everything of the runtime but compiled files: its code, and the data that its commands read."""
    kept = (path for path in runtime.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path for path in kept if path.suffix not in _COMPILED]


def _check_torch(contents: WheelContents, model: Path) -> None:
    """Check that the runner will do without torch if and only if the wheel does not require it."""
    needs_torch = not is_program(model, contents.target.engine)
    if needs_torch != (contents.scripted.torch_reason is not None):
        raise PackagingError(
            f"the model {'needs' if needs_torch else 'does not need'} torch, and the wheel would say otherwise",
            hint="this is a bug in cpupack",
        )


def _write_project(contents: WheelContents, staged: StagedProject, manifest: Manifest) -> None:
    """Write the files around the package: pyproject.toml, build hook, bill of materials, README."""
    needed = requirements(
        torch.__version__,
        needs_torch=contents.scripted.torch_reason is not None,
        takes_text=contents.model.tokenizer is not None,
    )
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
        "license": manifest.model["license"],
        "authors": [_author(text) for text in manifest.model["authors"]],
        "urls": manifest.model["urls"],
        "requires_python": REQUIRES_PYTHON,
        "dependencies": needed,
        "extras": EXTRAS,
        "scripts": scripts,
        "sbom": sbom_name,
    }
    text = render("project/pyproject.toml.j2", **context)
    _check_pyproject(text, context)
    (staged.root / "pyproject.toml").write_text(text, encoding="utf-8")
    write_python(staged.root / "hatch_build.py", "project/hatch_build.py.j2", {"platform_tag": staged.platform_tag})
    (staged.root / sbom_name).parent.mkdir()
    bill = sbom.render_sbom(
        manifest,
        model_file=MODEL_NAME,
        requirements=needed,
        root=root_hash(manifest),
        tools={name: version for name, version in versions().items() if name != "cpupack"},
    )
    (staged.root / sbom_name).write_text(bill, encoding="utf-8")
    _write_readme(staged, manifest)


def _author(text: str) -> dict[str, str]:
    """Return ``NAME <EMAIL>`` as pyproject.toml has it."""
    name, _, email = text.partition(" <")
    return {"name": name, "email": email.removesuffix(">")} if email else {"name": name}


def _write_readme(staged: StagedProject, manifest: Manifest) -> None:
    context = {
        "name": manifest.name,
        "import_name": manifest.import_name,
        "version": manifest.version,
        "description": manifest.model["description"],
        "random_weights": manifest.random_weights,
        "takes_images": manifest.preprocess is not None,
        "needs_torch": manifest.torch.get("reason") is not None,
        **_named(signature_of(manifest)),
        "shape": ", ".join(str(size) for size in manifest.input_shape),
        "facts": [(label, value.replace("|", "\\|")) for label, value in fact_rows(manifest, measured=False)],
        "limits": card_limits(manifest),
        "model": manifest.model,
    }
    (staged.root / "README.md").write_text(render("project/README.md.j2", **context), encoding="utf-8")


def _named(signature: Signature) -> dict[str, Any]:
    """Return how to call a model of several inputs or outputs, for its README."""
    if signature.is_plain:
        return {"named": False, "ends": ""}

    def value(spec: TensorSpec) -> str:
        return "photo.jpg" if spec.preprocess is not None else f"{spec.name}.npy" if spec.shape else "1"

    quoted = {each.name: f'"{value(each)}"' if each.shape else value(each) for each in signature.inputs}
    return {
        "named": signature.takes_rows,
        "example": "{" + ", ".join(f'"{name}": {text}' for name, text in quoted.items()) + "}",
        "keywords": ", ".join(f"{each.name}=..." for each in signature.inputs),
        "flags": " ".join(f"--input {each.name}={value(each)}" for each in signature.inputs),
        "ends": f"It takes {signature.inputs_text()}. It gives {signature.outputs_text()}.",
    }


def _write_manifest(staged: StagedProject, manifest: Manifest) -> None:
    (staged.package_dir / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    (staged.package_dir / ROOT_NAME).write_text(root_text(manifest), encoding="utf-8")


def _check_pyproject(text: str, context: dict[str, Any]) -> None:
    """Parse the rendered TOML and compare it with the values that it was rendered with."""
    try:
        parsed = tomli.loads(text)
        wheel = parsed["tool"]["hatch"]["build"]["targets"]["wheel"]
        written = {key: parsed["project"][key] for key in ("name", "version", "description", "dependencies", "scripts")}
        written |= {"license": parsed["project"].get("license"), "authors": parsed["project"]["authors"]}
        written |= {"urls": parsed["project"]["urls"]}
        written |= {"requires_python": parsed["project"]["requires-python"], "sbom": wheel["sbom-files"][0]}
        written["import_name"] = wheel["packages"][0].removeprefix("src/")
    except (tomli.TOMLDecodeError, KeyError) as error:
        raise PackagingError(f"rendered pyproject.toml is damaged: {error}", hint="this is a bug in cpupack") from error
    for key, value in written.items():
        if value != context[key]:
            raise PackagingError(
                f"rendered pyproject.toml says {key} = {value!r}, not {context[key]!r}",
                hint="this is a bug in cpupack",
            )
