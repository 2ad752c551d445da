"""The native library: how it is compiled, what it needs of a system, and that it ships where it belongs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from cpupack.artifacts import StagedProject
from cpupack.errors import PackagingError
from cpupack.runtime.engine import library as native_library
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.manifest import check_files, hash_file, read_manifest
from cpupack.stages.package import build_wheel, stage_project
from cpupack.targets import ENGINES
from cpupack.wheel.inspect import format_inspection, inspect
from helpers.tiny_wheel import TinyWheel

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = native_library.path_for("x86_64")
SHIPPED = f"_runtime/{native_library.LIBRARIES['x86_64'].as_posix()}"


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project of one source that compiles."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "cpupack" / "runtime").mkdir(parents=True)
    (tmp_path / "kernels" / "one.c").write_text("int cpupack_one(void) { return 1; }\n")
    shutil.copy(ROOT / "kernels" / "exports.map", tmp_path / "kernels")
    return tmp_path


def native_project(tiny: TinyWheel, directory: Path) -> StagedProject:
    contents = tiny.contents()
    target = dataclasses.replace(contents.target, engine=native_library.ENGINE)
    return stage_project(dataclasses.replace(contents, target=target), directory)


# --- compiling


def test_the_hook_and_the_loader_mean_one_file(hook: ModuleType) -> None:
    assert f"cpupack/runtime/{native_library.LIBRARIES['x86_64'].as_posix()}" == hook.LIBRARY


def test_it_is_compiled_again_only_after_a_change(hook: ModuleType, checkout: Path) -> None:
    libraries = hook.compile_kernels(checkout)
    assert all(b"cpupack_one" in library.read_bytes() for library in libraries)
    stamps = [library.stat().st_mtime_ns for library in libraries]
    assert [library.stat().st_mtime_ns for library in hook.compile_kernels(checkout)] == stamps
    source = checkout / "kernels" / "one.c"
    source.write_text("int cpupack_two(void) { return 2; }\n")
    assert all(b"cpupack_two" in library.read_bytes() for library in hook.compile_kernels(checkout))
    assert {path.name for path in libraries[0].parent.iterdir()} == {library.name for library in libraries}


def test_each_library_is_for_its_cpu_and_has_no_sources_of_another(hook: ModuleType, checkout: Path) -> None:
    (checkout / "kernels" / "x86").mkdir()
    (checkout / "kernels" / "x86" / "own.c").write_text("int cpupack_x86(void) { return __builtin_cpu_init(), 1; }\n")
    x86_64, aarch64 = hook.compile_kernels(checkout)
    machines = [int.from_bytes(library.read_bytes()[18:20], "little") for library in (x86_64, aarch64)]
    assert machines == [62, 183]  # EM_X86_64, EM_AARCH64
    assert [b"cpupack_x86" in library.read_bytes() for library in (x86_64, aarch64)] == [True, False]


def test_a_mistake_in_c_is_shown_and_keeps_the_old_library(hook: ModuleType, checkout: Path) -> None:
    before = hook.compile_kernels(checkout)[0].read_bytes()
    (checkout / "kernels" / "one.c").write_text("int cpupack_one(void) { return nothing; }\n")
    with pytest.raises(RuntimeError, match=r"do not compile for x86_64:\n.*one\.c:1:.*error"):
        hook.compile_kernels(checkout)
    assert (checkout / hook.LIBRARY).read_bytes() == before


def test_without_a_compiler_it_says_what_to_install(
    hook: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, hook.COMPILER, None)
    monkeypatch.setattr(hook.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install ziglang"):
        hook.compile_kernels(checkout)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", [pytest.param("x86_64", marks=pytest.mark.night), "aarch64"])
def test_the_sources_make_the_library_of_this_checkout_byte_for_byte(
    hook: ModuleType, cpu: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    shutil.copytree(ROOT / hook.PUBLIC_HEADERS, tmp_path / hook.PUBLIC_HEADERS)
    library = tmp_path / hook.LIBRARIES[cpu]
    hook.compile_library(tmp_path, library, (sys.executable, "-m", hook.COMPILER, "cc", *hook.FLAGS_OF[cpu]), cpu)
    assert hash_file(library) == hash_file(LIBRARY.with_name(library.name))


# --- what it needs


@pytest.mark.parametrize(("cpu", "loader"), [("x86_64", "ld-linux-x86-64.so.2"), ("aarch64", "ld-linux-aarch64.so.1")])
def test_it_needs_the_c_library_of_manylinux_2_28_and_no_other(cpu: str, loader: str) -> None:
    data = LIBRARY.with_name(f"cpupack_int8.{cpu}.so").read_bytes()
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_([\d.]+)", data)}
    assert versions
    assert max(versions) <= (2, 28)
    # PEP 600 lets these be taken from the system; ld-linux is that of thread-local variables.
    libraries = {found.decode() for found in re.findall(rb"(?:lib[\w+-]+|ld-linux[\w-]*)\.so\.\d+", data)}
    assert "libc.so.6" in libraries
    assert libraries <= {"libc.so.6", "libm.so.6", "libpthread.so.0", loader}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="there is no objdump; with apt: binutils")
def test_a_cpu_without_avx2_can_be_told_so() -> None:
    """What finds out what the CPU has, and the entry of programs in C, use nothing that such a CPU lacks."""
    start = library_symbols()["cpupack_load"]
    command = ["objdump", "-d", "--no-show-raw-insn", str(LIBRARY)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    code = {int(at, 16): text.split() for at, text in (line.split(":\t") for line in lines if ":\t" in line)}
    places = sorted(code)

    def until(first: int, ends: tuple[str, ...]) -> list[str]:
        found = []
        for place in places[places.index(first) :]:
            found.append(code[place][0])
            if code[place][0] in ends:
                return found
        raise AssertionError("no end")

    asked = [place for place in places if code[place][0] in {"cpuid", "xgetbv"}]
    assert asked
    entry = until(start, ("jmp",))
    detecting = [code[place][0] for place in places if asked[0] <= place <= asked[-1]]
    assert len(entry) > 10
    assert len(detecting) > 20
    newer = re.compile(r"v[a-z]|andn|bextr|bl[s]|bzhi|m?ulx|pdep|pext|[rs][ahol][lrx]x$|lzcnt|tzcnt|movbe|popcnt")
    assert [each for each in (*entry, *detecting) if newer.match(each)] == []


def library_symbols() -> dict[str, int]:
    """Return where the library's functions begin."""
    done = subprocess.run(["nm", "-D", str(LIBRARY)], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    return {row[2].partition("@")[0]: int(row[0], 16) for row in rows if len(row) == 3}


def test_it_carries_no_path_of_the_machine_it_was_compiled_on() -> None:
    assert str(ROOT).encode() not in LIBRARY.read_bytes()
    assert b"/tmp/" not in LIBRARY.read_bytes()


# --- shipping


def test_a_native_wheel_has_it_hashed_and_in_its_bill_of_materials(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = native_project(tiny, tmp_path / "project")
    entry = read_manifest(staged.package_dir).files[SHIPPED]
    assert (entry.sha256, entry.bytes) == (hash_file(LIBRARY), LIBRARY.stat().st_size)
    wheel = build_wheel(staged, tmp_path / "dist").path
    assert wheel.name.endswith("-py3-none-manylinux_2_28_x86_64.whl")
    inspection = inspect(wheel)
    assert inspection.problems == ()
    text = format_inspection(inspection)
    assert f"tiny_int8/{SHIPPED}" in text
    assert "native (kernels in the wheel)" in text
    with zipfile.ZipFile(wheel) as archive:
        bom = json.loads(archive.read("tiny_int8-1.0.0.dist-info/sboms/tiny_int8.cdx.json"))
    (component,) = (each for each in bom["components"] if each["name"] == "cpupack-kernels")
    assert component["hashes"] == [{"alg": "SHA-256", "content": hash_file(LIBRARY)}]
    assert component["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (wheel_needs,) = (each["dependsOn"] for each in bom["dependencies"] if each["ref"] == "wheel")
    assert component["bom-ref"] in wheel_needs


def test_a_changed_library_is_noticed_before_it_is_loaded(tiny: TinyWheel, tmp_path: Path) -> None:
    package_dir = native_project(tiny, tmp_path / "project").package_dir
    (package_dir / SHIPPED).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match=r"cpupack_int8\.x86_64\.so is not the file that was built"):
        check_files(package_dir, read_manifest(package_dir))


def test_wheels_of_other_engines_do_not_have_it(tiny: TinyWheel, tmp_path: Path) -> None:
    for cpu in ("x86_64", "aarch64"):
        staged = stage_project(tiny.contents(cpu=cpu), tmp_path / cpu)
        assert SHIPPED not in read_manifest(staged.package_dir).files
        assert "cpupack-kernels" not in (staged.root / "sbom" / "tiny_int8.cdx.json").read_text()


def test_no_native_wheel_without_the_library(tiny: TinyWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = dataclasses.replace(ENGINES["native"], libraries={"x86_64": Path("kernels/not_built.so")})
    monkeypatch.setattr("cpupack.targets.target.ENGINES", {**ENGINES, "native": without})
    with pytest.raises(PackagingError, match=r"not_built\.so"):
        native_project(tiny, tmp_path / "project")
