"""The host-tuned table: the result of ``NAME tune``, kept in the user's cache for the next Runner."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..host import probe as host_probe
from ..host.probe import HostProbe
from ..manifest import Manifest
from ..warn import warn
from ..writing import whole_file

TUNED_SCHEMA = 1


@dataclass(frozen=True)
class TunedTable:
    """One tuned setting with the host and the build it holds for, and every row it was chosen from.

    ``fingerprint`` is ``host.fingerprint()``, ``cores_usable`` the cores the search could use, ``model`` the
    digest of ``model_digest``. ``searched_s`` in seconds, ``max_latency_ms`` the p99 bound or None, ``tuned_at`` the
    time of the search (ISO 8601), "" in tables of older versions.
    """

    fingerprint: dict[str, Any]
    cores_usable: int
    model: str
    objective: str
    max_latency_ms: float | None
    threads: int
    instances: int
    batch_size: int
    reason: str
    searched_s: float
    rows: list[dict[str, Any]]
    tuned_at: str = ""
    schema: int = TUNED_SCHEMA

    def __post_init__(self) -> None:
        for name in ("threads", "instances", "batch_size", "cores_usable"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, not a whole number from 1")
        if self.schema != TUNED_SCHEMA:
            raise ValueError(f"schema is {self.schema!r}, not {TUNED_SCHEMA}")
        if not isinstance(self.fingerprint, dict) or not isinstance(self.rows, list):
            raise TypeError("fingerprint is not an object or rows is not a list")
        if not all(isinstance(row, dict) for row in self.rows):
            raise TypeError("rows holds something that is not an object")

    @property
    def wanted(self) -> int:
        """The threads of all instances together."""
        return self.threads * self.instances


@dataclass(frozen=True)
class Found:
    """The path of the host-tuned table, the table if there is one, and why it does not hold here (None: it holds).

    ``path`` is None where this user has no cache.
    """

    path: Path | None
    table: TunedTable | None
    problem: str | None = None


def find_table(manifest: Manifest, environ: Mapping[str, str], probe: HostProbe) -> Found:
    """Return the host-tuned table of this package and whether it was made on this CPU, with these cores."""
    path = table_path(manifest, environ)
    table = None if path is None else read_table(path, rerun=f"{manifest.name} tune")
    if table is None:
        return Found(path, None)
    problem = mismatch(table.fingerprint, table.cores_usable, probe)
    if table.model != model_digest(manifest):
        problem = "it is of another build of this package"
    return Found(path, table, problem)


def mismatch(made_on: Mapping[str, Any], cores_usable: int | None, probe: HostProbe) -> str | None:
    """Return why measurements made on a host of that fingerprint do not hold here, None when they do."""
    for key, value in host_probe.fingerprint(probe).items():
        if made_on.get(key) != value:
            return f"it was made with {key} = {made_on.get(key)!r}, and here it is {value!r}"
    usable = probe.budget().usable
    if cores_usable is not None and cores_usable != usable:
        plural = "" if cores_usable == 1 else "s"
        are = "is" if usable == 1 else "are"
        return f"it was made with {cores_usable} usable core{plural}, and here there {are} {usable}"
    return None


def table_path(manifest: Manifest, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return where the table of this package and version is kept (XDG Base Directory Specification).

    None where this user has no cache: in containers, a user often has neither a home nor an entry among the users.
    """
    base = user_cache(environ)
    return None if base is None else base / "cpupack" / manifest.name / f"{manifest.version}.json"


def user_cache(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the directory of all caches of this user, None for a user without one."""
    cache = environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path there is to be ignored.
    if cache and Path(cache).is_absolute():
        return Path(cache)
    home = _home(environ)
    return None if home is None else home / ".cache"


def writable_path(manifest: Manifest, environ: Mapping[str, str] = os.environ) -> Path:
    """Return ``table_path`` after making its directory. Raises InputError when a table cannot be kept there."""
    path = table_path(manifest, environ)
    if path is None:
        raise InputError(
            f"there is no place to keep the tuned table: user {os.getuid()} has no home directory, and HOME is not "
            "set; set XDG_CACHE_HOME to a directory that can be written to"
        )
    check_writable(path)
    return path


def model_digest(manifest: Manifest) -> str:
    """Return a digest of the shipped model files, so that the table of another build is recognised."""
    models = sorted((name, entry.sha256) for name, entry in manifest.files.items() if name.endswith(".pt"))
    return hashlib.sha256(json.dumps(models).encode()).hexdigest()


def read_table(path: Path, rerun: str) -> TunedTable | None:
    """Read a table, None if there is none. A damaged one is ignored with a warning that says to ``rerun``."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return TunedTable(**raw)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:  # ValueError holds JSON and UTF-8 errors
        if isinstance(error, PermissionError) and not os.path.exists(path):  # noqa: PTH110 - Path.exists would raise
            return None  # the cache of another user, as where HOME is still root's
        warn(f"ignoring the host-tuned table {path}: {error}; run `{rerun}` again")
        return None


def check_writable(path: Path) -> None:
    """Make the table's directory and check that it can be written to. Raises InputError."""
    _write(path, None)


def write_table(path: Path, table: TunedTable) -> None:
    """Write a table so that a reader sees the old one or the new one, never half. Raises InputError."""
    _write(path, json.dumps(asdict(table), indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str | None) -> None:
    import tempfile  # here: no prediction writes, and it brings random and more

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            with tempfile.TemporaryFile(dir=path.parent):
                return
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(
            f"cannot write the tuned table {path}: {error.strerror or error}; "
            "make the directory writable or set XDG_CACHE_HOME to one that is"
        ) from error


def _home(environ: Mapping[str, str]) -> Path | None:
    """Return the user's home, None without one. A relative HOME would mean another place from each directory."""
    home = environ.get("HOME", "")
    try:
        found = home if Path(home).is_absolute() else pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # this user is not in the list of users
        return None
    return Path(found) if Path(found).is_absolute() else None
