"""Tensors of the Open Inference Protocol: datatypes, JSON data and raw bytes. Pure: bytes in, arrays out.

Version 2 of the protocol names the datatypes (BOOL, UINT8 ... FP64, BYTES) and their raw form: little-endian elements
in row-major order; elements of BYTES each have their length before them, as four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..rows import mixes_truth

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in (
        ("BOOL", "?"), ("UINT8", "u1"), ("UINT16", "<u2"), ("UINT32", "<u4"), ("UINT64", "<u8"), ("INT8", "i1"),
        ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8"), ("FP16", "<f2"), ("FP32", "<f4"), ("FP64", "<f8"),
    )
}  # fmt: skip
"""The numpy form of each datatype except BYTES, and BF16, which numpy does not have."""
BYTES = "BYTES"
KNOWN = (*DTYPES, "BF16", BYTES)
MAX_ELEMENTS = 2**31
"""More elements than any body could hold; a larger shape is a mistake or an attack."""

_MOST_EXACT = 2.0**53

Buffer = bytes | bytearray | memoryview


def whole(value: Any) -> Any:
    """Return a number of JSON like 3.0 as 3, and anything else as it is. JSON has one kind of number."""
    return int(value) if type(value) is float and value.is_integer() else value


def check_shape(shape: Any, where: str) -> tuple[int, ...]:
    """Return a shape as a tuple. Raises InputError for what is no list of sizes from 0."""
    shape = [whole(size) for size in shape] if isinstance(shape, list | tuple) else shape
    if not isinstance(shape, list | tuple) or not all(
        type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape
    ):
        raise InputError(f"{where}: shape is {short(shape)}; expected a list of whole numbers from 0 to {MAX_ELEMENTS}")
    if math.prod(shape) > MAX_ELEMENTS:
        raise InputError(
            f"{where}: shape {list(shape)} has {math.prod(shape)} elements; at most {MAX_ELEMENTS} are taken"
        )
    return tuple(shape)


def check_datatype(datatype: Any, where: str) -> str:
    """Return the name of a datatype of the protocol. Raises InputError for any other."""
    if not isinstance(datatype, str) or datatype not in KNOWN:
        raise InputError(f"{where}: datatype is {short(datatype)}; expected one of {', '.join(KNOWN)}")
    return datatype


def from_raw(data: Buffer, datatype: str, shape: tuple[int, ...], where: str) -> npt.NDArray[Any] | list[memoryview]:
    """Return the array that raw bytes hold, without a copy; for BYTES the elements. Raises InputError."""
    count = math.prod(shape)
    if datatype == BYTES:
        return split_bytes(data, count, where)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InputError(f"{where}: datatype {datatype} cannot be read here; send FP32")
    if len(data) != count * dtype.itemsize:
        raise InputError(
            f"{where}: {len(data)} bytes of data; {datatype} of shape {list(shape)} has {count * dtype.itemsize}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def split_bytes(data: Buffer, count: int, where: str) -> list[memoryview]:
    """Return the ``count`` elements of raw BYTES. Raises InputError where lengths and data disagree."""
    view = memoryview(data)
    if count > len(view) // 4:
        raise InputError(f"{where}: {len(view)} bytes of data cannot hold {count} elements of BYTES")
    found, at = [], 0
    for number in range(count):
        if at + 4 > len(view):
            raise InputError(f"{where}: the data ends before element {number} of {count}")
        (length,) = struct.unpack_from("<I", view, at)
        at += 4
        if length > len(view) - at:
            raise InputError(f"{where}: element {number} has a length of {length}, and {len(view) - at} bytes are left")
        found.append(view[at : at + length])
        at += length
    if at != len(view):
        raise InputError(f"{where}: {len(view) - at} bytes are left after the last of {count} elements")
    return found


def join_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the raw form of BYTES."""
    return b"".join(part for one in elements for part in (struct.pack("<I", len(one)), one))


def from_json(data: Any, datatype: str, shape: tuple[int, ...], where: str) -> npt.NDArray[Any] | list[memoryview]:
    """Return the array that JSON data hold, flat or nested; for BYTES the elements. Raises InputError."""
    if not isinstance(data, list):
        raise InputError(f"{where}: data is {short(data)}; expected a list")
    count = math.prod(shape)
    if datatype == BYTES:
        return _texts(data, count, where)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InputError(f"{where}: datatype {datatype} has no JSON form here; send FP32")
    try:
        array = np.array(data)
    except (ValueError, OverflowError):
        raise InputError(
            f"{where}: data is not a list of numbers, flat or nested evenly: it has rows of different lengths, or a "
            "number that is too large"
        ) from None
    if dtype.kind in "iu" and array.dtype.kind == "f" and (array == np.rint(array)).all() and _exact(array):
        array = array.astype(np.int64)  # 3.0 is a whole number in JSON
    kind = array.dtype.kind
    if kind in "iuf" and mixes_truth(data):
        raise InputError(f"{where}: data has true or false among its numbers")
    if array.size and kind not in ("b" if datatype == "BOOL" else "iu" if dtype.kind in "iu" else "iuf"):
        raise InputError(f"{where}: data does not hold values of {datatype}")
    if array.size != count or (array.ndim > 1 and array.shape != shape):
        raise InputError(f"{where}: data has shape {list(array.shape)}; {list(shape)} is stated")
    if array.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"{where}: data holds a number that {datatype} cannot")
    with np.errstate(over="ignore"):  # what becomes infinite is refused where finite values are asked for
        return array.astype(dtype).reshape(shape)


def to_json(array: npt.NDArray[Any]) -> list[Any]:
    """Return the elements, flat and in row-major order. Values that JSON does not have become None."""
    values = array.reshape(-1).tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in values]
    return list(values)


def _exact(array: npt.NDArray[Any]) -> bool:
    """Return whether floats are so small that no whole number is missing between them."""
    return bool((np.abs(array) <= _MOST_EXACT).all())


def _texts(data: list[Any], count: int, where: str) -> list[memoryview]:
    flat: list[Any] = data
    while flat and all(isinstance(one, list) for one in flat):
        flat = [value for one in flat for value in one]
    if not all(isinstance(one, str) for one in flat):
        raise InputError(f"{where}: elements of BYTES must be strings in JSON")
    if len(flat) != count:
        raise InputError(f"{where}: data has {len(flat)} elements; the shape says {count}")
    try:
        return [memoryview(one.encode("utf-8")) for one in flat]
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: an element is not valid text: {error.reason}") from None


def short(value: Any) -> str:
    """Return a value of a request as an error shows it, however long it is."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
