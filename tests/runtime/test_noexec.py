"""A file system that runs no code: ``info`` tries the kernels, and says what every other command would meet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.tiny_package import RUNTIME
from helpers.waiting import PATIENCE_S

REPOSITORY = RUNTIME.parent.parent


def in_a_namespace(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of a mount namespace of its own: its mounts end with it."""
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-e", "-c", script, "sh", *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_a_noexec_mount(native_package_dir: Path, tmp_path: Path) -> None:
    probe = 'mount -t tmpfs -o noexec tmpfs "$1"'
    if shutil.which("unshare") is None or in_a_namespace(probe, str(tmp_path)).returncode:
        pytest.skip("this system lets this user mount nothing")
    script = f"""{probe}
cp -r "$2" "$1"
cd "$1"
for command in info "info --json" verify "predict $4"
do
    code=0
    "$3" -m tiny_int8 $command > out 2> err || code=$?
    echo "$command: $code"
    cat out err | tr -s ' \\n' ' '
    echo
done
"""
    image = native_package_dir / "manifest.json"  # any file: the kernels come first
    done = in_a_namespace(script, str(tmp_path), str(native_package_dir), sys.executable, str(image))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[::2] == ["info: 3", "info --json: 3", "verify: 3", f"predict {image}: 3"]
    info, facts, *others = lines[1::2]
    assert "This host CANNOT run it: - the system cannot load the native kernels: " in info
    assert '"runs_here": false' in facts
    for text in (info, facts, *others):
        assert "not mounted noexec" in text
        assert "Traceback" not in text
