"""The lock's part about a wheel: made from a built one, and compared with the next."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from cpupack.artifacts import BuiltWheel
from cpupack.errors import LockError
from cpupack.lock.measured import measured_of
from cpupack.lock.model import WheelLock
from cpupack.recipe import Quantize
from cpupack.runtime.files import BUILD_NAME
from cpupack.targets import Target

_SETTING = "tuned", "objective", "threads", "instances", "batch_size"


def lock_wheel(wheel: BuiltWheel, import_name: str, target: Target, quantize: Quantize) -> WheelLock:
    """Return what the lock says about a finished wheel."""
    with zipfile.ZipFile(wheel.path) as archive:
        build = json.loads(archive.read(f"{import_name}/{BUILD_NAME}"))
    measured = measured_of(build)
    plan = {name: measured["plan"].get(name) for name in _SETTING}
    return WheelLock(
        file=wheel.path.name,
        sha256=wheel.sha256,
        engine=target.engine,
        isa=target.isa or "",
        quantize=quantize.model_dump(exclude_none=True),
        plan={name: value for name, value in plan.items() if value is not None},
        contents=_contents(wheel.path, import_name),
        measured={name: _text(value) for name, value in measured.items()},
    )


def check_wheel(wheel: BuiltWheel, import_name: str, locked: WheelLock, path: Path) -> None:
    """Compare a finished wheel with the lock. Raises LockError that names the files that differ."""
    if wheel.sha256 == locked.sha256 and wheel.path.name == locked.file:
        return
    found = _contents(wheel.path, import_name)
    names = sorted(name for name in {*found, *locked.contents} if found.get(name) != locked.contents.get(name))
    if wheel.path.name != locked.file:
        names.append(f"the name of the wheel ({locked.file} in the lock, now {wheel.path.name})")
    listed = "\n".join(f"  {name}" for name in names or ["how the archive is written, not what it holds"])
    raise LockError(
        f"the wheel is not the one that {path} names, although all inputs are. It differs in\n{listed}",
        hint="the code of cpupack or of a package changed without its version, or the model is not deterministic: "
        "find out why, or accept it with `cpupack lock`",
    )


def _contents(wheel: Path, import_name: str) -> dict[str, str]:
    """Return the SHA-256 of each file, that of the runner's code as one. RECORD follows from the others."""
    found: dict[str, str] = {}
    runner = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            sha256 = hashlib.sha256(archive.read(name)).hexdigest()
            if name.startswith(f"{import_name}/_runtime/"):
                runner.update(f"{sha256}  {name}\n".encode())
            elif not name.endswith(".dist-info/RECORD"):
                found[name] = sha256
    return {**found, f"{import_name}/_runtime": runner.hexdigest()}


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)
