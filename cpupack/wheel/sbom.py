"""The bill of materials of a wheel as CycloneDX 1.6 JSON. Equal contents give equal bytes."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import Requirement

from cpupack.runtime.engine import library
from cpupack.runtime.manifest import Manifest

_UNSERIALIZED = uuid.UUID(int=0)
_LEVELS = {"x86_64": "AVX2, AVX512-VNNI and AMX", "aarch64": "NEON, dot products and I8MM"}
"""What the kernels of a CPU family are written for."""


def render_sbom(
    manifest: Manifest,
    *,
    model_file: str,
    requirements: list[str],
    root: str,
    tools: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the bill of materials of the wheel that ``manifest`` describes.

    ``model_file`` is the key of the weights in ``manifest.files``. ``requirements`` are the wheel's dependencies.
    ``root`` is the hash over all files of the package (``runtime.manifest.root_hash``). ``tools`` are the versions of
    what the wheel was built with, beside cpupack.
    The serial number is derived from the contents; there is no timestamp unless SOURCE_DATE_EPOCH gives one
    (reproducible-builds.org/specs/source-date-epoch).
    """
    cpupack_version = manifest.build["cpupack"]
    wheel = Component(
        type=ComponentType.LIBRARY,
        name=manifest.name,
        version=manifest.version,
        bom_ref="wheel",
        purl=PackageURL("pypi", name=manifest.name, version=manifest.version),
        properties=[Property(name="cpupack:root_sha256", value=root)],
    )
    model = _model(manifest, model_file)
    runtime = Component(
        type=ComponentType.LIBRARY,
        name="cpupack-runtime",
        version=cpupack_version,
        bom_ref="runtime",
        description="the runner, copied from cpupack",
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
    )
    shipped = [model, runtime, *_kernels(manifest)]
    required = [_requirement(text) for text in requirements]
    bom = Bom(
        serial_number=_UNSERIALIZED,
        metadata=BomMetaData(
            component=wheel,
            tools=ToolRepository(
                components=[_tool(cpupack_version), *(_build_tool(*each) for each in sorted(tools.items()))]
            ),
            timestamp=datetime.fromtimestamp(0, UTC),
        ),
        components=[*shipped, *required],
        dependencies=[
            Dependency(wheel.bom_ref, dependencies=[Dependency(c.bom_ref) for c in (*shipped, *required)]),
            Dependency(runtime.bom_ref, dependencies=[Dependency(c.bom_ref) for c in required]),
        ],
    )
    document = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    _set_timestamp(document)
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, f"cpupack:{digest}").urn
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _model(manifest: Manifest, model_file: str) -> Component:
    facts = manifest.model
    floating = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=facts["source"],
        bom_ref="fp32-model",
        description=f"FP32 weights: {facts['weights']}",
        hashes=[_sha256(facts["weights_sha256"])] if facts["weights_sha256"] else [],
        licenses=_licenses(facts),
    )
    properties = {
        "cpupack:engine": manifest.target["engine"],
        "cpupack:isa": manifest.target["isa"] or "",
        "cpupack:quantization": manifest.quantize["mode"],
        "cpupack:random_weights": str(manifest.random_weights).lower(),
        "cpupack:weights": facts["weights"],
    }
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=f"{manifest.import_name}/{model_file}",
        version=manifest.version,
        bom_ref="model",
        description=f"{facts['source']} quantized to INT8, TorchScript",
        hashes=[_sha256(manifest.files[model_file].sha256)],
        licenses=_licenses(facts),
        properties=[Property(name=name, value=value) for name, value in properties.items() if value],
        pedigree=Pedigree(ancestors=[floating]),
    )


def _kernels(manifest: Manifest) -> list[Component]:
    """Return the library of native kernels if the wheel has it.

    It is compiled only from cpupack's own sources and links only the C library of the host. It contains no code of the
    compiler's runtime (tests/unit/test_kernels_build.py).
    """
    path = library.LIBRARIES.get(manifest.target["cpu"])
    found = [] if path is None else [name for name in manifest.files if name.endswith(path.as_posix())]
    return [
        Component(
            type=ComponentType.LIBRARY,
            name="cpupack-kernels",
            version=manifest.build["cpupack"],
            bom_ref="kernels",
            description=f"INT8 kernels for {_LEVELS[manifest.target['cpu']]}, {manifest.import_name}/{name}",
            hashes=[_sha256(manifest.files[name].sha256)],
            licenses=[DisjunctiveLicense(id="Apache-2.0")],
        )
        for name in found
    ]


def _requirement(text: str) -> Component:
    """Return a component without a version: the wheel requires a range, and pip chooses the version."""
    name = Requirement(text).name
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        bom_ref=f"requirement:{name}",
        purl=PackageURL("pypi", name=name),
        properties=[Property(name="cpupack:requires", value=text)],
    )


def _tool(version: str) -> Component:
    return Component(
        type=ComponentType.APPLICATION,
        name="cpupack",
        version=version,
        bom_ref="cpupack",
        licenses=[DisjunctiveLicense(id="Apache-2.0")],
    )


def _build_tool(name: str, version: str) -> Component:
    kind = ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY
    purl = None if name in ("python", "zlib") else PackageURL("pypi", name=name, version=version)
    return Component(type=kind, name=name, version=version, bom_ref=f"tool:{name}", purl=purl)


def _licenses(facts: Mapping[str, Any]) -> list[DisjunctiveLicense | LicenseExpression]:
    """Return the licence of the weights; none where the recipe states none."""
    return [LicenseExpression(value=facts["license"])] if facts.get("license") else []


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _set_timestamp(document: dict[str, Any]) -> None:
    """Replace the timestamp that the library always writes: the time of the build would make equal builds differ."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        del document["metadata"]["timestamp"]
    else:
        document["metadata"]["timestamp"] = datetime.fromtimestamp(int(epoch), UTC).isoformat()
