"""One hash over the whole package: whatever is edited, added or lost is found and named, and the host is not blamed."""

from __future__ import annotations

import base64
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from cpupack.runtime import cli, manifest
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.manifest import extra_files, hash_file, read_manifest, root_hash
from cpupack.runtime.record import check_record
from cpupack.runtime.runner import Runner
from cpupack.runtime.verify import verify


@pytest.fixture
def package(package_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package_dir, tmp_path / "site" / "tiny_int8"))


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def record(package: Path) -> Path:
    """Write the RECORD that pip would, and return it."""
    found = package.parent / "tiny_int8-1.0.0.dist-info" / "RECORD"
    found.parent.mkdir()
    rows = []
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest = base64.urlsafe_b64encode(bytes.fromhex(hash_file(path))).decode().rstrip("=")
            rows.append(f"{path.relative_to(package.parent)},sha256={digest},{path.stat().st_size}")
    found.write_text("\n".join([*rows, "tiny_int8-1.0.0.dist-info/RECORD,,"]) + "\n")
    return found


@pytest.mark.parametrize(
    "edit", [("0.485", "0.999"), ('"crop": 16', '"crop": 15'), ('"agreement": 1.0', '"agreement": 0.9')]
)
def test_an_edited_manifest_is_named_by_every_command(
    package: Path, edit: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    change(package / "manifest.json", *edit)
    for command in ("info", "verify", "bench", "tune"):
        assert cli.main(package, [command]) == 3
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"{package / 'manifest.json'} is not the file that was built" in err
    with pytest.raises(IntegrityError, match=r"manifest\.json is not the file that was built"):
        Runner(package, check=False)  # one small hash, always looked at


def test_a_process_that_may_open_no_file_has_no_damaged_package(package: Path) -> None:
    code = (
        "import resource, tiny_int8\ntiny_int8.Runner().close()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try: tiny_int8.Runner()\nexcept Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("HostError too many files are open (the process's open files (ulimit -n): 3)"), done


@pytest.mark.parametrize("call", ["predict(photo)", "predict([photo, photo])", "load(photo)", "predict('a.png')"])
def test_a_call_that_may_open_no_file_blames_no_image_and_works_again(native_package_dir: Path, call: str) -> None:
    """Pillow and its decoders are imported with the first image. It was called damaged, or an OSError came out."""
    code = (
        "import io, os, resource, tiny_int8\nfrom PIL import Image\nout = io.BytesIO()\n"
        "Image.new('RGB', (9, 9)).save(out, 'PNG')\nphoto = out.getvalue()\nopen('a.png', 'wb').write(photo)\n"
        "import sys\nfor name in [each for each in sys.modules if each.startswith('PIL.')]: del sys.modules[name]\n"
        "del sys.modules['PIL']\nrunner = tiny_int8.Runner(threads=1, instances=1)\n"
        "most = resource.RLIMIT_NOFILE\nbefore = resource.getrlimit(most)\nresource.setrlimit(most, (3, before[1]))\n"
        f"try: runner.{call}\nexcept Exception as error: print(type(error).__name__, error)\n"
        f"resource.setrlimit(most, before)\nprint(len(runner.{call}) > 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(native_package_dir.parent)}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines()
    assert said[0].startswith("HostError too many files are open (the process's open files (ulimit -n): 3)"), done
    assert said[1:] == ["True"], done


def test_a_command_that_may_open_no_file_says_so(
    package_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (OSError(errno.EMFILE, "Too many open files"), IntegrityError("damaged")):
        error.__context__ = OSError(errno.EMFILE, "Too many open files")

        def run(*_: object, error: Exception = error) -> NoReturn:
            raise error

        monkeypatch.setitem(cli._COMMANDS, "info", ("text", lambda parser: None, run))
        assert cli.main(package_dir, ["info"]) == 3
        assert capsys.readouterr().err.startswith("tiny-int8: error: too many files are open (")


def test_a_place_that_a_command_may_not_look_at_is_named(
    native_package_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here by a name that is too long; so is a directory that is closed to this user. Both ended with a traceback."""
    long = str(tmp_path / ("x" * 300))
    assert cli.main(native_package_dir, ["bench", "--duration", "0.1", "--from", f"images:{long}"]) == 2
    assert capsys.readouterr().err == f"tiny-int8: error: {long}: File name too long\n"


def test_a_file_that_may_not_be_read_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(manifest, "hash_file", refused)  # root may read all
    with pytest.raises(IntegrityError, match=rf"^cannot read {package}/\S+: Permission denied$"):
        Runner(package)


def test_the_root_is_what_sha256sum_checks(package: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "manifest.sha256"], cwd=package, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "manifest.json: OK\n")
    assert (package / "manifest.sha256").read_text().startswith(root_hash(read_manifest(package)))


@pytest.mark.parametrize("name", ["manifest.sha256", "manifest.json"])
def test_a_lost_file_of_the_root_is_named(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(IntegrityError, match=f"cannot read .*{name}"):
        read_manifest(package)


def test_every_shipped_file_is_under_the_root(package: Path) -> None:
    """Flip a byte in each file in turn: the runner refuses, and names it."""
    for path in sorted(package.rglob("*")):
        name = path.relative_to(package).as_posix()
        if not path.is_file() or name == "build.json" or path.suffix == ".pyc":
            continue
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if data else b"x")
        with pytest.raises(IntegrityError):
            verify(package)
        path.write_bytes(data)
    assert verify(package).passed


@pytest.mark.parametrize("name", ["_runtime/json.py", "sitecustomize.py", "_runtime/new/__init__.py", "_runtime/x.so"])
def test_added_files_are_found(package: Path, name: str) -> None:
    path = package / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("import os\n")
    with pytest.raises(IntegrityError, match=f"{name}: not part of what was built; delete it or reinstall"):
        verify(package)


def test_bytecode_of_the_packages_own_modules_is_no_addition(package: Path) -> None:
    cache = package / "_runtime" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "runner.cpython-311.opt-1.pyc").write_bytes(b"")
    assert extra_files(package, read_manifest(package)) == []
    (cache / "other.cpython-311.pyc").write_bytes(b"")
    (package / "_runtime" / "link").symlink_to("/")
    assert extra_files(package, read_manifest(package)) == [
        "_runtime/__pycache__/other.cpython-311.pyc",
        "_runtime/link",
    ]


def test_measurements_are_covered_by_record(package: Path) -> None:
    record(package)
    assert verify(package).passed
    facts = json.loads((package / "build.json").read_text())
    facts["measured"]["plan"]["reason"] = "edited"
    (package / "build.json").write_text(json.dumps(facts))
    assert read_manifest(package).plan.reason == "edited"
    with pytest.raises(IntegrityError, match=r"build\.json is not the file that was installed"):
        verify(package)


def test_the_record_of_a_package_whose_name_has_capitals_is_found(package: Path) -> None:
    """Build tools write the name of its directory in lower case. Nothing was compared, and nobody was told."""
    record(package)
    (package / "build.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"build\.json is not the file that was installed"):
        check_record(package, dataclasses.replace(read_manifest(package), name="Tiny-INT8"))


def test_a_script_may_be_elsewhere_or_left_behind_but_not_changed(package: Path) -> None:
    """``verify`` failed after ``pip install --target``, and in images made of the packages alone."""
    text, manifest = "#!/usr/bin/python3\n", read_manifest(package)
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    with record(package).open("a", encoding="utf-8") as file:
        file.write(f"../bin/tiny-int8,sha256={digest},{len(text)}\n")
    check_record(package, manifest)
    named, moved = package.parent.parent / "bin", package.parent / "bin"
    for folder in (named, moved):
        folder.mkdir()
        (folder / "tiny-int8").write_text("of another environment")
        with pytest.raises(IntegrityError, match=r"bin/tiny-int8 is not the file that was installed"):
            check_record(package, manifest)
    (moved / "tiny-int8").write_text(text)
    check_record(package, manifest)


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text.replace("tiny_int8/manifest.json", "other")])
def test_a_record_that_does_not_name_the_package_is_refused(package: Path, damage: Callable[[str], str]) -> None:
    path = record(package)
    path.write_text(damage(path.read_text()))
    with pytest.raises(IntegrityError, match=r"RECORD does not name the package's manifest"):
        verify(package)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"measured": 1}', '{"measured": {}}', '{"plan": {"rows": 3}, "measured": {}}']
)
def test_damaged_measurements_are_an_integrity_error(package: Path, text: str) -> None:
    (package / "build.json").write_text(text)
    with pytest.raises(IntegrityError):
        read_manifest(package)


def test_without_measurements_the_host_is_planned_for(package: Path) -> None:
    (package / "build.json").unlink()
    assert not read_manifest(package).plan.tuned
    with Runner(package) as runner:
        assert runner.plan.threads >= 1
