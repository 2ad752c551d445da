"""Writes TorchScript archives without torch's debug records: these hold paths of the build host and stacks of calls."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile

_ALIGNMENT = 64
"""Where in the file data begins, as torch writes it: a record that is mapped into memory is then aligned."""
_LOCAL_HEADER_BYTES = 30
_PADDING_ID = 0x4246
"""torch's own: "FB"."""
_ID_NAME = ".data/serialization_id"
_CODE = re.compile(r"^[^/]+/code/(?!__torch__/torch/classes/).*\.py$")
"""The code of classes, but for the declarations of those that are in C++."""


def without_debug(saved: bytes) -> bytes:
    """Return a TorchScript archive with the same records, except ``*.debug_pkl``, and with an id made from these.

    torch needs them only to name lines of Python in errors. They say where on the host the model and cpupack lay, so
    two hosts would give two files.
    """
    kept = io.BytesIO()
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(saved)) as old, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as new:
        records = {name: old.read(name) for name in old.namelist() if not name.endswith(".debug_pkl")}
        records = _without_number(records)
        ids = [name for name in records if name.endswith(f"/{_ID_NAME}")]
        for name, data in records.items():
            if name not in ids:
                digest.update(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
                _write(kept, new, name, data)
        for name in ids:
            _write(kept, new, name, f"{int(digest.hexdigest(), 16) % 10**40:040d}".encode())
    return kept.getvalue()


def _without_number(records: dict[str, bytes]) -> dict[str, bytes]:
    """Take the number out of the name of an archive's class: it counts what the process traced before.

    A frozen model is one class, so its name needs no number. With several classes the records stay as they are.
    """
    code = [name for name in records if _CODE.search(name)]
    if len(code) != 1:
        return records
    return {
        re.sub(r"/___torch_mangle_\d+\.py$", ".py", name): (
            re.sub(rb"\.___torch_mangle_\d+", b"", data) if name == code[0] or name.endswith("/data.pkl") else data
        )
        for name, data in records.items()
    }


def _write(file: io.BytesIO, archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name)
    begins = file.tell() + _LOCAL_HEADER_BYTES + len(name.encode()) + 4  # 4: the head of the padding itself
    padding = -begins % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING_ID, padding) + b"Z" * padding
    archive.writestr(info, data)
