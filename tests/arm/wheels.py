"""Builds wheels for both CPU families, and installs and runs one on an emulated ARM CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arm.environment import ArmEnvironment

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1200
"""No command takes a tenth of that, even under load. It ends one that hangs."""


def build(
    recipe: str | Path, out: Path, *settings: str, cpus: tuple[str, ...] = ("x86_64", "aarch64")
) -> dict[str, Path]:
    """Build a recipe as a user does: a file, or one of this repository by its name. Returns the wheels by CPU."""
    path = recipe if isinstance(recipe, Path) else ROOT / "recipes" / f"{recipe}.toml"
    command = [sys.executable, "-m", "cpupack", "build", str(path), "--out", str(out), "--no-tune"]
    command += ["--json", *(f"--target={cpu}" for cpu in cpus)]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {each["target"]["cpu"]: Path(each["wheel"]) for each in json.loads(done.stdout)["wheels"]}


def member(wheel: Path, name: str) -> bytes:
    """Return the file of a wheel whose path ends so."""
    with zipfile.ZipFile(wheel) as archive:
        (found,) = [each for each in archive.namelist() if each.endswith(f"/{name}")]
        return archive.read(found)


@dataclass(frozen=True)
class Installed:
    """A wheel in a virtual environment of an emulated CPU."""

    environment: ArmEnvironment
    directory: Path
    package: str

    def python(self, cpu: str) -> Path:
        """Return the Python of this virtual environment on a CPU."""
        return self.directory / "bin" / f"python-{cpu}"

    def run(self, cpu: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the package."""
        return run([self.python(cpu), "-m", self.package, *arguments], **variables)

    def json(self, cpu: str, *arguments: str | Path, **variables: str) -> dict[str, Any]:
        """Run a command of the package that must succeed, and return its JSON object."""
        done = self.run(cpu, *arguments, "--json", **variables)
        assert done.returncode == 0, done.stderr + done.stdout
        return dict(json.loads(done.stdout))

    def outputs(self, cpu: str, batch: np.ndarray, scratch: Path, **variables: str) -> np.ndarray:
        """Return what ``Runner(threads=1, instances=1)`` answers to a batch."""
        np.save(scratch / "batch.npy", batch)
        code = (
            f"import numpy as np\nfrom {self.package} import Runner\n"
            f"with Runner(threads=1, instances=1) as runner:\n"
            f"    np.save({str(scratch / 'outputs.npy')!r}, runner(np.load({str(scratch / 'batch.npy')!r})))\n"
        )
        done = run([self.python(cpu), "-c", code], **variables)
        assert done.returncode == 0, done.stderr
        return np.load(scratch / "outputs.npy")


def install(environment: ArmEnvironment, wheel: Path, directory: Path) -> Installed:
    """Have the emulated pip install a wheel, without a network: what it requires is there, or it fails."""
    python = environment.venv(directory)
    done = run(environment.pip(python, "install", "--no-index", "--no-compile", wheel))
    assert done.returncode == 0, done.stderr + done.stdout
    return Installed(environment, directory, wheel.name.split("-")[0])


def run(command: list[str | Path], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from this repository, with the user's cache beside its Python."""
    import os

    environ = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(Path(command[0]).parent / "cache")}
    environ.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(word) for word in command], cwd=Path(command[0]).parent, env={**environ, **variables},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
