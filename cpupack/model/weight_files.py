"""Reads files of weights. No code in them is run: objects of unknown Python classes become placeholders."""

from __future__ import annotations

import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpupack.errors import ModelError
from cpupack.model.user_code import first_line
from cpupack.recipe.shards import INDEX, ShardError, read_index
from cpupack.runtime.magic import HEAD_BYTES, recognized

SAVE_TENSORS = "save only the tensors: torch.save(model.state_dict(), path)"
"""The hint for a file that holds something else."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}(?=\.)")
_MOST_HEADER_BYTES = 100_000_000
"""Of a file of safetensors, by its library."""
_UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""The errors that torch.load raises for files that are not checkpoints."""


class Unread:
    """Placeholder for an object whose class is not loaded. It keeps the object's data; no code of the class is run."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.data = state


class _UnreadDict:
    """Creates a plain dict in place of a dict subclass that is not loaded. The unpickler can only fill a real dict."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def read_weights(path: Path) -> Any:
    """Return the contents of a file of safetensors or of ``torch.save``, whatever its name ends in.

    Of an index (``.index.json``) it is the tensors of all its shards. Unknown objects become ``Unread``. Raises
    ModelError for any other file, for a truncated one, and for a TorchScript archive.
    """
    if path.name.endswith(INDEX):
        return _read_shards(path)
    head = _head(path)
    kind = recognized(head)
    if kind is not None:
        raise ModelError(f"[model] weights: {path} is not a state dict: it is {kind.what}", hint=kind.advice)
    if _looks_like_safetensors(head) or (path.suffix == ".safetensors" and not _looks_saved_by_torch(head)):
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_shards(path: Path) -> dict[str, torch.Tensor]:
    try:
        places = read_index(path)
    except ShardError as error:
        raise ModelError(f"[model] weights: {error}") from error
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(set(places.values())):
        tensors = read_weights(shard)
        wanted = [name for name, place in places.items() if place == shard]
        lost = [name for name in wanted if not isinstance(tensors, Mapping) or name not in tensors]
        if lost:
            raise ModelError(
                f"[model] weights: {path} says that {shard.name} has {lost[0]}, and it has not",
                hint="the index and its files are of different models, or a download is not complete",
            )
        found |= {name: tensors[name] for name in wanted}
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"[model] weights: {path} cannot be read: {error.strerror or error}") from error


def _looks_like_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header with its JSON."""
    return head[8:9] == b"{" and len(head) >= 8 and int.from_bytes(head[:8], "little") < _MOST_HEADER_BYTES


def _looks_saved_by_torch(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"\x80"))  # an archive, or a pickle


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(
            f"[model] weights: {path} is not a safetensors file: {error}",
            hint="it is damaged, or its download is not complete: fetch it again",
        ) from error
    # safetensors' save_model writes a tensor with several names only once. The metadata maps the other names to it.
    tensors |= {name: tensors[kept] for name, kept in metadata.items() if name not in tensors and kept in tensors}
    return tensors


def _read_pickle(path: Path) -> Any:
    kind = _archive_kind(path)
    if kind is not None:
        raise ModelError(f"[model] weights: {path} is not a state dict: it is {kind[0]}", hint=kind[1])
    try:
        with warnings.catch_warnings():
            # torch.load warns about files that torch.save did not write. The error below says what is wrong with them.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # A file and no path: torch would read a path that ends in .safetensors in another way.
            with path.open("rb") as file, torch.serialization.safe_globals(_stand_ins(path)):
                raw = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(f"[model] weights: {path} is not a state dict: {_reason(error)}", hint=SAVE_TENSORS) from error
    if isinstance(raw, Unread):
        raise ModelError(
            f"[model] weights: {path} is not a state dict: it holds a whole pickled object ({raw.name}), and cpupack "
            "does not run pickled code",
            hint=f"{SAVE_TENSORS}, where {raw.name} can be imported",
        )
    return raw


def _archive_kind(path: Path) -> tuple[str, str] | None:
    """Return what an archive is that ``torch.save`` did not write, and what to do; None for what torch may read."""
    if tarfile.is_tarfile(path):
        return (
            "a tar archive",
            "unpack it and name the file in it; old ones of torch (before 0.4) torch must save again",
        )
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # damaged: torch says how
        return None
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "a TorchScript archive", f'[model] source = "torchscript:{path.name}" builds it, or {SAVE_TENSORS}'
    if {"archive_format", "serialized_exported_program.json"} & (inside | set(names)):
        return (
            "an exported program",
            f'name it .pt2 and build it with [model] source = "export:FILE.pt2", or {SAVE_TENSORS}',
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        return f"a zip archive with {shown}", "unpack it and name the file with the weights"
    return None


def _stand_ins(path: Path) -> list[Any]:
    """Return a placeholder class for each class in a file that torch does not trust. It has the same name."""
    try:
        with path.open("rb") as file:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # noqa: BLE001 - a damaged file or another format; torch.load will say what is wrong with it
        return []
    return [
        (_UnreadDict if name.lower().endswith("dict") else type("Unread", (Unread,), {"name": name}), name)
        for name in names
    ]


def _reason(error: BaseException) -> str:
    if "Weights only load failed" in str(error) or "GLOBAL" in str(error):
        return "it is damaged, or it holds pickled Python objects, which cpupack does not run"
    if isinstance(error, OSError) or "PytorchStreamReader" in str(error):
        return "it is damaged, or it is truncated"  # its table of contents is wrong, so reading goes astray
    # A KeyError here means an unknown pickle opcode. An EOFError has no message.
    worded = not isinstance(error, KeyError | EOFError | IndexError | UnicodeDecodeError) and str(error).strip()
    return first_line(error) if worded else "torch.save did not write it, or it is truncated"


def shard_hint(path: Path) -> str | None:
    """Return what to do where the name of a file says that it is one of several, ``-00001-of-00002``, else None."""
    index = _SHARD.sub("", path.name)
    return f"it is one file of several: name their index, such as {index}{INDEX}" if index != path.name else None


def describe_raw(raw: Any) -> str:
    """Describe the contents of a file that is not a state dict."""
    if isinstance(raw, Unread):
        return f"a pickled {raw.name}"
    if isinstance(raw, Mapping):
        modules = [f"{key} (a pickled {value.name})" for key, value in raw.items() if isinstance(value, Unread)]
        if not raw:
            return "an empty dict"
        keys = ", ".join(map(str, list(raw)[:5]))
        return f"a dict with keys {keys}" + (f"; {', '.join(modules[:3])}" if modules else "")
    return type(raw).__name__
