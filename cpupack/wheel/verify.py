"""Verifies a wheel without installing it: names, hashes, the golden outputs, and the model as the kernels read it.

None of the wheel's code is run. The kernels that check its program are cpupack's own.
"""

from __future__ import annotations

import math
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpupack.errors import UsageError
from cpupack.runtime.arrays import array_in
from cpupack.runtime.engine.program import is_program, read_program
from cpupack.runtime.engine.program_format import VERSION
from cpupack.runtime.engine.session import Session
from cpupack.runtime.errors import HostError, IntegrityError
from cpupack.runtime.files import GOLDEN_NAME, MODEL_NAME, UNREADABLE
from cpupack.runtime.manifest import Manifest
from cpupack.scratch import scratch_directory
from cpupack.wheel.inspect import Inspection, inspect

_GOLDEN = "input", "output", "output_fp32"


@dataclass(frozen=True)
class Verified:
    """What was found. ``problems`` is empty for a wheel that is as it was built.

    ``model`` says in words how the model was checked, or what it is where it cannot be.
    """

    inspection: Inspection
    model: str
    problems: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the facts for ``--json``."""
        manifest = self.inspection.manifest
        return {
            "path": str(self.inspection.path),
            "name": manifest.name,
            "version": manifest.version,
            "files": len(self.inspection.members),
            "model": self.model,
            "integrity": {"ok": not self.problems, "problems": list(self.problems)},
        }


def verify_wheel(path: Path) -> Verified:
    """Check every hash first; only if all agree, also the golden outputs and the model.

    Raises UsageError for a file that cannot be read or that cpupack did not make.
    """
    inspection = inspect(path)
    if inspection.problems:
        return Verified(inspection, "not looked at, because files differ", inspection.problems)
    manifest = inspection.manifest
    with scratch_directory() as directory:
        model, golden = (
            _unpacked(path, manifest, MODEL_NAME, directory),
            _unpacked(path, manifest, GOLDEN_NAME, directory),
        )
        problems = _golden_problems(golden, manifest)
        words = _model_in_words(model, manifest, problems)
    return Verified(inspection, words, tuple(problems))


def format_verified(found: Verified) -> str:
    """Return the verdict as text for a terminal."""
    manifest = found.inspection.manifest
    head = f"{manifest.name} {manifest.version}: {len(found.inspection.members)} files"
    if found.problems:
        return "\n".join([f"{head}. DAMAGED:", *(f"  {problem}" for problem in found.problems)])
    return f"{head}, all as RECORD and the manifest name them.\nmodel: {found.model}"


def _unpacked(path: Path, manifest: Manifest, name: str, directory: Path) -> Path:
    found = directory / name
    with zipfile.ZipFile(path) as archive, found.open("wb") as file:
        try:
            with archive.open(f"{manifest.import_name}/{name}") as member:
                shutil.copyfileobj(member, file)
        except KeyError as error:
            raise UsageError(f"{path} has no {manifest.import_name}/{name}", hint="build it again") from error
    return found


def _golden_problems(path: Path, manifest: Manifest) -> list[str]:
    """Return what is wrong with the golden inputs and outputs. They are read without pickles."""
    name = f"{manifest.import_name}/{GOLDEN_NAME}"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: array_in(archive, key) for key in _GOLDEN}
    except UNREADABLE as error:
        return [f"{name}: cannot be read: {error}"]
    problems = []
    for key in ("output", "output_fp32"):
        shape = tuple(manifest.model["output_shape"])
        if arrays[key].shape[1:] != shape or len(arrays[key]) != len(arrays["input"]):
            problems.append(f"{name}: {key} has shape {arrays[key].shape}, the model's output is {shape}")
    return problems


def _model_in_words(path: Path, manifest: Manifest, problems: list[str]) -> str:
    name, engine = f"{manifest.import_name}/{MODEL_NAME}", manifest.target["engine"]
    if not is_program(path, engine):
        return f"{name} is TorchScript: code, which torch runs. Its hash is right; install it only from whom you trust"
    try:
        program = read_program(path)
        wanted = math.prod(manifest.model["output_shape"])
        if program.outputs != wanted:
            problems.append(f"{name}: the program has {program.outputs} outputs, the manifest {wanted}")
        if program.version != VERSION:  # a wheel brings its own kernels, so it runs whatever this cpupack has
            return (
                f"{name} is a program of format {program.version} of the native kernels, and this cpupack knows format "
                f"{VERSION}: its hash is right, and the program was not checked; where the wheel is installed, "
                f"`{manifest.name} verify` runs it"
            )
        session = Session(program, 1)
        try:
            session.make_ready()
        finally:
            session.close()
    except IntegrityError as error:
        problems.append(f"{name}: {error}")
        return "refused by the kernels"
    except HostError as error:
        return f"{name} is a program of the native kernels; it was not checked, because {error}"
    return f"{name} is a program of the native kernels, which take it"
