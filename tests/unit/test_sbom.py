"""The bill of materials: valid CycloneDX 1.6, complete, and a function of the contents alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from cpupack.runtime.manifest import FileEntry, Manifest, read_manifest
from cpupack.stages.package import stage_project
from cpupack.wheel.sbom import render_sbom
from helpers.tiny_wheel import TinyWheel

REQUIREMENTS = ["torch>=2.10,<2.14", "numpy>=1.26,<3"]


@pytest.fixture
def manifest(tiny: TinyWheel, tmp_path: Path) -> Manifest:
    return read_manifest(stage_project(tiny.contents(), tmp_path / "project").package_dir)


def bom(manifest: Manifest) -> dict:
    return json.loads(render_sbom(manifest, model_file="model.pt", requirements=REQUIREMENTS, root="ab" * 32))


def test_components(manifest: Manifest) -> None:
    found = {component["name"]: component for component in bom(manifest)["components"]}
    assert set(found) == {"tiny_int8/model.pt", "cpupack-runtime", "torch", "numpy"}
    model = found["tiny_int8/model.pt"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": manifest.files["model.pt"].sha256}]
    ancestor = model["pedigree"]["ancestors"][0]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": manifest.model["weights_sha256"]}]


def test_the_tools_of_the_build_have_their_versions(manifest: Manifest) -> None:
    tools = {"torch": "2.13.0", "python": "3.11.7", "zlib": "1.3.1"}
    text = render_sbom(manifest, model_file="model.pt", requirements=REQUIREMENTS, root="ab" * 32, tools=tools)
    if importlib.util.find_spec("referencing"):
        assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None
    found = {each["name"]: each for each in json.loads(text)["metadata"]["tools"]["components"]}
    assert {name: each["version"] for name, each in found.items()} == {**tools, "cpupack": manifest.build["cpupack"]}
    assert found["torch"]["purl"] == "pkg:pypi/torch@2.13.0"


def test_a_licence_is_stated_for_the_weights_alone(manifest: Manifest) -> None:
    licensed = dataclasses.replace(manifest, model={**manifest.model, "license": "CC-BY-NC-4.0"})
    text = render_sbom(licensed, model_file="model.pt", requirements=REQUIREMENTS, root="ab" * 32)
    components = {each["bom-ref"]: each for each in json.loads(text)["components"]}
    assert components["model"]["licenses"] == [{"expression": "CC-BY-NC-4.0"}]
    assert components["runtime"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert "licenses" not in {each["bom-ref"]: each for each in bom(manifest)["components"]}["model"]


def test_cpupack_is_the_tool(manifest: Manifest) -> None:
    assert [tool["name"] for tool in bom(manifest)["metadata"]["tools"]["components"]] == ["cpupack"]


def test_it_is_valid_cyclonedx(manifest: Manifest) -> None:
    pytest.importorskip("referencing")
    text = render_sbom(manifest, model_file="model.pt", requirements=REQUIREMENTS, root="ab" * 32)
    assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None


def test_equal_contents_have_one_serial_and_others_another(manifest: Manifest) -> None:
    assert bom(manifest) == bom(manifest)
    other = dataclasses.replace(manifest, files={"model.pt": FileEntry("cd" * 32, 1)})
    assert bom(other)["serialNumber"] != bom(manifest)["serialNumber"]


def test_the_time_is_the_users_or_none(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert "timestamp" not in bom(manifest)["metadata"]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert bom(manifest)["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"
