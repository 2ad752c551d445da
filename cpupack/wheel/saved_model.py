"""Writes TorchScript archives without torch's debug records: these hold paths of the build host and stacks of calls."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile

_ALIGNMENT = 64
"""Where in the file data begins, as torch writes it: a record that is mapped into memory is then aligned."""
_LOCAL_HEADER_BYTES = 30
_PADDING_ID = 0x4246
"""torch's own: "FB"."""
_ID_NAME = ".data/serialization_id"


def without_debug(saved: bytes) -> bytes:
    """Return a TorchScript archive with the same records, except ``*.debug_pkl``, and with an id made from these.

    torch needs them only to name lines of Python in errors. They say where on the host the model and cpupack lay, so
    two hosts would give two files.
    """
    kept = io.BytesIO()
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as new:
        infos = [info for info in old.infolist() if not info.filename.endswith(".debug_pkl")]
        ids = [info for info in infos if info.filename.endswith(f"/{_ID_NAME}")]
        for info in infos:
            if info not in ids:
                data = old.read(info)
                digest.update(f"{info.filename} {hashlib.sha256(data).hexdigest()}\n".encode())
                _write(kept, new, info.filename, data)
        for info in ids:
            _write(kept, new, info.filename, f"{int(digest.hexdigest(), 16) % 10**40:040d}".encode())
    return kept.getvalue()


def _write(file: io.BytesIO, archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name)
    begins = file.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + 4  # 4: the head of the padding itself
    padding = -begins % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING_ID, padding) + b"Z" * padding
    archive.writestr(info, data)
