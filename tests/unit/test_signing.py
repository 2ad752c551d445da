"""``cpupack sign`` and ``cpupack verify``: detached Ed25519 signatures and in-toto provenance, and what breaks them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cpupack.cli import main
from cpupack.lock import Lock, WheelLock, write_lock
from cpupack.lock.model import Inputs
from cpupack.signing import provenance_path, signature_path
from cpupack.stages.package import build_wheel, stage_project
from helpers.forged import forge
from helpers.tiny_wheel import TinyWheel

cryptography = pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization  # noqa: E402 - after the check for the extra
from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: E402

HEX = "0123456789abcdef" * 4
Run = Callable[..., tuple[int, str, str]]


def write_pair(directory: Path, name: str, password: bytes | None = None) -> tuple[Path, Path]:
    key = ed25519.Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def built(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("signing")
    return build_wheel(stage_project(tiny.contents(), directory / "project"), directory / "dist").path


@pytest.fixture
def wheel(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(built, tmp_path))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair(tmp_path, "key")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(left.value.code or 0), out, err

    return call


def test_a_signed_wheel_verifies(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    code, out, _ = run("sign", wheel, "--key", keys[0])
    assert (code, out.splitlines()) == (0, [str(signature_path(wheel)), str(provenance_path(wheel))])
    code, out, _ = run("verify", wheel, "--key", keys[1], "--provenance")
    assert code == 0
    assert "signed by " in out
    assert "built by urn:cpupack:local" in out
    code, out, _ = run("verify", wheel, "--key", keys[1], "--json")
    assert json.loads(out)["integrity"]["ok"]
    assert sorted(path.suffix for path in wheel.parent.iterdir() if ".part" in path.name) == []


def test_a_wheel_of_a_later_cpupack_verifies(wheel: Path, keys: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    """Its manifest says more than this version knows. What is signed and hashed are bytes."""
    with zipfile.ZipFile(wheel) as archive:
        manifest = json.loads(archive.read("tiny_int8/manifest.json"))
    for place in (manifest, manifest["model"], manifest["plan"], manifest["target"]):
        place["surprise"] = {"of": "later"}
    manifest["build"]["cpupack"] = "99.1"
    manifest["inputs"][0]["dtype"] = "float8"
    manifest["accuracy"]["gates"] = [{"name": "later"}]
    text = {"tiny_int8/manifest.json": json.dumps(manifest).encode()}
    (tmp_path / "later").mkdir()
    later = forge(wheel, tmp_path / "later" / wheel.name, "tiny_int8", text)
    assert run("sign", later, "--key", keys[0])[0] == 0
    assert run("verify", later, "--key", keys[1], "--provenance")[0] == 0
    assert run("inspect", later, "--verify")[0] == 0
    code, out, _ = run("inspect", later)
    assert (code, "and cpupack 99.1 wrote them" in out) == (0, True)
    data = bytearray(later.read_bytes())
    data[len(data) // 2] ^= 1
    later.write_bytes(data)
    code, _, err = run("verify", later, "--key", keys[1])
    assert (code, "is not that of" in err) == (6, True)


def test_signing_again_gives_the_same_bytes(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    run("sign", wheel, "--key", keys[0])
    first = signature_path(wheel).read_bytes(), provenance_path(wheel).read_bytes()
    run("sign", wheel, "--key", keys[0])
    assert (signature_path(wheel).read_bytes(), provenance_path(wheel).read_bytes()) == first
    assert len(first[0]) == 64


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_the_signature_too(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    run("sign", wheel, "--key", keys[0])
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin", "-in", str(wheel)]
    done = subprocess.run([*command, "-sigfile", str(signature_path(wheel))], capture_output=True, check=False)
    if b"Error initializing context" in done.stderr or b"Usage" in done.stderr:
        pytest.skip("this openssl has no one-shot Ed25519")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_one_changed_bit_breaks_it(wheel: Path, keys: tuple[Path, Path], run: Run, place: int) -> None:
    run("sign", wheel, "--key", keys[0])
    data = bytearray(wheel.read_bytes())
    data[place] ^= 1
    wheel.write_bytes(data)
    code, _, err = run("verify", wheel, "--key", keys[1])
    assert code == 6
    assert "is not that of" in err


def test_a_forged_wheel_with_right_hashes_is_refused(
    built: Path, wheel: Path, keys: tuple[Path, Path], run: Run
) -> None:
    run("sign", wheel, "--key", keys[0])
    forge(built, wheel, "tiny_int8", {"tiny_int8/__init__.py": b"import os\n"})
    assert run("inspect", wheel, "--verify")[0] == 0  # hashes alone do not tell
    assert run("verify", wheel, "--key", keys[1])[0] == 6


def test_another_key_or_none_is_refused(wheel: Path, keys: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    other = write_pair(tmp_path, "other")
    code, _, err = run("verify", wheel, "--key", keys[1])
    assert (code, "has no signature" in err) == (6, True)
    run("sign", wheel, "--key", keys[0])
    assert run("verify", wheel, "--key", other[1])[0] == 6
    code, _, err = run("verify", wheel, "--key", keys[0])
    assert (code, "is a private key" in err) == (2, True)
    for text in (b"", b"hello", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        (tmp_path / "bad.pub").write_bytes(text)
        assert run("verify", wheel, "--key", tmp_path / "bad.pub")[0] == 2
        assert run("sign", wheel, "--key", tmp_path / "bad.pub")[0] == 2
    assert run("verify", wheel, "--key", tmp_path / "gone.pub")[0] == 2
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.pem").write_bytes(
        curve.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    code, _, err = run("sign", wheel, "--key", tmp_path / "ec.pem")
    assert (code, "is not an Ed25519 key" in err) == (2, True)


def test_an_encrypted_key_needs_a_terminal(wheel: Path, tmp_path: Path, run: Run) -> None:
    private, _ = write_pair(tmp_path, "locked", b"secret")
    code, _, err = run("sign", wheel, "--key", private)
    assert (code, "no terminal" in err) == (2, True)
    assert not signature_path(wheel).exists()


def test_a_damaged_wheel_is_not_signed(built: Path, wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    from helpers.forged import rewrite

    rewrite(built, wheel, {"tiny_int8/model.pt": b"x"})
    code, _, err = run("sign", wheel, "--key", keys[0])
    assert code == 6
    assert "tiny_int8/model.pt" in err
    assert not signature_path(wheel).exists()


# --- provenance


def statement_of(wheel: Path) -> dict:
    envelope = json.loads(provenance_path(wheel).read_text())
    return json.loads(base64.b64decode(envelope["payload"]))


def lock_of(wheel: Path, sha256: str) -> Path:
    inputs = Inputs(
        recipe={"text": HEX}, versions={"torch": "2.13.0", "zlib": "1.3"}, host={"threads": 1},
        files={"photos/a.jpg": HEX}, model={"state": HEX, "weights": HEX}, data={"evaluation": HEX}, fused=[],
    )  # fmt: skip
    part = WheelLock(
        file=wheel.name, sha256=sha256, engine="fbgemm", quantize={}, plan={}, contents={}, measured={"report": "{}"}
    )
    path = wheel.with_name("tiny.lock.toml")
    write_lock(path, Lock(inputs=inputs, wheels={"x86_64": part}))
    return path


def test_the_statement_names_wheel_recipe_lock_materials_and_builder(
    wheel: Path, keys: tuple[Path, Path], run: Run
) -> None:
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = lock_of(wheel, sha256)
    code, _, err = run("sign", wheel, "--key", keys[0], "--lock", lock, "--builder", "https://ci.example.org/7")
    assert code == 0, err
    found = statement_of(wheel)
    assert found["subject"] == [{"name": wheel.name, "digest": {"sha256": sha256}}]
    build = found["predicate"]["buildDefinition"]
    assert build["externalParameters"]["lock"]["sha256"] == hashlib.sha256(lock.read_bytes()).hexdigest()
    materials = {each["name"]: each for each in build["resolvedDependencies"]}
    assert materials["photos/a.jpg"]["digest"] == materials["weights"]["digest"] == {"sha256": HEX}
    assert materials["torch"]["uri"] == "pkg:pypi/torch@2.13.0"
    assert found["predicate"]["runDetails"]["builder"]["id"] == "https://ci.example.org/7"


def test_the_statement_is_valid_by_in_totos_own_package(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    pytest.importorskip("in_toto_attestation")
    from google.protobuf import json_format
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    run("sign", wheel, "--key", keys[0])
    found = statement_of(wheel)
    plain = json_format.ParseDict(found, statement_pb2.Statement())
    Statement.copy_from_pb(plain).validate()
    # Unknown fields are errors: the predicate has none that SLSA does not.
    predicate = json_format.ParseDict(found["predicate"], provenance_pb2.Provenance())
    assert predicate.run_details.builder.id == "urn:cpupack:local"


def test_the_lock_of_another_wheel_is_refused(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    code, _, err = run("sign", wheel, "--key", keys[0], "--lock", lock_of(wheel, HEX))
    assert (code, "the lock of another wheel" in err) == (2, True)
    assert run("sign", wheel, "--key", keys[0], "--lock", wheel)[0] == 2
    assert run("sign", wheel, "--key", keys[0], "--builder", "me")[0] == 2


def test_changed_provenance_is_refused(wheel: Path, keys: tuple[Path, Path], run: Run) -> None:
    run("sign", wheel, "--key", keys[0])
    path = provenance_path(wheel)
    envelope = json.loads(path.read_text())
    statement = statement_of(wheel)
    statement["predicate"]["runDetails"]["builder"]["id"] = "https://somebody.example.org"
    forged = {**envelope, "payload": base64.b64encode(json.dumps(statement).encode()).decode()}
    for text in (json.dumps(forged), "{", "[]", "[" * 100_000, json.dumps({**envelope, "signatures": []}), "\0"):
        path.write_text(text)
        code, _, err = run("verify", wheel, "--key", keys[1])
        assert (code, "does not hold" in err) == (6, True)
    path.unlink()
    assert run("verify", wheel, "--key", keys[1])[0] == 0
    assert run("verify", wheel, "--key", keys[1], "--provenance")[0] == 6


def test_the_provenance_of_another_wheel_is_refused(
    built: Path, wheel: Path, keys: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "two").mkdir()
    second = Path(shutil.copy(built, tmp_path / "two"))
    with second.open("ab") as file:
        file.write(b"\0")  # another file for a signature, the same archive for zip
    run("sign", wheel, "--key", keys[0])
    run("sign", second, "--key", keys[0])
    shutil.copy(provenance_path(wheel), provenance_path(second))
    code, _, err = run("verify", second, "--key", keys[1])
    assert (code, "is about another wheel" in err) == (6, True)
