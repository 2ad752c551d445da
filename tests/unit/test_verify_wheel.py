"""``inspect --verify``: damage found and named before anything is loaded; forged programs refused by the kernels."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpupack.cli import main
from cpupack.errors import CpupackError, UsageError
from cpupack.runtime.engine.program import PROGRAM_NOTE
from cpupack.runtime.engine.program_format import MAGIC, VERSION
from cpupack.stages.package import build_wheel, finish, stage_project
from cpupack.wheel import limits
from cpupack.wheel.build_page import read_report
from cpupack.wheel.verify import format_verified, verify_wheel
from helpers.build_facts import PLAN
from helpers.forged import forge, rewrite
from helpers.native_wheel import native_contents
from helpers.once import once
from helpers.tiny_wheel import TinyWheel

PACKAGE = "tiny_int8"
MODEL = f"{PACKAGE}/model.pt"


@pytest.fixture(scope="module")
def native(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(directory: Path) -> None:
        staged = stage_project(native_contents(tiny, directory), directory / "project")
        build_wheel(finish(staged, PLAN, {"report": {}}), directory / "dist")

    (found,) = once(tmp_path_factory, "verify-finished", make).glob("dist/*.whl")
    return found


@pytest.fixture(scope="module")
def of_torch(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("verify-torch")
    return build_wheel(stage_project(tiny.contents(), directory / "project"), directory / "dist").path


def test_a_wheel_as_it_was_built(native: Path, of_torch: Path) -> None:
    found = verify_wheel(native)
    assert found.problems == ()
    assert "the native kernels, which take it" in format_verified(found)
    assert json.loads(json.dumps(found.to_dict()))["integrity"] == {"ok": True, "problems": []}
    found = verify_wheel(of_torch)
    assert found.problems == ()
    assert "TorchScript: code" in found.model


def test_a_program_of_another_format_is_not_called_damaged(native: Path, tmp_path: Path) -> None:
    """A wheel that another cpupack built: its hashes are right, and only its own kernels can judge its program."""
    with zipfile.ZipFile(native) as archive:
        model = archive.read(MODEL)
    head = np.array([MAGIC, VERSION], "<i4").tobytes()
    later = model.replace(head, np.array([MAGIC, VERSION + 1], "<i4").tobytes())
    assert (model.count(head), len(later)) == (1, len(model))
    found = verify_wheel(forge(native, tmp_path / native.name, PACKAGE, {MODEL: later}))
    assert found.problems == ()
    assert f"of format {VERSION + 1}" in found.model
    assert "was not checked" in found.model


@pytest.mark.parametrize("name", ["model.pt", "golden.npz", "_runtime/runner.py", "recipe.toml", "build.json"])
@pytest.mark.parametrize("fault", ["flipped", "missing", "truncated", "added"])
def test_every_fault_is_named(native: Path, tmp_path: Path, fault: str, name: str) -> None:
    member = f"{PACKAGE}/{name}"
    with zipfile.ZipFile(native) as archive:
        data = archive.read(member)
    changes = {
        "flipped": {member: bytes([data[0] ^ 1]) + data[1:]},
        "missing": {member: None},
        "truncated": {member: data[:-1]},
        "added": {f"{PACKAGE}/added.py": b"import os"},
    }[fault]
    found = verify_wheel(rewrite(native, tmp_path / native.name, changes))
    named = f"{PACKAGE}/added.py" if fault == "added" else member
    assert any(problem.startswith(named) for problem in found.problems)
    assert found.model == "not looked at, because files differ"


def test_the_command_says_which_and_exits_with_six(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    bad = rewrite(native, tmp_path / native.name, {MODEL: b"x"})
    for wheel, code in ((native, 0), (bad, 6)):
        for options in ([], ["--json"]):
            with pytest.raises(SystemExit) as left:
                main(["inspect", str(wheel), "--verify", *options])
            assert left.value.code == code
    out = capsys.readouterr().out
    assert f"{MODEL}: differs from the manifest" in out


def record_of(model: bytes, change: str, data: bytes | None) -> bytes:
    """Return a saved model with one record replaced, stored as torch stores it."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            archive.writestr(name, data if name.endswith(change) and data is not None else old.read(name))
    return new.getvalue()


def model_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(MODEL)


@pytest.mark.parametrize("cut", [0, 20, 64, 500, -1])
def test_a_forged_program_is_refused_although_all_hashes_are_right(native: Path, tmp_path: Path, cut: int) -> None:
    model = model_of(native)
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("constants/0"))
        program = archive.read(name)
    forged = forge(native, tmp_path / native.name, PACKAGE, {MODEL: record_of(model, "constants/0", program[:cut])})
    found = verify_wheel(forged)
    assert found.inspection.problems == ()  # no hash tells
    assert found.problems
    assert found.problems[0].startswith(MODEL)


def test_a_program_of_another_model_is_refused(native: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(native) as archive:
        manifest = json.loads(archive.read(f"{PACKAGE}/manifest.json"))
    manifest["model"]["output_shape"] = manifest["outputs"][0]["shape"] = [7]
    changed = {f"{PACKAGE}/manifest.json": json.dumps(manifest).encode()}
    found = verify_wheel(forge(native, tmp_path / native.name, PACKAGE, changed))
    assert any("the program has 3 outputs, the manifest 7" in problem for problem in found.problems)
    assert any("golden.npz: output has shape" in problem for problem in found.problems)


class Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("/tmp/cpupack-ran-a-pickle"),))


def test_pickles_are_refused_not_run(native: Path, tmp_path: Path) -> None:
    marker = Path("/tmp/cpupack-ran-a-pickle")
    array, golden = np.empty(1, object), io.BytesIO()
    array[0] = Bomb()
    np.savez(golden, input=array, output=array, output_fp32=array)
    for name, data in ((f"{PACKAGE}/golden.npz", golden.getvalue()), (MODEL, pickle.dumps(Bomb()))):
        found = verify_wheel(forge(native, tmp_path / native.name, PACKAGE, {name: data}))
        if name.endswith(".npz"):
            assert "Object arrays cannot be loaded" in found.problems[0]
        assert not marker.exists()


def test_golden_members_that_are_no_arrays_are_named(native: Path, tmp_path: Path) -> None:
    golden = io.BytesIO()
    with zipfile.ZipFile(golden, "w") as archive:
        for name in ("input", "output", "output_fp32"):
            archive.writestr(f"{name}.npy", b"no array")
    found = verify_wheel(forge(native, tmp_path / native.name, PACKAGE, {f"{PACKAGE}/golden.npz": golden.getvalue()}))
    assert found.problems == (f"{PACKAGE}/golden.npz: cannot be read: input is no array",)


def test_nothing_of_the_wheel_is_imported(native: Path, tmp_path: Path) -> None:
    evil = b"open('ran', 'w')\n"
    changed = {f"{PACKAGE}/__init__.py": evil, f"{PACKAGE}/_runtime/runner.py": evil}
    forged = forge(native, tmp_path / native.name, PACKAGE, changed)
    done = subprocess.run(
        [sys.executable, "-m", "cpupack", "inspect", str(forged), "--verify"],
        cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # its hashes are right: only a signature tells
    assert sorted(path.name for path in tmp_path.iterdir()) == [forged.name]


# --- archives


def archive_with(native: Path, out: Path, *infos: tuple[zipfile.ZipInfo, bytes]) -> Path:
    rewrite(native, out, {})
    with zipfile.ZipFile(out, "a") as archive:
        for info, data in infos:
            archive.writestr(info, data)
    return out


class NamedFile(zipfile.ZipInfo):
    """A file even where it has no name: zipfile looks at the last character."""

    def is_dir(self) -> bool:
        return False


@pytest.mark.parametrize(
    "name", ["../escaped.py", "/etc/escaped", "tiny_int8/../../escaped", "tiny_int8\\..\\escaped", "", "."]
)
def test_names_that_lead_out_are_named(native: Path, tmp_path: Path, name: str) -> None:
    found = verify_wheel(archive_with(native, tmp_path / native.name, (NamedFile(name), b"x")))
    assert any("leads out of the wheel" in problem for problem in found.problems)


def test_symbolic_links_and_doubles_are_named(native: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo(f"{PACKAGE}/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.warns(UserWarning, match="Duplicate name"):
        wheel = archive_with(
            native, tmp_path / native.name, (link, b"/etc/passwd"), (zipfile.ZipInfo(MODEL), b"another")
        )
    problems = " ".join(verify_wheel(wheel).problems)
    assert "link: a symbolic link" in problems
    assert "two files with this name" in problems


def test_bombs_are_refused(native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_TEXT_BYTES", 1 << 20)
    large = zipfile.ZipInfo(f"{PACKAGE}/large.json")
    large.compress_type = zipfile.ZIP_DEFLATED
    wheel = archive_with(native, tmp_path / native.name, (large, b"\0" * ((1 << 20) + 1)))
    assert wheel.stat().st_size < native.stat().st_size * 3  # a thousandth of what it would be
    with pytest.raises(UsageError, match="cpupack reads at most 1,048,576"):
        verify_wheel(wheel)
    monkeypatch.setattr(limits, "MOST_TEXT_BYTES", 1 << 30)
    monkeypatch.setattr(limits, "MOST_BYTES", 1 << 20)
    with pytest.raises(UsageError, match="when unpacked"):
        verify_wheel(wheel)
    monkeypatch.setattr(limits, "MOST_FILES", 3)
    with pytest.raises(UsageError, match="files; cpupack reads at most 3"):
        verify_wheel(wheel)


def test_deep_json_is_refused(native: Path, tmp_path: Path) -> None:
    deep = b"[" * 200_000
    with pytest.raises(UsageError, match=r"manifest\.json"):
        verify_wheel(rewrite(native, tmp_path / native.name, {f"{PACKAGE}/manifest.json": deep}))
    found = verify_wheel(rewrite(native, tmp_path / native.name, {f"{PACKAGE}/build.json": deep}))
    assert any(problem.startswith(f"{PACKAGE}/build.json: cannot be read") for problem in found.problems)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_wheels_are_found_or_refused(native: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes of the archive changed, cut out or put in: never another exception, and no damage passes unseen."""
    whole = native.read_bytes()
    places = st.one_of(st.integers(0, len(whole) - 1), st.integers(len(whole) - 4000, len(whole) - 1))
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = min(data.draw(places), len(mutated) - 1)
        how = data.draw(st.sampled_from(["flip", "set", "cut", "insert"]))
        if how == "flip":
            mutated[place] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "set":
            mutated[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
        elif how == "cut":
            del mutated[place : place + data.draw(st.integers(1, 200))]
        else:
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    path = tmp_path / native.name
    path.write_bytes(mutated)
    for read in (verify_wheel, read_report):
        try:
            found = read(path)
        except CpupackError:
            continue
        if read is verify_wheel and not found.problems:
            assert same_files(whole, bytes(mutated))


def same_files(one: bytes, two: bytes) -> bool:
    """Whether two archives hold the same files: a changed date or comment is no damage."""
    with zipfile.ZipFile(io.BytesIO(one)) as first, zipfile.ZipFile(io.BytesIO(two)) as second:
        return {name: first.read(name) for name in first.namelist()} == {
            name: second.read(name) for name in second.namelist()
        }


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_models_are_taken_or_refused(native: Path, tmp_path: Path, data: st.DataObject) -> None:
    """The model or the golden outputs changed anywhere, all hashes made right: an answer in words, never a crash."""
    name = data.draw(st.sampled_from([MODEL, MODEL, f"{PACKAGE}/golden.npz"]))
    with zipfile.ZipFile(native) as archive:
        model = bytearray(archive.read(name))
    note = max(0, model.find(PROGRAM_NOTE.encode()))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.one_of(st.integers(0, len(model) - 1), st.integers(note, note + 400)))
        model[place % len(model)] = data.draw(st.integers(0, 255))
    forged = forge(native, tmp_path / native.name, PACKAGE, {name: bytes(model)})
    with contextlib.suppress(CpupackError):
        assert verify_wheel(forged).inspection.problems == ()


ODD: list[object] = [
    *(None, True, 0, -1, 2**63, 10**30, 1e308, float("nan")),
    *("", "x", "\0", "../../up", "/root/x", "a\nRUN b", "\ud800", [], {}, [1], {"a": 1}, 3.5),
]


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [each for key, found in inner for each in places(found, (*path, key))]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_forged_facts_are_read_or_refused(
    native: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """What a wheel says of itself is of any form, all hashes right: words, no traceback, and no file elsewhere."""
    name = data.draw(st.sampled_from(["manifest.json", "manifest.json", "build.json", "recipe.toml"]))
    with zipfile.ZipFile(native) as archive:
        whole = archive.read(f"{PACKAGE}/{name}")
    if name == "recipe.toml":
        changed = whole[:20] + data.draw(st.binary(max_size=4)) + whole[20:]
    else:
        facts = json.loads(whole)
        *above, last = data.draw(st.sampled_from(places(facts)))
        place = facts
        for key in above:
            place = place[key]
        place[last] = data.draw(st.sampled_from(ODD))
        changed = json.dumps(facts).encode()
    root = tmp_path_factory.mktemp("forged") / "a" / "b"
    root.mkdir(parents=True)
    wheel = forge(native, root / native.name, PACKAGE, {f"{PACKAGE}/{name}": changed})
    commands = ["inspect"], ["inspect", "--json"], ["inspect", "--layers"], ["report"], ["deploy", "k8s", "--cpus=1"]
    with pytest.raises(SystemExit) as left:
        main([*data.draw(st.sampled_from(commands)), str(wheel)])
    assert left.value.code != 1  # a traceback
    (other,) = root.parent.iterdir()
    assert other == root
    assert {path.name for path in root.parent.parent.iterdir()} == {"a"}


@pytest.mark.parametrize("command", ["inspect", "report"])
@pytest.mark.parametrize("value", ["\ud800", 3.5, None, {}])  # the first is text that no file can hold
@pytest.mark.parametrize("name", ["manifest.json", "build.json"])
def test_forged_texts_are_read_or_refused(
    native: Path, tmp_path: Path, name: str, value: object, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(native) as archive:
        facts = json.loads(archive.read(f"{PACKAGE}/{name}"))
    if name == "manifest.json":
        facts["model"]["source"] = value
    else:
        facts["note"] = value  # read whole, whatever is looked at
    wheel = forge(native, tmp_path / native.name, PACKAGE, {f"{PACKAGE}/{name}": json.dumps(facts).encode()})
    with pytest.raises(SystemExit) as left:
        main([command, str(wheel)])
    assert left.value.code != 1
    if value == "\ud800":
        assert left.value.code != 0
        assert "surrogates not allowed" in "".join(capsys.readouterr())


@pytest.mark.parametrize("key", ["name", "version", "import_name"])
@pytest.mark.parametrize("value", ["/tmp/up", "../up", "a\nRUN up", "", ".", "-x", "a b", "a/b", 7, None])
def test_forged_names_do_not_become_paths_or_lines(native: Path, tmp_path: Path, key: str, value: object) -> None:
    with zipfile.ZipFile(native) as archive:
        manifest = json.loads(archive.read(f"{PACKAGE}/manifest.json"))
    changed = {f"{PACKAGE}/manifest.json": json.dumps(manifest | {key: value}).encode()}
    forged = forge(native, tmp_path / native.name, PACKAGE, changed)
    with pytest.raises(UsageError, match=f"manifest.json is damaged: {key} is "):
        verify_wheel(forged)
