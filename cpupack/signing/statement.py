"""Where a wheel comes from: an in-toto statement with a SLSA provenance predicate, both version 1.

Specifications: github.com/in-toto/attestation (spec/v1) and slsa.dev/spec/v1.0/provenance. Equal wheels and locks give
equal statements: there is no time and no host in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpupack.errors import UsageError
from cpupack.lock.model import Lock, read_lock
from cpupack.runtime.files import RECIPE_NAME
from cpupack.runtime.manifest import Manifest, hash_file

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:cpupack:wheel:1"
LOCAL_BUILDER = "urn:cpupack:local"
_LINKED = "torch", "torchvision", "timm", "numpy", "pillow", "hatchling", "jinja2"


def make_statement(wheel: Path, sha256: str, manifest: Manifest, lock: Path | None, builder: str) -> dict[str, Any]:
    """Return the statement about a wheel with this SHA-256.

    With the lock of its build it names every file and version that took part; without, what the wheel itself knows.
    Raises UsageError for a lock of another wheel.
    """
    parameters: dict[str, Any] = {"recipe": {"name": RECIPE_NAME, "sha256": manifest.files[RECIPE_NAME].sha256}}
    materials = _materials_of_wheel(manifest)
    if lock is not None:
        read = read_lock(lock)
        _check_lock(read, lock, sha256, manifest)
        parameters["lock"] = {"name": lock.name, "sha256": hash_file(lock)}
        materials = _materials_of_lock(read)
    target = manifest.target
    return {
        "_type": STATEMENT,
        "subject": [{"name": wheel.name, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": parameters,
                "internalParameters": {"cpu": target["cpu"], "engine": target["engine"], "isa": target["isa"] or ""},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"cpupack": manifest.build["cpupack"]}},
            },
        },
    }


def _check_lock(lock: Lock, path: Path, sha256: str, manifest: Manifest) -> None:
    part = lock.wheels.get(manifest.target["cpu"])
    if part is None or part.sha256 != sha256:
        raise UsageError(
            f"{path} is the lock of another wheel: it names {part.sha256 if part else 'none for this CPU'}",
            hint="sign the wheel that `cpupack build --locked` made from it",
        )


def _materials_of_lock(lock: Lock) -> list[dict[str, Any]]:
    found = [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(lock.inputs.files.items())]
    if "weights" in lock.inputs.model:
        found.append({"name": "weights", "digest": {"sha256": lock.inputs.model["weights"]}})
    found += [{"name": f"samples: {name}", "digest": {"sha256": each}} for name, each in lock.inputs.data.items()]
    return [*found, *(_version(*each) for each in sorted(lock.inputs.versions.items()))]


def _materials_of_wheel(manifest: Manifest) -> list[dict[str, Any]]:
    sha256 = manifest.model["weights_sha256"]
    weights = [{"name": manifest.model["weights"], "digest": {"sha256": sha256}}] if sha256 else []
    return [*weights, *(_version(name, manifest.build[name]) for name in ("python", "torch"))]


def _version(name: str, version: str) -> dict[str, Any]:
    if name in _LINKED:
        return {"name": name, "uri": f"pkg:pypi/{name}@{version}"}
    return {"name": name, "uri": f"pkg:generic/{name}@{version}"}
