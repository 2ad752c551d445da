"""What a wheel may be before anything of it is read: bounds on its sizes, and names that stay inside."""

from __future__ import annotations

import stat
import zipfile
from pathlib import PurePosixPath

MOST_FILES = 100_000
MOST_BYTES = 64 << 30
"""Of all files together, unpacked."""
MOST_TEXT_BYTES = 256 << 20
"""Of one file that is read as a whole: everything but the model, its golden outputs and the kernels."""
_STREAMED = (".pt", ".npz", ".so")


def refusal(archive: zipfile.ZipFile) -> str | None:
    """Return why an archive is not read at all, None where it is: it would take too much when unpacked."""
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        return f"it has {len(infos):,} files; cpupack reads at most {MOST_FILES:,}"
    total = sum(info.file_size for info in infos)
    if total > MOST_BYTES:
        return f"it has {total:,} bytes when unpacked; cpupack reads at most {MOST_BYTES:,}"
    large = next((each for each in infos if each.file_size > MOST_TEXT_BYTES and not _is_streamed(each)), None)
    if large is not None:
        return (
            f"{large.filename[:200]!r} has {large.file_size:,} bytes when unpacked; cpupack reads at most "
            f"{MOST_TEXT_BYTES:,}"
        )
    return None


def name_problems(archive: zipfile.ZipFile) -> list[str]:
    """Return what is wrong with the names and kinds of the files, one line each: pip might write them elsewhere."""
    problems, seen = [], set()
    for info in archive.infolist():
        name, path = info.filename, PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
            problems.append(f"{name!r}: a name that leads out of the wheel")
        if stat.S_ISLNK(info.external_attr >> 16):
            problems.append(f"{name}: a symbolic link")
        if name in seen:
            problems.append(f"{name}: the archive has two files with this name")
        seen.add(name)
    return problems


def _is_streamed(info: zipfile.ZipInfo) -> bool:
    return info.filename.endswith(_STREAMED)
