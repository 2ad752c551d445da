"""Who is served: tokens and certificates."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cpupack.runtime.errors import InputError
from cpupack.runtime.serve.keys import Keys
from cpupack.runtime.serve.options import ServeOptions
from cpupack.runtime.serve.tls import tls_context
from cpupack.runtime.serve.token import has_token
from helpers.served import PHOTO, Served, run_serve, serving

MODEL = "tiny-int8"


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


def test_only_who_has_the_token_is_served(package_dir: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse\n")
    with serving(package_dir, "--token-file", str(token), "--grpc-port", "0") as served:
        for path in ("/metrics", "/v2", f"/v2/models/{MODEL}", "/openapi.json"):
            assert served.get(path).status == 401
            assert served.get(path, Authorization="Bearer wrong-horse").status == 401
            assert served.get(path, Authorization="Bearer correct-horse").status == 200
        answer = served.ask("POST", "/predict", PHOTO)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert served.ask("POST", "/predict", PHOTO, {"Authorization": "Bearer correct-horse"}).status == 200
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs"):
            assert served.get(path).status == 200
        _check_grpc_token(served)
        _check_bench(package_dir, served, "http", "--token-file", str(token))
        done = _bench(package_dir, served, "http")
        assert (done.returncode, "status 401" in done.stderr) == (3, True), done.stderr


def _bench(package_dir: Path, served: Served, scheme: str, *options: str) -> subprocess.CompletedProcess[str]:
    url = f"{scheme}://127.0.0.1:{served.grpc_port if scheme.startswith('grpc') else served.port}"
    command = [sys.executable, "-m", package_dir.name, "bench", "--server", url, "--rate", "20", "--duration", "0.5"]
    return subprocess.run([*command, *options], cwd=package_dir.parent, capture_output=True, text=True, check=False)


def _check_bench(package_dir: Path, served: Served, scheme: str, *options: str) -> None:
    done = _bench(package_dir, served, scheme, "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["failed"], found["answered"] > 0, found["server"].partition(":")[0]) == (0, True, scheme)
    assert bool(found["server_metrics"]) == scheme.startswith("http")


def _check_grpc_token(served: Served) -> None:
    import grpc

    from cpupack.runtime.serve.descriptors import SERVICE, messages

    kinds = messages()
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}") as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ServerMetadata",
            kinds["ServerMetadataRequest"].SerializeToString,
            kinds["ServerMetadataResponse"].FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            ask(kinds["ServerMetadataRequest"]())
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        found = ask(kinds["ServerMetadataRequest"](), metadata=(("authorization", "Bearer correct-horse"),))
        assert found.name == "cpupack"


def test_over_tls(package_dir: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(package_dir, "--tls-cert", str(cert), "--tls-key", str(key), "--grpc-port", "0") as served:
        trusting = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"https://127.0.0.1:{served.port}/v2/health/ready", context=trusting) as answer:
            assert json.load(answer) == {"ready": True}
        with pytest.raises((OSError, http.client.HTTPException)):
            served.get("/v2/health/ready")
        import grpc

        from cpupack.runtime.serve.descriptors import SERVICE, messages

        kinds = messages()
        trust = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(f"localhost:{served.grpc_port}", trust) as channel:
            live = channel.unary_unary(
                f"/{SERVICE}/ServerLive",
                kinds["ServerLiveRequest"].SerializeToString,
                kinds["ServerLiveResponse"].FromString,
            )
            assert live(kinds["ServerLiveRequest"]()).live
        for scheme in ("https", "grpcs"):
            _check_bench(package_dir, served, scheme, "--ca", str(cert))
        for options, code, words in (
            ([], 3, "certificate verify failed"),
            (["--ca", str(key)], 2, f"--ca {key}: "),
            (["--ca", str(tmp_path / "none")], 2, "none: No such file"),
        ):
            done = _bench(package_dir, served, "https", *options)
            assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_certificate_and_a_key_that_do_not_fit_are_named(package_dir: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    cert, key, other, locked, empty = (tmp_path / name for name in ("cert", "key", "other", "locked", "empty"))
    for command in (
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=a"],
        ["genrsa", "-out", other, "2048"],
        ["rsa", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    empty.write_text("")
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for one, two, words in (
        (cert, other, f"--tls-key {other} is not the key of the certificate {cert}"),
        (cert, locked, f"--tls-key {locked} is encrypted"),
        (cert, cert, f"--tls-key {cert} has no line -----BEGIN PRIVATE KEY"),
        (key, key, f"--tls-cert {key} has no line -----BEGIN CERTIFICATE"),
        (cert, empty, f"--tls-key {empty} has no line"),
        (cert, tmp_path / "none", f"--tls-key {tmp_path / 'none'}: No such file"),
        (cert, tmp_path, f"--tls-key {tmp_path}: Is a directory"),
        (broken, key, f"--tls-cert {broken} and --tls-key {key} cannot be used"),
    ):
        with pytest.raises(InputError) as caught:
            tls_context(one, two)
        assert words in str(caught.value)
    found = run_serve(package_dir, "--port", "0", "--tls-cert", str(cert), "--tls-key", str(locked))
    assert (found.returncode, "is encrypted" in found.stderr, "Traceback" in found.stderr) == (2, True, False)


def _certificate(directory: Path, kind: str) -> bytes:
    """Write a new cert.pem and key.pem of a kind of key, and return what clients are shown."""
    new = ["rsa:2048"] if kind == "rsa" else ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", *new, "-nodes", "-keyout", key, "-out", cert, "-subj", "/CN=a"]
    subprocess.run(command, check=True, capture_output=True)
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


def _shown(context: ssl.SSLContext) -> bytes | None:
    """Shake hands with a server, and return its certificate."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    client, server = asking.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return client.getpeercert(binary_form=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not installed")
@pytest.mark.parametrize(("first", "second"), [("rsa", "ec"), ("ec", "ec")])
def test_new_connections_have_the_new_certificate_and_a_bad_one_is_not_taken(
    tmp_path: Path, first: str, second: str
) -> None:
    """Also where the key is of another kind: a context of Python would keep both, and show the old one."""
    before = _certificate(tmp_path, first)
    keys = Keys(ServeOptions(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem"))
    assert keys.tls is not None
    assert (_shown(keys.tls), keys.read_again()) == (before, ([], []))
    old_key = (tmp_path / "key.pem").read_bytes()
    after = _certificate(tmp_path, second)
    new_key = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").write_bytes(old_key)  # half of the files are replaced
    taken, errors = keys.read_again()
    assert (taken, len(errors), _shown(keys.tls)) == ([], 1, before)
    assert errors[0].startswith("the certificate before is kept: --tls-")
    (tmp_path / "key.pem").write_bytes(new_key)
    assert keys.read_again() == (["the certificate"], [])
    assert (_shown(keys.tls), keys.pair) == (after, (new_key, (tmp_path / "cert.pem").read_bytes()))
    (tmp_path / "cert.pem").unlink()
    assert keys.read_again()[1] == [
        f"the certificate before is kept: --tls-cert {tmp_path / 'cert.pem'}: No such file or directory; "
        "name a file in PEM"
    ]
    assert _shown(keys.tls) == after


def test_a_new_token_is_taken_and_a_bad_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "token"
    keys = Keys(ServeOptions(token="correct-horse", token_file=file))
    file.write_text("battery-staple\n")
    assert (keys.read_again(), keys.token) == ((["the token"], []), "battery-staple")
    for text, words in (("short", "at least 8 printable"), (None, "No such file")):
        file.write_text(text) if text else file.unlink()
        taken, (error,) = keys.read_again()
        assert (taken, words in error, keys.token) == ([], True, "battery-staple")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Bearer token-of-mine", True),
        (b"bearer token-of-mine", True),
        (b"BEARER  token-of-mine ", True),
        (b"Bearer Token-of-mine", False),
        (b"Bearer token-of-min", False),
        (b"Basic token-of-mine", False),
        (b"token-of-mine", False),
        (b"Bearer", False),
        (b"Bearer \xe9", False),
        (b"", False),
    ],
)
def test_the_word_before_a_token_has_no_case_and_the_token_has(header: bytes, expected: bool) -> None:
    assert has_token(header, b"token-of-mine") is expected
