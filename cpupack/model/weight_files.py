"""Reads files of weights. No code in them is run: objects of unknown Python classes become placeholders."""

from __future__ import annotations

import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpupack.errors import ModelError
from cpupack.model.user_code import first_line

SAVE_TENSORS = "save only the tensors: torch.save(model.state_dict(), path)"
"""The hint for a file that holds something else."""

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
    """Return the contents of a ``.safetensors`` file or a file of ``torch.save``. Unknown objects become ``Unread``.

    Raises ModelError for any other file, for a truncated one, and for a TorchScript archive.
    """
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"[model] weights: {path} is not a safetensors file: {error}") from error
    # safetensors' save_model writes a tensor with several names only once. The metadata maps the other names to it.
    tensors |= {name: tensors[kept] for name, kept in metadata.items() if name not in tensors and kept in tensors}
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # torch.load warns about files that torch.save did not write. The error below says what is wrong with them.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            with torch.serialization.safe_globals(_stand_ins(path)):
                raw = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(f"[model] weights: {path} is not a state dict: {_reason(error)}", hint=SAVE_TENSORS) from error
    if isinstance(raw, Unread):
        raise ModelError(
            f"[model] weights: {path} is not a state dict: it holds a whole pickled object ({raw.name}), and cpupack "
            "does not run pickled code",
            hint=f"{SAVE_TENSORS}, where {raw.name} can be imported",
        )
    return raw


def _stand_ins(path: Path) -> list[Any]:
    """Return a placeholder class for each class in a file that torch does not trust. It has the same name."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # noqa: BLE001 - a damaged file or another format; torch.load will say what is wrong with it
        return []
    return [
        (_UnreadDict if name.lower().endswith("dict") else type("Unread", (Unread,), {"name": name}), name)
        for name in names
    ]


def _reason(error: BaseException) -> str:
    if "TorchScript" in str(error) or "torch.jit" in str(error):
        return "it is a TorchScript archive"
    if "Weights only load failed" in str(error) or "GLOBAL" in str(error):
        return "it is damaged, or it holds pickled Python objects, which cpupack does not run"
    if isinstance(error, OSError):
        return "it is damaged, or it is truncated"  # its table of contents is wrong, so reading goes astray
    # A KeyError here means an unknown pickle opcode. An EOFError has no message.
    worded = not isinstance(error, KeyError | EOFError | IndexError | UnicodeDecodeError) and str(error).strip()
    return first_line(error) if worded else "torch.save did not write it, or it is truncated"


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
