"""Targets: which engines and how many bits an instruction set allows, and what this host refuses."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest

import cpupack
from cpupack.errors import QuantizationError
from cpupack.pipeline import candidates as choosing
from cpupack.pipeline.candidates import candidates
from cpupack.runtime.engine import library
from cpupack.targets import ENGINES, Target
from cpupack.targets import target as module
from cpupack.targets.engines import ArmEngine, X86Engine, raced
from helpers.tiny_models import recipe

ALL = list(ENGINES)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a CPU: family and instruction set are the host's boundary."""

    def pretend(isa: str | None, family: str = "x86_64") -> None:
        monkeypatch.setattr(choosing, "detect_isa", lambda: isa)
        monkeypatch.setattr(choosing, "machine", lambda: family)
        monkeypatch.setattr(module, "machine", lambda: family)

    return pretend


def engines(isa: str = "auto", engine: str = "auto", supported: list[str] | None = None) -> list[Target]:
    spec = recipe(target={"x86_64": {"isa": isa, "engine": engine}})
    return candidates(spec, "x86_64", ALL if supported is None else supported)


@pytest.mark.parametrize(
    ("isa", "floor", "bits", "names"),
    [
        ("avx2", "avx2", 7, ["native", "fbgemm", "onednn"]),
        ("avx512", "avx2", 7, ["native", "fbgemm", "onednn"]),
        ("avx512_vnni", "avx512_vnni", 8, ["native", "onednn", "x86", "fbgemm"]),
        ("amx", "avx512_vnni", 8, ["native", "onednn", "x86", "fbgemm"]),
    ],
)
def test_auto_takes_the_least_set_that_multiplies_like_this_host(
    host: Any, isa: str, floor: str, bits: int, names: list[str]
) -> None:
    host(isa)
    found = engines()
    assert [each.engine for each in found] == names
    assert {(each.isa, each.cpu) for each in found} == {(floor, "x86_64")}
    assert {each.engine: each.activation_bits for each in found} == dict.fromkeys(names, bits) | {"native": 8}
    assert [each.conv_add for each in found] == [name == "onednn" for name in names]
    assert all(each.runs_here for each in found)
    assert all(each.platform_tag.endswith("_x86_64") for each in found)


@pytest.mark.parametrize("key", ["static", "dynamic"])
def test_layers_with_a_way_of_their_own_are_for_the_native_engine(host: Any, key: str) -> None:
    host("avx512_vnni")
    spec = recipe(quantize={key: ["head"]})
    assert [each.engine for each in candidates(spec, "x86_64", ALL)] == ["native"]
    with pytest.raises(QuantizationError, match=rf"\[quantize\] {key} is for the native engine"):
        candidates(spec, "x86_64", ["fbgemm", "onednn"])


def test_a_lesser_set_than_the_hosts_gets_its_own_bits(host: Any) -> None:
    host("amx")
    of_torch = [name for name, engine in ENGINES.items() if engine.quantizer == "torch"]
    assert {each.activation_bits for each in engines("avx2", supported=of_torch)} == {7}
    assert {each.activation_bits for each in engines("avx512", supported=of_torch)} == {7}
    assert {each.activation_bits for each in engines("avx512_vnni", supported=of_torch)} == {8}


def test_only_x86_without_vnni_saturates(host: Any) -> None:
    """Nor does the native engine, whose weights are such that all sums fit."""
    host("amx")
    lesser = [each for isa in ("avx2", "avx512") for each in engines(isa)]
    assert all(each.adds_in_16_bits for each in lesser)
    assert {each.engine for each in lesser if not each.saturates} == {"native"}
    assert not any(each.saturates for isa in ("avx512_vnni", "amx", "auto") for each in engines(isa))
    assert not any(
        each.saturates for each in candidates(recipe(target={"aarch64": {"engine": "qnnpack"}}), "aarch64", ALL)
    )


def test_a_named_engine_is_the_only_candidate(host: Any) -> None:
    host("avx2")
    assert [each.engine for each in engines(engine="x86")] == ["x86"]


def test_more_than_this_cpu_has_is_refused(host: Any) -> None:
    host("avx2")
    with pytest.raises(QuantizationError, match='isa = "avx512_vnni": this CPU has avx2') as caught:
        engines("avx512_vnni")
    assert caught.value.exit_code == 5
    host(None)
    with pytest.raises(QuantizationError, match="this CPU has no AVX2"):
        engines("avx2")
    with pytest.raises(QuantizationError, match="this host has no AVX2"):
        engines()


def test_on_another_family_the_set_must_be_named(host: Any) -> None:
    host(None, "aarch64")
    with pytest.raises(QuantizationError, match="this host is aarch64"):
        engines()
    found = engines("avx2")
    assert not any(each.runs_here for each in found)


def test_an_engine_that_torch_lacks_is_refused_or_left_out(host: Any) -> None:
    host("avx512_vnni")
    with pytest.raises(QuantizationError, match=r'engine = "onednn" is not in this torch build \(it has fbgemm\)'):
        engines(engine="onednn", supported=["fbgemm"])
    assert [each.engine for each in engines(supported=["fbgemm", "qnnpack"])] == ["fbgemm"]
    with pytest.raises(QuantizationError, match=r"no quantized engine for x86-64 \(it has none\)"):
        engines(supported=[])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend that the native kernels of both families are compiled, into files that no test loads."""
    for path in library.LIBRARIES.values():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(choosing, "RUNTIME", tmp_path)
    return tmp_path


def arm(supported: list[str] | None = None, cpu: list[str] | None = None, **tables: Any) -> list[Target]:
    spec = recipe(target={"cpu": cpu or ["x86_64"], **tables})
    return candidates(spec, "aarch64", ALL if supported is None else supported)


@pytest.mark.usefixtures("compiled")
def test_aarch64_tries_native_and_then_qnnpack_with_8_bits(host: Any) -> None:
    host("amx")
    found = arm()
    assert [each.engine for each in found] == ["native", "qnnpack"]
    assert {(each.isa, each.activation_bits, each.conv_add) for each in found} == {("neon", 8, False)}
    assert all(each.platform_tag.endswith("_aarch64") for each in found)
    assert not any(each.runs_here or each.adds_in_16_bits for each in found)
    host("i8mm", "aarch64")
    assert all(each.runs_here for each in arm())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("engine", get_args(ArmEngine))
def test_an_engine_for_aarch64_may_be_named(host: Any, engine: str) -> None:
    host("amx")
    (found,) = arm(aarch64={"engine": engine, "isa": "dotprod"})
    assert (found.engine, found.isa, found.activation_bits) == (engine, "dotprod", 8)
    with pytest.raises(QuantizationError, match=rf'\[target.aarch64\] engine = "{engine}"'):
        arm(["fbgemm"], aarch64={"engine": engine})


def test_more_than_an_arm_cpu_has_is_refused(host: Any) -> None:
    host("neon", "aarch64")
    with pytest.raises(QuantizationError, match='isa = "dotprod": this CPU has neon'):
        arm(aarch64={"engine": "qnnpack", "isa": "dotprod"})


def test_what_this_cpu_sums_in_another_way_is_not_verified_here(host: Any) -> None:
    """oneDNN on a CPU without VNNI saturates 8-bit activations; on ARM and with VNNI it does not."""
    for isa, family in (("avx512_vnni", "x86_64"), ("neon", "aarch64")):
        host(isa, family)
        assert [each.engine for each in arm(aarch64={"engine": "onednn"})] == ["onednn"]
    host("avx2")
    with pytest.raises(QuantizationError, match=r"this CPU \(avx2\) adds their products in 16 bits"):
        arm(aarch64={"engine": "onednn"})
    assert [each.engine for each in arm(aarch64={"engine": "qnnpack"})] == ["qnnpack"]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("host_isa", "x86", "cpus", "fits"),
    [
        ("avx512_vnni", {}, ["x86_64", "aarch64"], False),
        ("avx2", {}, ["x86_64", "aarch64"], True),
        ("amx", {"isa": "avx2"}, ["x86_64", "aarch64"], True),
        ("amx", {"isa": "avx2"}, ["aarch64"], False),  # no x86-64 wheel whose weights it could have
        ("avx2", {}, ["aarch64"], False),
    ],
)
def test_native_wheels_of_a_recipe_have_the_same_weights(
    host: Any, host_isa: str, x86: dict[str, str], cpus: list[str], fits: bool
) -> None:
    host(host_isa)
    found = {each.engine: each.fits_weights for each in arm(cpu=cpus, x86_64=x86)}
    assert found == {"native": fits, "qnnpack": False}
    if "x86_64" in cpus:
        beside = candidates(recipe(target={"cpu": cpus, "x86_64": x86}), "x86_64", ALL)
        assert {each.engine: each.fits_weights for each in beside}["native"] == fits


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_kernels_that_are_not_compiled_are_an_error(host: Any, compiled: Path, engine: str) -> None:
    """Not another engine without a word, where a checkout was updated and not compiled."""
    host("amx")
    (compiled / library.LIBRARIES["aarch64"]).unlink()
    with pytest.raises(
        QuantizationError, match=r"native for aarch64 are not built: .*aarch64\.so is missing"
    ) as caught:
        arm(aarch64={"engine": engine})
    assert "make kernels" in (caught.value.hint or "")
    assert [each.engine for each in arm(aarch64={"engine": "qnnpack"})] == ["qnnpack"]


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_so_is_it_where_the_host_itself_cannot_load_them(host: Any, compiled: Path, engine: str) -> None:
    """Without its library the engine is not among those that are supported."""
    host("avx512_vnni")
    (compiled / library.LIBRARIES["x86_64"]).unlink()
    with pytest.raises(QuantizationError, match=r"native for x86_64 are not built: .*x86_64\.so is missing"):
        engines(engine=engine, supported=["onednn", "x86", "fbgemm"])


def test_kernels_that_do_not_run_here_are_no_matter_of_torch(host: Any, compiled: Path) -> None:
    host("avx512_vnni")
    with pytest.raises(QuantizationError, match='engine = "native": ') as caught:
        engines(engine="native", supported=["fbgemm"])
    assert "torch" not in str(caught.value)


def test_a_recipe_may_name_every_engine_that_has_a_record() -> None:
    assert set(get_args(X86Engine)) == {name for name, engine in ENGINES.items() if "x86_64" in engine.cpus}
    assert set(get_args(ArmEngine)) == {name for name, engine in ENGINES.items() if "aarch64" in engine.cpus}
    assert library.ENGINE in ENGINES  # the name that the runtime's loader asks for


def test_no_two_engines_have_one_place_in_a_race() -> None:
    for built_for in ("avx2", "avx512_vnni", "neon"):
        places = [engine.places[built_for] for engine in raced(built_for)]
        assert places == list(range(len(places)))


ROOT = Path(cpupack.__file__).parent
MAY_NAME_ENGINES = ("runtime/", "peers/", "comparison/", "stages/quantize/")
"""Quantizers know what is wrong with their own engines, the runtime cannot see the records, peers are others'."""


def test_the_build_asks_the_record_and_not_for_a_name() -> None:
    asked = set()
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and not file.startswith(MAY_NAME_ENGINES):
                text = ast.unparse(node)
                constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                if "library.ENGINE" in text or ("engine" in text and constants & set(ENGINES)):
                    asked.add(f"{file}: {text}")
    assert not asked
