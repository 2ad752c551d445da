"""``export --c``: what it writes runs without Python, gives the runner's bytes, and never ends a process."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import cpupack.runtime
from cpupack.runtime import cli
from cpupack.runtime.engine import library as native_library
from cpupack.runtime.errors import InputError, IntegrityError
from cpupack.runtime.export import model_file, write
from cpupack.runtime.export.limits import Limit, limits_of
from cpupack.runtime.export.write import export_c
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.rows import batch_of
from cpupack.runtime.runner import Runner
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.stages.package import stage_project
from helpers.c_programs import CALLER, EMPTY, call, compile_c, needs_cc, needs_cxx, numbers
from helpers.lowered import needs_kernels
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.tiny_wheel import INPUT_SHAPE, LABELS, TinyWheel

CHANNELS, HEIGHT, WIDTH = INPUT_SHAPE
EACH = CHANNELS * HEIGHT * WIDTH
PIXELS = np.random.default_rng(3).integers(0, 256, (5, HEIGHT, WIDTH, CHANNELS), dtype=np.uint8)
FLOATS = np.random.default_rng(4).standard_normal((5, CHANNELS, HEIGHT, WIDTH)).astype(np.float32)
BY_PIXELS = np.ascontiguousarray(FLOATS.transpose(0, 2, 3, 1))

pytestmark = needs_kernels


def _make(root: Path, tiny: TinyWheel) -> None:
    for kind in ("images", "arrays"):
        (root / kind).mkdir()
        contents = native_contents(tiny, root / kind, images=kind == "images")
        staged = stage_project(contents, root / kind / "project")
        export_c(staged.package_dir, root / kind / "c")
    (root / "caller.c").write_text(CALLER)


@pytest.fixture(scope="session")
def made(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "exported", lambda root: _make(root, tiny))


@pytest.fixture(scope="session")
def package_of(made: Path) -> dict[str, Path]:
    return {kind: made / kind / "project" / "src" / "tiny_int8" for kind in ("images", "arrays")}


@pytest.fixture(scope="session")
def exported(made: Path) -> Path:
    return made / "images" / "c"


@pytest.fixture(scope="session")
def caller(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler; with apt: gcc")
    return compile_c(made / "images" / "c", made / "caller.c", tmp_path_factory.mktemp("caller") / "caller")


# --- what is written


def test_the_directory_has_what_the_readme_lists(exported: Path, package_of: dict[str, Path]) -> None:
    listed = re.findall(r"^\| `([\w.]+)` \|", (exported / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted([*listed, "README.md"]) == sorted(path.name for path in exported.iterdir())
    library = package_of["images"] / "_runtime" / native_library.LIBRARIES["x86_64"]
    assert (exported / "libcpupack.so").read_bytes() == library.read_bytes()
    assert (exported / "labels.txt").read_text().splitlines() == list(LABELS)
    text = (exported / "README.md").read_text()
    assert "$" not in text.replace("'$ORIGIN'", "")
    assert "uint8 pixels, 8 x 8, red, green, blue" in text


def test_the_model_file_begins_with_its_header(exported: Path, package_of: dict[str, Path]) -> None:
    data = (exported / "model.cpk").read_bytes()
    magic, version, mask, size = struct.unpack_from("<8siiq", data)
    assert (magic, version, size) == (b"CPKMODEL", 2, len(data) - 64)
    assert struct.unpack_from("<q", data, 40) == (0,)  # limits
    assert 0 <= mask <= 255
    words = np.frombuffer(data[64:] + bytes(-size % 8), "<u8")
    placed = sum(int(word) * place for place, word in enumerate(words, start=1))
    both = (mask + sum(map(int, words))) % 2**64, (mask + placed) % 2**64
    assert struct.unpack_from("<QQ", data, 24) == both


def test_the_command_says_what_it_wrote(
    package_of: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(package_of["images"], ["export", "--c", str(tmp_path / "one"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["files"] == {path.name: path.stat().st_size for path in (tmp_path / "one").iterdir()}
    assert cli.main(package_of["images"], ["export", "--c", str(tmp_path / "two")]) == 0
    assert f"{tmp_path / 'two'}/README.md" in capsys.readouterr().out


def test_what_is_there_is_replaced_only_with_force(package_of: dict[str, Path], tmp_path: Path) -> None:
    export_c(package_of["images"], tmp_path)
    (tmp_path / "example.c").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md is there already; name another directory, or add --force"):
        export_c(package_of["images"], tmp_path)
    assert (tmp_path / "example.c").read_text() == "mine"
    export_c(package_of["images"], tmp_path, force=True)
    assert (tmp_path / "example.c").read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_export_left_is_swept_and_what_another_writes_stays(
    package_of: dict[str, Path], tmp_path: Path
) -> None:
    for name in (".export-killed", ".export-alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.cpk").write_bytes(b"half")
    alive = os.open(tmp_path / ".export-alive", os.O_RDONLY)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        export_c(package_of["images"], tmp_path)
    finally:
        os.close(alive)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".export-alive"]


def test_a_directory_that_cannot_be_written_is_refused(package_of: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/no")):
        with pytest.raises(InputError, match="cannot write"):
            export_c(package_of["images"], place)


def test_a_model_that_needs_torch_is_refused_with_the_reason(tiny: TinyWheel, tmp_path: Path) -> None:
    staged = stage_project(tiny.contents(), tmp_path / "project")
    with pytest.raises(InputError, match=r"tiny-int8 1\.0\.0 cannot be exported to C, because its engine is torch's"):
        export_c(staged.package_dir, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_package_that_was_changed_is_refused(package_of: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(package_of["images"], tmp_path / "tiny_int8"))
    (copy / "labels.txt").write_text("a\nb\nc\n")
    with pytest.raises(IntegrityError, match=r"labels\.txt is not the file that was built"):
        export_c(copy, tmp_path / "c")


# --- the same bytes as the runner


@needs_cc
@pytest.mark.parametrize("kind", ["images", "arrays"])
def test_the_example_compiles_as_the_readme_says_and_prints_what_the_runner_returns(
    made: Path, package_of: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(made / kind / "c", tmp_path / "moved"))
    (line,) = re.findall(r"^    (cc .*)$", (copy / "README.md").read_text(), flags=re.MULTILINE)
    done = subprocess.run(["/bin/sh", "-c", line], cwd=copy, env=EMPTY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (copy / "input.raw").write_bytes((PIXELS[0] if kind == "images" else BY_PIXELS[0]).tobytes())
    ran = call(copy / "example", copy / "model.cpk", copy / "input.raw", 2)
    assert ran.returncode == 0, ran.stderr
    with Runner(package_of[kind]) as runner:
        expected = runner((PIXELS if kind == "images" else FLOATS)[:1])[0]
    np.testing.assert_array_equal(numbers(ran.stdout), expected)
    whole = (copy / "input.raw").read_bytes()
    for other in (whole + b"x", whole[:-1]):  # another image, or float64 values
        (copy / "input.raw").write_bytes(other)
        assert call(copy / "example", copy / "model.cpk", copy / "input.raw").stderr.decode() == (
            f"{copy}/input.raw is not a file of the {len(whole)} bytes that the model takes\n"
        )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_pixels_and_floats_of_any_batch_give_the_runners_bytes(
    made: Path, package_of: dict[str, Path], caller: Path, batch: int, threads: int
) -> None:
    outputs = len(LABELS)
    given = {"pixels": (PIXELS[:batch], PIXELS[:batch]), "floats": (FLOATS[:batch], BY_PIXELS[:batch])}
    for package, kinds in (("images", ("pixels", "floats")), ("arrays", ("floats",))):
        with Runner(package_of[package]) as runner:
            for kind in kinds:
                to_runner, to_c = given[kind]
                model, sizes = made / package / "c" / "model.cpk", (batch * EACH, batch * outputs)
                done = call(caller, model, threads, batch, 2, kind, *sizes, stdin=to_c.tobytes())
                assert done.returncode == 0, done.stderr
                assert done.stdout == 2 * runner(to_runner).tobytes()


@needs_cxx
def test_the_header_is_for_cpp_too(exported: Path, tmp_path: Path) -> None:
    for number, standard in enumerate(("-std=c++11", "-std=c++20")):
        program = compile_c(exported, exported / "example.c", tmp_path / str(number), "c++", "-x", "c++", standard)
        (tmp_path / "input.raw").write_bytes(PIXELS[0].tobytes())
        assert call(program, exported / "model.cpk", tmp_path / "input.raw").returncode == 0


@needs_cc
def test_the_example_frees_what_it_takes(exported: Path, tmp_path: Path) -> None:
    program = compile_c(exported, exported / "example.c", tmp_path / "leaks", "cc", "-fsanitize=address")
    (tmp_path / "input.raw").write_bytes(PIXELS[0].tobytes())
    ran = call(program, exported / "model.cpk", tmp_path / "input.raw")
    assert (ran.returncode, ran.stderr.decode()) == (0, "")


@needs_cc
def test_the_header_needs_nothing_before_it_and_is_plain_c99(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.c").write_text('#include "cpupack.h"\n#include "cpupack.h"\nint main(void) { return 0; }\n')
    compile_c(exported, tmp_path / "alone.c", tmp_path / "alone", "cc", "-std=c99")


# --- what is wrong is a sentence


def failure(caller: Path, *arguments: object, stdin: bytes = PIXELS[:1].tobytes()) -> str:
    done = call(caller, *map(str, arguments), stdin=stdin)
    assert done.returncode in (3, 5), (done.returncode, done.stderr)  # a signal would be negative
    return done.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1, "pixels", EACH - 1, 3), "191 pixels are given; 1 samples of 8 x 8 x 3 take 192 each"),
        ((2, "pixels", EACH, 6), "192 pixels are given; 2 samples of 8 x 8 x 3 take 192 each"),
        ((1, "pixels", EACH, 2), "there is room for 2 results; 1 samples have 3 each"),
        ((0, "pixels", 0, 0), "the batch is 0; it is from 1 to 65536"),
        ((-1, "pixels", EACH, 3), "the batch is -1"),
        ((1 << 40, "pixels", EACH, 3), "the batch is 1099511627776"),
    ],
)
def test_a_wrong_size_is_an_error(exported: Path, caller: Path, arguments: tuple[object, ...], said: str) -> None:
    batch, *rest = arguments
    assert said in failure(caller, exported / "model.cpk", 1, batch, 1, *rest)


def test_a_kind_that_the_model_does_not_take_is_an_error(made: Path, caller: Path) -> None:
    said = failure(caller, made / "arrays" / "c" / "model.cpk", 1, 1, 1, "pixels", EACH, 3)
    assert said == "run: this model does not take pixels\n"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_an_error(exported: Path, caller: Path, value: float) -> None:
    batch = BY_PIXELS[:2].copy()
    batch[1].flat[7] = value
    said = failure(caller, exported / "model.cpk", 1, 2, 1, "floats", 2 * EACH, 6, stdin=batch.tobytes())
    assert said == "run: value 7 of sample 1 is not finite\n"


def test_values_that_are_too_large_for_sums_are_an_error_as_in_python(exported: Path, caller: Path) -> None:
    batch = BY_PIXELS[:1].copy()
    batch.flat[5] = -3e38
    said = failure(caller, exported / "model.cpk", 1, 1, 1, "floats", EACH, 3, stdin=batch.tobytes())
    assert said == "run: value 5 of sample 0 is -3e+38; it must be at most 1e+30\n"
    with pytest.raises(InputError, match="at most 1e\\+30"):
        batch_of(TensorSpec("x", (EACH,)), batch.reshape(1, -1))


INPUTS = (
    TensorSpec("ids", (4,), "int64", vocabulary=10),
    TensorSpec("gate", (), "bool"),
    TensorSpec("columns", (2, 2), "int64", vocabulary=20, vocabularies=(3, 20)),
    TensorSpec("free", (2,), "float32"),
    TensorSpec("length", (), "int64", vocabulary=8, blank=0.0),
    TensorSpec("mask", (3,), "int64", vocabulary=2, blank=0.0),
    TensorSpec("code", (1,), "uint8"),
    TensorSpec("any", (1,), "int64"),
    TensorSpec("time", (5, 2), "float32", names=("time", "")),
)
SOUND = [1, 2, 9, 0, 1, 2, 19, 0, 0, 0.5, -7.25, 7, 0, 1, 0, 255, -(2**24), *[0.25] * 10, 5]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, 1.5, "value 0 of sample 1 is 1.5; it must be a whole number from 0 to 9"),
        (3, 10, "value 3 of sample 1 is 10; it must be a whole number from 0 to 9"),
        (3, -1, "value 3 of sample 1 is -1; it must be a whole number from 0 to 9"),
        (4, 5, "value 4 of sample 1 is 5; it must be a whole number from 0 to 1"),
        (7, 3, "value 7 of sample 1 is 3; it must be a whole number from 0 to 2"),
        (8, 20, "value 8 of sample 1 is 20; it must be a whole number from 0 to 19"),
        (11, 0, "value 11 of sample 1 is 0; it must be a whole number from 1 to 7"),
        (13, 0, "values 12 to 14 of sample 1 all are 0, which makes a sequence without a step"),
        (15, 256, "value 15 of sample 1 is 256; it must be a whole number from 0 to 255"),
        (16, 2.0**25, "value 16 of sample 1 is 33554432; it must be a whole number from -16777216 to 16777216"),
        (27, 6, "value 27 of sample 1 is 6; it must be 5"),
    ],
)
def test_values_that_an_input_cannot_have_are_an_error(
    made: Path, caller: Path, tmp_path: Path, place: int, value: float, said: str
) -> None:
    """C gives every input as float32. The model is one of more values, which are free."""
    program = np.frombuffer((made / "arrays" / "c" / "model.cpk").read_bytes()[64:], np.uint8)
    path = tmp_path / "model.cpk"
    path.write_bytes(model_file.beginning(program, None, limits_of(INPUTS)) + program.tobytes())
    batch = np.full((2, EACH), 0.5, np.float32)
    batch[:, : len(SOUND)] = SOUND
    arguments = path, 1, 2, 1, "floats", 2 * EACH, 6
    assert call(caller, *arguments, stdin=batch.tobytes()).returncode == 0
    batch[1, place] = value
    assert failure(caller, *arguments, stdin=batch.tobytes()) == f"run: {said}\n"


@pytest.mark.parametrize(
    "limit", [Limit(2, 0, 1, 1, 0, 1), Limit(0, EACH, 1, 1, 0, 1), Limit(0, -1, 1, 1, 0, 1), Limit(0, 0, 0, 1, 0, 1),
              Limit(0, 0, 2, EACH, 0, 1), Limit(1, 0, 2**31 - 1, 2**31 - 1, 0, 1), Limit(0, 0, 1, 0, 0, 1)]
)  # fmt: skip
def test_limits_of_values_that_the_model_does_not_have_are_an_error(
    made: Path, caller: Path, tmp_path: Path, limit: Limit
) -> None:
    program = np.frombuffer((made / "arrays" / "c" / "model.cpk").read_bytes()[64:], np.uint8)
    (tmp_path / "model.cpk").write_bytes(model_file.beginning(program, None, [limit]) + program.tobytes())
    said = failure(caller, tmp_path / "model.cpk", 1, 1, 1, "floats", EACH, 3)
    assert "is damaged: it limits values that its model does not take; copy it again" in said


@pytest.mark.parametrize("threads", [0, -1, 4097])
def test_a_number_of_threads_that_cannot_be_is_an_error(exported: Path, caller: Path, threads: int) -> None:
    said = failure(caller, exported / "model.cpk", threads, 1, 1, "pixels", EACH, 3)
    assert said == "load: the number of threads is not from 1 to 4096\n"


def test_a_missing_file_or_another_one_is_an_error(exported: Path, caller: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, said in (
        (tmp_path / "none.cpk", "No such file or directory"),
        (tmp_path, "is not a file"),
        (tmp_path / "empty", "is not a model that `export --c` wrote"),
        (exported / "cpupack.h", "is not a model that `export --c` wrote"),
        (Path("/dev/zero"), "is not a file"),
    ):
        assert said in failure(caller, path, 1, 1, 1, "pixels", EACH, 3)


def test_every_damaged_byte_is_found(exported: Path, caller: Path, tmp_path: Path) -> None:
    whole = (exported / "model.cpk").read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(64), *map(int, rng.integers(64, len(whole), 40)), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "model.cpk").write_bytes(damaged)
        done = call(caller, tmp_path / "model.cpk", 1, 1, 1, "pixels", EACH, 3, stdin=PIXELS[:1].tobytes())
        assert done.returncode == 3, place
        assert done.stderr.startswith(b"load: ")
    for size in (0, 1, 63, 64, 100, len(whole) - 1):
        (tmp_path / "model.cpk").write_bytes(whole[:size])
        assert "load: " in failure(caller, tmp_path / "model.cpk", 1, 1, 1, "pixels", EACH, 3)
    (tmp_path / "model.cpk").write_bytes(whole + b"x")
    assert f"has {len(whole) + 1} bytes and should have {len(whole)}" in failure(
        caller, tmp_path / "model.cpk", 1, 1, 1, "pixels", EACH, 3
    )


@pytest.mark.parametrize("size", [2**63 - 1, 2**40 + 1, -1, -(2**63)])
def test_a_size_that_cannot_be_is_said(exported: Path, caller: Path, tmp_path: Path, size: int) -> None:
    """libFuzzer found that the header's own size was added to the largest of them."""
    damaged = bytearray((exported / "model.cpk").read_bytes())
    damaged[16:24] = size.to_bytes(8, "little", signed=True)
    (tmp_path / "model.cpk").write_bytes(damaged)
    said = failure(caller, tmp_path / "model.cpk", 1, 1, 1, "pixels", EACH, 3)
    assert f"says that it has {size} bytes after its header; copy it again" in said


def test_a_program_that_was_damaged_before_it_was_summed_ends_no_process(
    exported: Path, caller: Path, tmp_path: Path
) -> None:
    """The header, the buffers and the layers, which say where to read and write."""
    program = np.frombuffer((exported / "model.cpk").read_bytes()[64:], np.uint8)
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = program.copy()
        damaged[int(rng.integers(0, 64 + 48 * 6 + 160 * 6))] ^= np.uint8(1 << int(rng.integers(8)))
        (tmp_path / "model.cpk").write_bytes(model_file.beginning(damaged, 255) + damaged.tobytes())
        done = call(caller, tmp_path / "model.cpk", 2, 1, 1, "pixels", EACH, 3, stdin=PIXELS[:1].tobytes())
        assert done.returncode in (0, 3, 5), done.returncode
        refused += done.returncode == 3
    assert refused > 10


def test_the_number_of_another_version_is_said(exported: Path, caller: Path, tmp_path: Path) -> None:
    data = bytearray((exported / "model.cpk").read_bytes())
    data[8] = 7
    (tmp_path / "model.cpk").write_bytes(data)
    said = failure(caller, tmp_path / "model.cpk", 1, 1, 1, "pixels", EACH, 3)
    assert "has version 7 and this library reads 2; export both together" in said


# --- the header and the library


def test_every_function_of_the_header_is_exported(exported: Path) -> None:
    header = (exported / "cpupack.h").read_text()
    functions = re.findall(r"\b(cpupack_\w+)\((?=[^)]*\);)", header.replace("\n", " "))
    assert set(functions) == {
        "cpupack_load", "cpupack_free", "cpupack_shape_of", "cpupack_run_pixels", "cpupack_run_floats",
        "cpupack_last_error",
    }  # fmt: skip
    library = native_library.open_library()
    for name in functions:
        assert hasattr(library, name)


def test_the_readme_says_where_a_state_comes_from() -> None:
    rows = write._places((TensorSpec("x", (4,)), TensorSpec("h", (2,), default=0.0, state="next_h")), None)
    assert rows[-1] == "| 4 to 5 | `h`, an array (2,); 0 at the beginning, then what `next_h` was in the call before |"


def test_the_example_is_forty_lines_at_most() -> None:
    example = Path(cpupack.runtime.__file__).parent / "export" / "c" / "example.c"
    assert len(example.read_text().splitlines()) <= 40


def test_the_shipped_sources_are_hashed(package_of: dict[str, Path]) -> None:
    assert {"_runtime/export/c/cpupack.h", "_runtime/export/c/example.c", "_runtime/export/c/README.md"} <= set(
        read_manifest(package_of["images"]).files
    )
