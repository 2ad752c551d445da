"""The commands in the guides about serving are run: options are parsed, and each curl asks a real server."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpupack.runtime import cli
from cpupack.runtime.serve.options import add_arguments, from_arguments
from helpers.served import serving

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = [DOCS / "tutorial-serve.md", *(DOCS / "how-to" / name for name in ("serve.md", "latency-promise.md"))]
COMMANDS = [
    line.removeprefix("$ ").split(" > ")[0]
    for guide in GUIDES
    for line in re.findall(r"^\s*(\$ .+)$", guide.read_text("utf-8"), re.MULTILINE)
]


@pytest.fixture(scope="session")
def package_dir(native_package_dir: Path) -> Path:
    """A package whose processes start without torch. ``test_serve_http.py`` has one with it."""
    return native_package_dir


def of(program: str) -> list[str]:
    return sorted({command for command in COMMANDS if Path(shlex.split(command)[0]).name == program})


@pytest.mark.parametrize("command", of("resnet50-int8"))
def test_each_command_of_the_wheel_has_options_that_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    args = cli._parser("resnet50-int8", words).parse_args(words)
    if " serve" in command:
        from_arguments(args)


def test_each_option_that_is_named_exists() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = set(re.findall(r"--[a-z-]+", parser.format_help()))
    known |= {"--rate", "--server", "--from"}  # of bench
    for guide in (*GUIDES, DOCS / "how-to" / "nginx.md", DOCS / "reference" / "serving.md"):
        named = set(re.findall(r"`(--[a-z-]+)", guide.read_text("utf-8")))
        assert named <= known, guide


def test_each_curl_asks_what_the_server_answers(package_dir: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    out = io.BytesIO()
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(out, "JPEG")
    for name in ("photo.jpg", "other.jpg"):
        (tmp_path / name).write_bytes(out.getvalue())
    with serving(package_dir) as served:
        for command in of("curl"):
            text = command.replace("localhost:8000", f"127.0.0.1:{served.port}").replace("resnet50-int8", "tiny-int8")
            done = subprocess.run([*shlex.split(text), "-s", "-f"], cwd=tmp_path, capture_output=True, check=False)
            assert done.returncode == 0, (command, done.stderr)
            assert "error" not in json.loads(done.stdout)
    assert len(of("curl")) >= 3
