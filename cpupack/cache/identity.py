"""What an entry depends on, as SHA-256: this cpupack and its surroundings, the user's code, and objects in memory.

The rule is that a doubt makes an entry useless, never wrong. So more is hashed than matters: every package that is
installed, every file of the user's own code that is loaded, every attribute of the model.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import cpupack
from cpupack.lock.code import is_users
from cpupack.runtime.host.probe import HostProbe, fingerprint

_HERE = Path(cpupack.__file__).resolve().parent
_CODE = {".py", ".so", ".j2", ".json", ".toml"}
_SETTINGS = (
    "ATEN_", "DNNL_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_",
    "THP_", "TORCH_", "GLIBC_TUNABLES",
)  # fmt: skip
"""Variables that change what torch computes, or how fast."""

_OWN_HASH = ".data/serialization_id"
"""The hash that torch puts into an archive. The numbers are in it."""


def digest(*parts: object) -> str:
    """Return the SHA-256 of parts that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def surroundings() -> str:
    """Return the hash of all but the recipe: cpupack's code, packages, CPU, number of threads, torch's settings."""
    return digest(
        _own_code(),
        sys.version,
        torch.__version__,
        torch.version.git_version,
        _installed(),
        fingerprint(),
        HostProbe().budget().usable,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        sorted((name, value) for name, value in os.environ.items() if name.startswith(_SETTINGS)),
    )


def users_code(modules: Iterable[str]) -> str:
    """Return the hash of the user's code that is loaded, and of the files of these ``modules`` of other packages.

    The user's are all Python files outside the standard library and the directories of packages.
    """
    found = {}
    wanted = set(modules)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or name.partition(".")[0] == "torch":  # torch has modules without a file
            continue
        path = Path(file)
        if name in wanted or is_users(path):
            try:
                found[file] = hashlib.sha256(path.read_bytes()).hexdigest()
            except OSError:  # in an archive, or removed since: then nothing says what it was
                found[file] = f"unknown {os.urandom(16).hex()}"
    return digest(found)


@functools.cache
def _own_code() -> str:
    """Return the hash of this cpupack: in a checkout, code changes without the version."""
    found = hashlib.sha256(cpupack.__version__.encode())
    for path in sorted(each for each in _HERE.rglob("*") if each.suffix in _CODE and each.is_file()):
        found.update(f"{path.relative_to(_HERE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _installed() -> list[str]:
    """Return every installed package with its version, and when it was installed."""
    return sorted(set(_packages_in(sys.path)))


def _packages_in(directories: Iterable[str]) -> Iterator[str]:
    for directory in directories:
        try:
            entries = list(os.scandir(directory or "."))
        except OSError:  # an archive, or nothing
            continue
        for entry in entries:
            if entry.name.endswith((".dist-info", ".egg-info")):
                yield f"{entry.name} {_installed_at(entry.path)}"


def _installed_at(directory: str) -> int:
    for name in (f"{directory}/RECORD", directory):
        try:
            return os.stat(name).st_mtime_ns  # noqa: PTH116 - hundreds of them
        except OSError:
            continue
    return 0


def script_hash(path: Path) -> str:
    """Return the hash of a saved TorchScript model, whatever other models this process has made.

    torch numbers the classes of modules through the life of a process. Here they are numbered by their first mention.
    """
    numbers: dict[bytes, bytes] = {}

    def renumbered(found: re.Match[bytes]) -> bytes:
        return numbers.setdefault(found[0], b"___torch_mangle_#%d" % len(numbers))

    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(_OWN_HASH):
                continue
            for part in (info.filename.encode(), archive.read(info)):
                total.update(hashlib.sha256(re.sub(rb"___torch_mangle_\d+", renumbered, part)).digest())
    return total.hexdigest()


def settings_of(values: Any) -> str:
    """Return the hash of a part of the recipe, a pydantic model, a list of them, or None."""
    if isinstance(values, list | tuple):
        return digest([settings_of(each) for each in values])
    return digest(None if values is None else values.model_dump(mode="json"))
