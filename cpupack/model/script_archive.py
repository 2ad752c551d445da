"""What torch does not say of a TorchScript file: tensors with fewer bytes than it announces, beyond whose end torch
reads, and weights that torch has left out.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from cpupack.runtime.files import UNREADABLE

_ITEM_BYTES = {
    **dict.fromkeys(("Char", "Byte", "Bool", "QInt8", "QUInt8", "Untyped"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""By the name of torch's class for a storage, without its ending."""
_ENDING = "Storage"
_LEFT_OUT = b"ops.prim.ConstantMKLDNNTensor("


class _Anything:
    """Stands for every object of a pickle, so that none is made: takes all that a pickle does with one."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...


class _Sizes(pickle.Unpickler):
    """Reads a pickle for the storages that it names, and makes none of its objects. ``found`` has bytes by key."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.found: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return name.removesuffix(_ENDING) if module == "torch" and name.endswith(_ENDING) else _Anything

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count = pid
        self.found[str(key)] = int(count) * _ITEM_BYTES[kind]
        return _Anything()


def check_sizes(path: Path) -> None:
    """Raise ValueError for a tensor whose record has another size than announced, and what pickles and zipfile raise.

    A record is ``NAME/data/KEY`` for ``NAME/data.pkl``, and likewise for ``constants.pkl``.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        for name in sizes:
            if not name.endswith(("/data.pkl", "/constants.pkl")):
                continue
            reader = _Sizes(archive.read(name))
            reader.load()
            for key, announced in reader.found.items():
                record = f"{name.removesuffix('.pkl')}/{key}"
                if sizes.get(record) != announced:
                    raise ValueError(f"{record} has {sizes.get(record, 0)} bytes, and {announced} are announced")


def lacks_weights(path: Path) -> bool:
    """Return whether torch has left weights out of an archive: those in oneDNN's layout, which are constants of the
    program, and which torch writes without their values.
    """
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE:
        return False
    with archive:
        code = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        return any(_LEFT_OUT in archive.read(name) for name in code)
