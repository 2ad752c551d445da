"""``cpupack doctor``: what this host can build and run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tomli

from cpupack import doctor
from cpupack.doctor import Findings, Torchvision
from cpupack.runtime.host.cpu import ISA_LEVELS
from cpupack.runtime.plain import to_plain


@pytest.fixture
def facts() -> Findings:
    return doctor.collect()


def test_facts_are_json(facts: Findings) -> None:
    plain = json.loads(json.dumps(to_plain(facts), allow_nan=False))
    assert plain["host"] == facts.host
    assert plain["torch"]["version"] == facts.torch.version
    assert [build["cpu"] for build in plain["builds"]] == ["x86_64", "aarch64"]


def test_this_environment_is_sound(facts: Findings) -> None:
    assert facts.problems == []
    assert doctor.format_doctor(facts).endswith("Nothing is wrong here.")


def test_the_text_is_aligned_and_narrow(facts: Findings) -> None:
    table, _ = doctor.format_doctor(facts).split("\n\n")
    labels = [line[:16] for line in table.splitlines()]
    assert all(label.endswith("  ") for label in labels)
    assert all(len(line) <= 80 for line in table.splitlines())
    assert facts.host["cpu"] in table


def test_extras_are_those_of_the_project() -> None:
    project = tomli.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, distribution in doctor.EXTRAS.items():
        assert any(each.startswith(distribution) for each in project["optional-dependencies"][extra])


@pytest.mark.parametrize("isa", ISA_LEVELS)
def test_builds_of_a_host(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    host = {**doctor.host_probe.describe(), "machine": "x86_64", "isa": isa}
    monkeypatch.setattr(doctor.host_probe, "describe", lambda: host)
    x86, arm = doctor.collect().builds
    assert x86.runs_here
    assert not arm.runs_here
    assert x86.isa in {"avx2", "avx512_vnni"}
    assert ISA_LEVELS.index(x86.isa) <= ISA_LEVELS.index(isa)
    assert x86.activation_bits == (8 if x86.isa == "avx512_vnni" else 7)


def test_an_arm_host(monkeypatch: pytest.MonkeyPatch) -> None:
    host = {**doctor.host_probe.describe(), "machine": "aarch64", "isa": "dotprod", "flags": ["asimd", "asimddp"]}
    monkeypatch.setattr(doctor.host_probe, "describe", lambda: host)
    monkeypatch.setattr(doctor, "supported_engines", lambda: ["qnnpack"])
    facts = doctor.collect()
    text = doctor.format_doctor(facts)
    assert facts.problems == []
    assert "build x86_64    cannot be built: this torch has no engine for it" in text
    assert "ISA level       dotprod (of neon, dotprod, i8mm)" in text
    assert "timed and tuned here" in " ".join(text.split())


def test_an_old_cpu_and_a_torch_without_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    host = {**doctor.host_probe.describe(), "machine": "x86_64", "isa": None, "flags": []}
    monkeypatch.setattr(doctor.host_probe, "describe", lambda: host)
    monkeypatch.setattr(doctor, "supported_engines", list)
    text = doctor.format_doctor(doctor.collect())
    assert "problem: this CPU has no AVX2" in text
    assert "problem: this torch build has no quantized engine" in text
    assert "Nothing is wrong" not in text


def test_torchvision_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    facts = doctor.collect()
    assert facts.torchvision == Torchvision(None, "absent")
    assert 'pip install "cpupack[torchvision]"' in doctor.format_doctor(facts)


def test_torchvision_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("built for another torch")

    monkeypatch.setattr(doctor, "import_torchvision", fail)
    assert doctor.collect().torchvision.state == "broken"


def test_a_dependency_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch<2", "numpy>=1", "no-such-thing>=3", 'timm<0.1; extra == "timm"', 'ruff>=99; extra == "dev"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: declared)
    monkeypatch.setattr(doctor.metadata, "version", lambda name: {"no-such-thing": None}.get(name, "2.0"))
    problems = doctor.collect().problems
    assert "torch 2.0 is installed; cpupack needs <2" in problems
    assert "timm 2.0 is installed; cpupack needs <0.1" in problems
    assert "no-such-thing is not installed; cpupack needs >=3" in problems
    assert len(problems) == 3
