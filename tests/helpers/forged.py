"""Wheels that somebody changed: with the hashes left as they were, or all recomputed as a forger would."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

Changes = Mapping[str, bytes | None]


def rewrite(wheel: Path, out: Path, changes: Changes) -> Path:
    """Copy a wheel with some members replaced, removed (None) or added. Hashes stay as they are."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            contents = changes.get(name, old.read(name))
            if contents is not None:
                new.writestr(name, contents)
        for name in sorted(set(changes) - set(old.namelist())):
            new.writestr(name, changes[name] or b"")
    return out


def forge(wheel: Path, out: Path, package: str, changes: Changes) -> Path:
    """Copy a wheel with members replaced, and every hash in it made right again: manifest, root and RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= {name: data for name, data in changes.items() if data is not None}
    manifest = json.loads(members[f"{package}/manifest.json"])
    for name in manifest["files"] if isinstance(manifest["files"], dict) else ():  # or it is forged, too
        data = members[f"{package}/{name}"]
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    text = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    members[f"{package}/manifest.json"] = text
    members[f"{package}/manifest.sha256"] = f"{hashlib.sha256(text).hexdigest()}  manifest.json\n".encode()
    record = next(name for name in members if name.endswith(".dist-info/RECORD"))
    rows = [f"{name},sha256={_record(data)},{len(data)}" for name, data in members.items() if name != record]
    members[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    with zipfile.ZipFile(out, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    return out


def _record(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
