"""Reading files of weights. Nothing in them is ever run: unknown Python objects become empty ones."""

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

SAVE_TENSORS = "save the tensors alone: torch.save(model.state_dict(), path)"
"""What to do with a file that holds something else."""

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
"""What torch.load raises for files that are no checkpoint."""


class Unread:
    """Stands for a Python object of a checkpoint whose class is not loaded: its data is kept, its code is not run."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.data = state


class _UnreadDict:
    """Makes a plain dictionary in place of one of a class that is not loaded: the unpickler fills no other."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def read_weights(path: Path) -> Any:
    """Return what a ``.safetensors`` file or one of ``torch.save`` holds; an object of an unknown class is ``Unread``.

    Raises ModelError for a file that is neither, is cut off, or is a TorchScript archive.
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
    # save_model writes a tensor of several names once, and says under which name the others find it.
    tensors |= {name: tensors[kept] for name, kept in metadata.items() if name not in tensors and kept in tensors}
    return tensors


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # A remark of torch.load on files that torch.save did not write; what is wrong with them is said below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            with torch.serialization.safe_globals(_stand_ins(path)):
                raw = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ModelError(f"[model] weights: {path} is not a state dict: {_reason(error)}", hint=SAVE_TENSORS) from error
    if isinstance(raw, Unread):
        raise ModelError(
            f"[model] weights: {path} is not a state dict: it holds a whole pickled object ({raw.name}), and pickled "
            "Python objects are not executed",
            hint=f"{SAVE_TENSORS}, where {raw.name} can be imported",
        )
    return raw


def _stand_ins(path: Path) -> list[Any]:
    """Return for each class that a file names and torch does not trust one that does nothing, under its name."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # noqa: BLE001 - a damaged or foreign file; torch.load tells what is wrong with it
        return []
    return [
        (_UnreadDict if name.lower().endswith("dict") else type("Unread", (Unread,), {"name": name}), name)
        for name in names
    ]


def _reason(error: BaseException) -> str:
    if "TorchScript" in str(error) or "torch.jit" in str(error):
        return "it is a TorchScript archive"
    if "Weights only load failed" in str(error) or "GLOBAL" in str(error):
        return "it is damaged, or holds pickled Python objects, and those are not executed"
    # A KeyError here is an opcode that pickle does not know, an EOFError has no words at all.
    worded = not isinstance(error, KeyError | EOFError | IndexError | UnicodeDecodeError) and str(error).strip()
    return first_line(error) if worded else "torch.save did not write it, or it is cut off"


def describe_raw(raw: Any) -> str:
    """Say what a file holds that is no state dict."""
    if isinstance(raw, Unread):
        return f"a pickled {raw.name}"
    if isinstance(raw, Mapping):
        modules = [f"{key} (a pickled {value.name})" for key, value in raw.items() if isinstance(value, Unread)]
        keys = ", ".join(map(str, list(raw)[:5]))
        return f"a dict with keys {keys}" + (f"; {', '.join(modules[:3])}" if modules else "")
    return type(raw).__name__
