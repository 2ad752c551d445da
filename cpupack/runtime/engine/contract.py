"""Checks what a package needs of the host, before the model is loaded. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import HostError, IntegrityError
from ..host import cpu
from ..host.limits import system_fault
from ..manifest import Manifest

_CLAUSE = re.compile(r"^(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)$")


def check_cpu(manifest: Manifest, machine: str | None = None, isa: str | None = None) -> None:
    """Raise HostError when the CPU is of another family or lacks the instruction set that the wheel needs.

    ``machine`` and ``isa`` (a level of ``cpu.LEVELS``) describe the host; by default this one.
    """
    wheel = f"{manifest.name} {manifest.version}"
    needs_isa = manifest.target["isa"]
    if machine is None:
        machine, isa = cpu.machine(), cpu.detect_isa()
    check_family(manifest, machine)
    if needs_isa is None:  # wheels for aarch64 of earlier versions
        return
    levels = cpu.LEVELS.get(machine, ())
    if needs_isa not in levels:
        raise IntegrityError(f"the manifest names instruction set {needs_isa!r}; known: {', '.join(levels)}")
    if isa is None or levels.index(isa) < levels.index(needs_isa):
        wrong = ": its INT8 sums would be wrong" if machine == "x86_64" else ""
        raise HostError(
            f"{wheel} needs {needs_isa} and this CPU has {isa or cpu.LACKING[machine]}{wrong}; "
            f'build it again with [target.{machine}] isa = "{isa or levels[0]}"'
        )


def check_family(manifest: Manifest, machine: str | None = None) -> None:
    """Raise HostError when the wheel is for CPUs of another family than ``machine``, by default this host's."""
    needed, machine = manifest.target["cpu"], machine or cpu.machine()
    if machine != needed:
        remedy = (
            f"only a wheel that was built for {machine} runs here (cpupack build RECIPE --target {machine})"
            if machine in cpu.LEVELS
            else f"cpupack builds wheels for {' and '.join(cpu.LEVELS)} alone"
        )
        raise HostError(
            f"{manifest.name} {manifest.version} is built for {needed} and this host is {machine}; {remedy}"
        )


def check_torch(manifest: Manifest, installed: str) -> None:
    """Raise HostError when torch ``installed`` is outside the range the wheel was verified with."""
    requires = manifest.torch["requires"]
    if not _satisfies(installed, requires):
        raise HostError(
            f"{manifest.name} {manifest.version} was verified with torch {requires} and this is torch "
            f'{installed}; run: pip install "torch{requires}"'
        )


def require_torch(manifest: Manifest, path: Path) -> None:
    """Import torch if the model at ``path`` needs it; that takes a second or two.

    Raises HostError when it cannot be imported or is outside the range the wheel was verified with.
    """
    from .program import is_program

    if is_program(path, manifest.target["engine"]):
        return
    try:
        import torch
    except ImportError as error:
        if (refused := system_fault(error)) is not None:
            raise HostError(refused) from error
        reason = manifest.torch.get("reason")
        because = f", and {reason}" if reason else ""
        wanted = f'"torch{manifest.torch["requires"]}"'
        raise HostError(f"torch cannot be imported ({error}){because}; run: pip install {wanted}") from error
    check_torch(manifest, str(torch.__version__))


def model_path(package_dir: Path, manifest: Manifest) -> Path:
    """Return the path of the package's model file. Raises IntegrityError when the manifest lists none or two."""
    names = sorted(name for name in manifest.files if name.endswith(".pt"))
    if len(names) != 1:
        raise IntegrityError(f"the manifest of {manifest.name} lists {len(names)} model files; reinstall it")
    return package_dir / names[0]


def _satisfies(version: str, requires: str) -> bool:
    """Return whether a version is in a range. Only releases count: ``2.13.0+cpu`` is 2.13.0."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    have = _release(match.group()) if match else ()
    for clause in filter(None, (part.strip() for part in requires.split(","))):
        found = _CLAUSE.match(clause)
        if found is None:
            raise IntegrityError(f"the manifest's torch range {requires!r} cannot be read at {clause!r}")
        operator, bound = found.group(1), _release(found.group(2))
        holds = {
            ">=": have >= bound,
            "<=": have <= bound,
            "==": have == bound,
            "!=": have != bound,
            "<": have < bound,
            ">": have > bound,
        }[operator]
        if not holds:
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    parts = [int(part) for part in text.split(".")]
    return tuple(parts + [0] * (4 - len(parts)))
