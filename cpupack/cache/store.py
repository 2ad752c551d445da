"""The cache as a directory of files: one for each entry, named by its key, with its own hash.

An entry is a safetensors archive: tensors, and JSON. Reading one runs no code. It is written beside its place and
renamed, so that a reader sees all of it or nothing, and two builds that make the same entry do not disturb each other.
Its writer holds a lock on it until then: what has none was left by a build that was killed, on whichever host.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from cpupack.runtime.plan.table import user_cache

DEFAULT_LIMIT_BYTES = 10 * 2**30
"""What all entries together may take."""

_MAGIC = b"cpupack-cache 1\n"
_HEAD_BYTES = len(_MAGIC) + 64 + 1
_SUFFIX = ".entry"
_PART = ".part"
_LARGEST_HEADER_BYTES = 256 * 2**20
_ATTEMPTS = 3
"""How often an entry is written whose file another build takes for one that was left."""
_FOREIGN_BITS = 0o022
"""Permission of others to write."""

Say = Callable[[str], None]
"""Tells the reader of the build's log something."""


@dataclass(frozen=True)
class Entry:
    """What a stage made: tensors by name, and JSON. ``label`` is the name of the package that it was made for."""

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]
    label: str = ""


def tensor_of(array: Any) -> torch.Tensor:
    """Return a numpy array as an entry keeps it."""
    return torch.from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True)
class Listed:
    """One entry for a list of them. ``used_s`` is when it was last written or read, in seconds since 1970."""

    stage: str
    key: str
    label: str
    size_bytes: int
    used_s: float
    path: Path


@dataclass(frozen=True)
class Store:
    """The entries in ``directory``, which together take at most ``limit_bytes``."""

    directory: Path
    limit_bytes: int = DEFAULT_LIMIT_BYTES
    _kept: dict[Path, int] = field(default_factory=dict, compare=False, repr=False)
    """Entries of this build with their bytes, which the limit does not remove. Together they are within it."""

    def problem(self) -> str | None:
        """Return why the directory cannot be used, None if it can. Makes it where there is none.

        A directory of another user, or one that others can write to, is not used: they could put wrong results there.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.directory.lstat()
        except OSError as error:
            return f"{self.directory}: {error.strerror or error}"
        if not stat.S_ISDIR(found.st_mode):
            return f"{self.directory} is no directory"
        if found.st_uid != os.geteuid():
            return f"{self.directory} belongs to another user"
        if found.st_mode & _FOREIGN_BITS:
            return f"other users can write to {self.directory}"
        return None

    def get(self, stage: str, key: str, say: Say) -> Entry | None:
        """Return an entry, None if there is none. A damaged one is removed, and ``say`` is told."""
        path = self._path(stage, key)
        try:
            # O_NONBLOCK: to open a pipe that nobody writes to would wait for ever.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            say(f"an entry of the cache cannot be read, so it is made again: {path}: {error.strerror or error}")
            return None
        try:
            entry, size_bytes = _entry(_content(descriptor), stage, key)
        except (_DamagedError, OSError) as error:
            say(f"an entry of the cache is damaged, so it is made again: {path}: {error}")
            with suppress(OSError):
                path.unlink()
            return None
        finally:
            os.close(descriptor)
        with suppress(OSError):  # another build has removed it, or the disk is read-only: what was read is whole
            os.utime(path)
        self._kept[path] = size_bytes
        return entry

    def put(self, stage: str, key: str, entry: Entry, say: Say) -> None:
        """Keep an entry, then remove the oldest until all fit. What cannot be written is not kept, and is said.

        What does not fit beside the other entries of this build is not kept either.
        """
        facts = {"stage": stage, "key": key, "label": entry.label, "facts": json.dumps(entry.facts)}
        body = safetensors.save(_apart(entry.tensors), facts)
        data_bytes = _HEAD_BYTES + len(body)
        path = self._path(stage, key)
        others = sum(size for other, size in self._kept.items() if other != path)
        if data_bytes + others > self.limit_bytes:
            with_others = f", and {others / 1e6:,.1f} MB are this build's already" if others else ""
            limit = f"the limit is {self.limit_bytes / 1e6:,.1f} MB (--cache-gib)"
            say(f"not kept in the cache: {stage} takes {data_bytes / 1e6:,.1f} MB{with_others}; {limit}")
            return
        try:
            self._write(path, body)
        except OSError as error:
            say(f"not kept in the cache: {path}: {error.strerror or error}")
            return
        self._kept[path] = data_bytes
        try:
            self._trim()
        except OSError as error:
            say(f"the cache may be larger than its limit: {error.filename}: {error.strerror or error}")

    def drop(self, stage: str, key: str) -> None:
        """Remove an entry, if it is there."""
        path = self._path(stage, key)
        self._kept.pop(path, None)
        with suppress(OSError):
            path.unlink()

    def entries(self) -> list[Listed]:
        """Return all entries, the last used first. One whose head cannot be read has an empty label."""
        found = []
        for path in self._files():
            try:
                status = path.lstat()
            except OSError:
                continue  # another build has just removed it
            if not stat.S_ISREG(status.st_mode):
                continue  # no build made that
            key = path.name.removesuffix(_SUFFIX)
            found.append(Listed(path.parent.name, key, _label(path), status.st_size, status.st_mtime, path))
        return sorted(found, key=lambda each: (-each.used_s, each.stage, each.key))

    def clear(self, label: str | None = None) -> list[Listed]:
        """Remove all entries, or those of one package, and what killed builds left. Return what is gone.

        Raises OSError where one cannot be removed.
        """
        self._sweep()
        gone = [each for each in self.entries() if label is None or each.label == label]
        for each in gone:
            each.path.unlink(missing_ok=True)
        return gone

    def _trim(self) -> None:
        self._sweep()
        entries = self.entries()
        total_bytes = sum(each.size_bytes for each in entries)
        for each in reversed(entries):
            if total_bytes <= self.limit_bytes:
                return
            if each.path not in self._kept:
                each.path.unlink(missing_ok=True)
                total_bytes -= each.size_bytes

    def _write(self, path: Path, body: bytes) -> None:
        """Write an entry beside its place, and rename it. Raises OSError."""
        path.parent.mkdir(mode=0o700, exist_ok=True)
        for attempt in range(1, _ATTEMPTS + 1):
            # Processes in two containers have the same number, and threads of one process have: so a random name.
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PART}")
            try:
                with part.open("xb") as file:
                    with suppress(OSError):  # a file system without locks; nobody sweeps there
                        fcntl.flock(file, fcntl.LOCK_EX)
                    file.write(_MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n")
                    file.write(body)
                    file.flush()
                    part.replace(path)
            except FileNotFoundError:  # it was swept before it had its lock
                if attempt == _ATTEMPTS:
                    raise
            else:
                return
            finally:
                part.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove half-written entries of builds that were killed: their locks ended with them."""
        for part in self.directory.glob(f"*/.*{_PART}"):
            with suppress(OSError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    def _files(self) -> Iterator[Path]:
        return self.directory.glob(f"*/*{_SUFFIX}")

    def _path(self, stage: str, key: str) -> Path:
        return self.directory / stage / f"{key}{_SUFFIX}"


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return where this user's entries are (XDG Base Directory Specification), None for a user without a cache."""
    base = user_cache(environ)
    return None if base is None else base / "cpupack-stages"


def is_off(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user wants no cache: ``CPUPACK_NO_CACHE`` is 1, or any text but 0."""
    return environ.get("CPUPACK_NO_CACHE", "") not in {"", "0"}


def user_store(limit_bytes: int = DEFAULT_LIMIT_BYTES) -> Store | None:
    """Return this user's store, None for a user without a cache."""
    directory = cache_directory()
    return None if directory is None else Store(directory, limit_bytes)


def age_text(used_s: float) -> str:
    """Return how long ago that was, in words."""
    minutes = max(0.0, time.time() - used_s) / 60
    for unit, size in (("day", 24 * 60), ("hour", 60), ("minute", 1)):
        if minutes >= size:
            count = int(minutes / size)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"


class _DamagedError(Exception):
    """An entry that is not what was written."""


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return dense tensors that share no memory, which safetensors would refuse."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return found


def _content(descriptor: int) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise _DamagedError("it is no file")
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _entry(data: bytes, stage: str, key: str) -> tuple[Entry, int]:
    """Return an entry and how many bytes it takes. Raises _DamagedError."""
    if not data.startswith(_MAGIC):
        raise _DamagedError("it is no entry of this version")
    body = data[_HEAD_BYTES:]
    if data[len(_MAGIC) : _HEAD_BYTES] != hashlib.sha256(body).hexdigest().encode() + b"\n":
        raise _DamagedError("its hash is another")
    try:
        head = _head(body)
        tensors = safetensors.load(body)
        if (head["stage"], head["key"]) != (stage, key):
            raise _DamagedError("it is another entry")
        return Entry(tensors, json.loads(head["facts"]), head["label"]), len(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _DamagedError(str(error)) from error


def _head(start: bytes) -> dict[str, str]:
    """Return the strings in the header of an archive, which is at the start of its bytes. Raises ValueError."""
    size = int.from_bytes(start[:8], "little")
    if size > _LARGEST_HEADER_BYTES or len(start) < 8 + size:
        raise ValueError("it has no header")
    found = json.loads(start[8 : 8 + size])["__metadata__"]
    if not isinstance(found, dict):
        raise TypeError("its header has no facts")
    return found


def _label(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(_HEAD_BYTES)
            size = int.from_bytes(file.read(8), "little")
            if size > _LARGEST_HEADER_BYTES:
                return ""
            found = _head(size.to_bytes(8, "little") + file.read(size)).get("label", "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return str(found)
