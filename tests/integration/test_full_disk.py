"""A real file system that is full or read-only: a build ends with one error that says where, and leaves nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from cpupack.runtime.host.cpu import machine
from helpers.tiny_recipes import FAST, Project
from helpers.waiting import PATIENCE_S

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(machine() != "x86_64", reason="the recipe is for x86_64"),
]
_MOUNT = 'mount -t tmpfs -o "size=$1" tmpfs "$2"'


def in_a_namespace(project: Project, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of a mount namespace of its own: its mounts end with it."""
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-e", "-c", script, "sh", *arguments],
        env=project.environ(), cwd=project.root, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("place", "size"),
    [
        ("tmp", "4k"),  # the least: one page
        ("tmp", "64k"),  # full only when a worker writes what it found
        ("dist", "4k"),
    ],
)
def test_a_build_on_a_full_disk(project: Project, place: str, size: str) -> None:
    (project.root / "dist").mkdir()
    disk = project.root / place
    if shutil.which("unshare") is None or in_a_namespace(project, _MOUNT, size, str(disk)).returncode:
        pytest.skip("this system lets this user mount nothing")
    script = f"""{_MOUNT}
shift 2
code=0
"$@" || code=$?
find tmp dist -type f
exit $code
"""
    build = (sys.executable, "-m", "cpupack", "build", "colors.toml", "--quiet", "--out", "dist", *FAST)
    done = in_a_namespace(project, script, size, str(disk), *build)
    assert done.returncode == 8, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "terminate called" not in done.stderr
    assert "No space left on device" in done.stderr
    assert "hint: " in done.stderr
    left = [line for line in done.stdout.splitlines() if "torchinductor_" not in line]
    assert left == []


def needs_mounts(project: Project) -> None:
    (project.root / "dist").mkdir()
    script = f'{_MOUNT}; mount -o remount,ro "$2"'
    if shutil.which("unshare") is None or in_a_namespace(project, script, "4k", str(project.root / "dist")).returncode:
        pytest.skip("this system lets this user mount nothing")


def refused(done: subprocess.CompletedProcess[str]) -> None:
    """Check that a build ended with one error about the read-only disk, and that nothing of it is left."""
    assert done.returncode == 8, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert "Read-only file system" in done.stderr
    assert "hint: " in done.stderr
    assert [line for line in done.stdout.splitlines() if "torchinductor_" not in line] == []


@pytest.mark.parametrize("when", [pytest.param("tmp/cpupack-*/.lock", marks=pytest.mark.night), "tmp/cpupack-*/*.pt"])
@pytest.mark.parametrize(
    ("change", "undo", "why"),
    [
        (
            # Again where the build has written more since: a size below what is used is refused.
            'until mount -o remount,size="$(($(du -sk tmp | cut -f1) + 1))k" tmp 2>/dev/null; do kill -0 $!; done',
            "mount -o remount,size=100m tmp",
            "No space left on device",
        ),
        # As a file system becomes after an error of its disk. What is open stays as it is.
        ("mount --bind tmp tmp; mount -o remount,bind,ro tmp", "umount tmp", "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_for_temporary_files_that_changes_in_the_middle(
    project: Project, when: str, change: str, undo: str, why: str
) -> None:
    """The build fails with one error. The next one, with the disk in order again, removes what it left."""
    needs_mounts(project)
    script = f"""{_MOUNT}
shift 2
"$@" 2>said &
until ls {when} >seen 2>&1; do kill -0 $!; sleep 0.02; done
{change}
code=0
wait $! || code=$?
test $code = 8
test -z "$(ls dist)"
{undo}
"$@" >built
find tmp dist -type f
"""
    build = (sys.executable, "-m", "cpupack", "build", "colors.toml", "--quiet", "--out", "dist", *FAST)
    done = in_a_namespace(project, script, "100m", str(project.root / "tmp"), *build)
    said = (project.root / "said").read_text()
    assert done.returncode == 0, (done.stderr, said)
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    assert "terminate called" not in said
    assert why in said
    assert "hint: " in said
    (wheel,) = (line for line in done.stdout.split() if "torchinductor_" not in line and line.startswith("dist/"))
    assert wheel.endswith(".whl")
    assert [line for line in done.stdout.split() if line.startswith("tmp/") and "torchinductor_" not in line] == []


def test_an_output_on_a_read_only_disk(project: Project) -> None:
    needs_mounts(project)
    script = f"""{_MOUNT}
mount -o remount,ro "$2"
shift 2
code=0
"$@" || code=$?
find tmp dist -type f
exit $code
"""
    build = (sys.executable, "-m", "cpupack", "build", "colors.toml", "--quiet", "--out", "dist", *FAST)
    refused(in_a_namespace(project, script, "1m", str(project.root / "dist"), *build))
