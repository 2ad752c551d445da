"""What the wheel needs of a host, and which hosts it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.runtime.engine.contract import check_cpu, check_torch, model_path
from cpupack.runtime.errors import HostError, IntegrityError
from cpupack.runtime.host import cpu
from cpupack.runtime.manifest import FileEntry, Manifest, read_manifest


@pytest.fixture
def manifest_with(edited: Callable[..., Path]) -> Callable[..., Manifest]:
    return lambda **changes: read_manifest(edited(**changes))


def test_other_family_is_refused(manifest_with: Callable[..., Manifest]) -> None:
    arm = manifest_with(target={"cpu": "aarch64", "isa": None, "engine": "qnnpack"})
    with pytest.raises(
        HostError, match=r"built for aarch64 and this host is x86_64; only a wheel that was built for x86_"
    ):
        check_cpu(arm, "x86_64", "avx512_vnni")
    check_cpu(arm, "aarch64", None)
    x86 = manifest_with(target={"cpu": "x86_64", "isa": "avx2"})
    with pytest.raises(HostError, match=r"built for x86_64 and this host is aarch64; .*build RECIPE --target aarch64"):
        check_cpu(x86, "aarch64", "i8mm")
    with pytest.raises(HostError, match=r"this host is riscv64; cpupack builds wheels for x86_64 and aarch64 alone"):
        check_cpu(x86, "riscv64", None)


@pytest.mark.parametrize(
    ("family", "needs", "has"),
    [(family, needs, has) for family, levels in cpu.LEVELS.items() for needs in levels for has in (None, *levels)],
)
def test_instruction_sets_contain_the_lower_ones(
    manifest_with: Callable[..., Manifest], family: str, needs: str, has: str | None
) -> None:
    order = [None, *cpu.LEVELS[family]]
    manifest = manifest_with(target={"cpu": family, "isa": needs})
    if order.index(has) >= order.index(needs):
        check_cpu(manifest, family, has)
    else:
        lacking = {"x86_64": "no AVX2", "aarch64": "no NEON"}[family]
        with pytest.raises(HostError, match=f"needs {needs} and this CPU has {has or lacking}"):
            check_cpu(manifest, family, has)


def test_unknown_instruction_set_is_damage(manifest_with: Callable[..., Manifest]) -> None:
    with pytest.raises(IntegrityError, match="instruction set 'mmx'"):
        check_cpu(manifest_with(target={"cpu": "x86_64", "isa": "mmx"}), "x86_64", "amx")


@pytest.mark.parametrize(
    ("requires", "installed", "fits"),
    [
        (">=2.10,<2.14", "2.13.0+cpu", True),
        (">=2.10,<2.14", "2.10.0", True),
        (">=2.10,<2.14", "2.14.0", False),
        (">=2.10,<2.14", "2.9.1", False),
        (">=2.10,<2.14", "2.13.0.dev20260101", True),
        (">=2.10, <2.14", "2.13", True),
        ("==2.13.0", "2.13", True),
        (">2.13,<=2.13.1,!=2.13.2", "2.13.1", True),
        (">2.13", "2.13.0", False),
        ("!=2.13", "2.13.0", False),
        ("", "1.0", True),
    ],
)
def test_torch_range(manifest_with: Callable[..., Manifest], requires: str, installed: str, fits: bool) -> None:
    manifest = manifest_with(torch={"requires": requires})
    if fits:
        check_torch(manifest, installed)
    else:
        with pytest.raises(HostError, match="was verified with torch"):
            check_torch(manifest, installed)


def test_unreadable_torch_range_is_damage(manifest_with: Callable[..., Manifest]) -> None:
    with pytest.raises(IntegrityError, match=r"cannot be read at '~=2\.13'"):
        check_torch(manifest_with(torch={"requires": "~=2.13"}), "2.13.0")


def test_exactly_one_model(package_dir: Path, manifest_with: Callable[..., Manifest]) -> None:
    assert model_path(package_dir, read_manifest(package_dir)) == package_dir / "model.pt"
    with pytest.raises(IntegrityError, match="2 model files"):
        model_path(package_dir, manifest_with(files={"other.pt": FileEntry("0" * 64, 1)}))
