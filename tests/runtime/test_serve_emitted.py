"""The files for operators that ``serve --emit`` writes: a systemd unit, a Containerfile, a file for compose."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.served import run_serve
from helpers.waiting import PATIENCE_S


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch."""
    return native_package_dir


@pytest.mark.parametrize("kind", ["systemd", "containerfile", "compose"])
def test_files_for_operators_hold_the_options(package_dir: Path, kind: str, tmp_path: Path) -> None:
    found = run_serve(package_dir, "--emit", kind, "--max-latency-ms", "50", "--port", "9000", "--access-log", "-")
    assert found.returncode == 0, found.stderr
    text = found.stdout
    assert "50" in text
    assert "9000" in text
    assert "$" not in text.replace("$MAINPID", "").replace("$(ls", "")
    if kind == "systemd":
        (line,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        assert line.startswith("ExecStart=/opt/tiny-int8/bin/tiny-int8 serve --max-latency-ms 50 ")
        if shutil.which("systemd-analyze"):
            unit = tmp_path / "tiny.service"
            unit.write_text(text.replace("/opt/tiny-int8/bin/tiny-int8", "/bin/true"))
            checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, checked.stderr
    else:
        assert '"--host", "0.0.0.0"' in text


@pytest.mark.parametrize("kind", ["containerfile", "compose"])
def test_the_health_check_of_a_container_passes_its_proxy(package_dir: Path, kind: str) -> None:
    """Docker gives the proxy that it is set up with to every container."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        text = run_serve(package_dir, "--emit", kind, "--port", str(port)).stdout
        code = re.search(r'import urllib\.request[^"\n]+', text)
        assert code is not None
        proxied = {**os.environ, "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
        child = subprocess.Popen([sys.executable, "-c", code[0]], env=proxied, stderr=subprocess.PIPE, text=True)
        listening.settimeout(PATIENCE_S)
        asking, _ = listening.accept()
        with asking:
            assert asking.recv(100).startswith(b"GET /v2/health/ready HTTP/1.1")
            asking.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        assert (child.wait(PATIENCE_S), child.communicate()[1]) == (0, "")


def test_a_unit_hands_its_secrets_over_and_writes_words_as_systemd_reads_them(
    package_dir: Path, tmp_path: Path
) -> None:
    """Its user could read no token of another user, and write no log. systemd.service(5) takes $ and % for itself."""
    token = tmp_path / "50% $HOME token"
    token.write_text("a long secret")
    log = '/var/log/tiny-int8/a "$b" 5%\\.log'
    found = run_serve(package_dir, "--emit", "systemd", "--token-file", str(token), "--access-log", log)
    lines = found.stdout.splitlines()
    assert f"LoadCredential=token_file:{tmp_path}/50%% $HOME token" in lines, found.stderr
    assert "LogsDirectory=tiny-int8" in lines
    (command,) = [line for line in lines if line.startswith("ExecStart=")]
    assert command.endswith("--token-file ${CREDENTIALS_DIRECTORY}/token_file")
    assert '--access-log "/var/log/tiny-int8/a \\"$$b\\" 5%%\\\\.log" ' in command
    compose = run_serve(package_dir, "--emit", "compose", "--access-log", "/tmp/$x.log").stdout
    assert '"/tmp/$$x.log"' in compose


def test_a_unit_may_do_what_its_options_need(package_dir: Path) -> None:
    """It was refused port 80, and more connections than its limit of open files."""
    plain, own = (
        run_serve(package_dir, "--emit", "systemd", *options).stdout.splitlines()
        for options in ((), ("--port", "8000", "--grpc-port", "443", "--max-connections", "100000"))
    )
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in own
    assert "LimitNOFILE=104096" in own
    assert "LimitNOFILE=65536" in plain
    assert not [line for line in plain if line.startswith("AmbientCapabilities")]
