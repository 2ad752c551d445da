"""Float input: what a runner takes, and from where."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .files import UNREADABLE

MOST_FLOAT = 1e30
"""Float input at most. Sums of such values leave float32's range, so the FP32 model would have no answer either."""
_FEW = 4096
"""Values that numpy's BLAS sums on one thread."""


def load_npy(path: Path | IO[bytes]) -> npt.NDArray[Any]:
    """Read one array from an ``.npy`` file, pickles refused. Raises InputError naming the file."""
    try:
        # Of a file that numpy opens itself, a damaged archive stays open.
        with path.open("rb") if isinstance(path, Path) else nullcontext(path) as file:
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory; this model takes .npy files") from None
    except UNREADABLE as error:
        why = why_unread(error)
        raise InputError(f"{path} is not an .npy file of numbers, which this model takes: {why}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays; this model takes one .npy file an input")
    return array


def why_unread(error: BaseException) -> str:
    """Return what numpy says of a file that is no array.

    Any other file is a pickle to numpy, and it says how to load it, which would run what is in it.
    """
    text = str(error)
    return "it does not begin as one" if "allow_pickle" in text and "Object arrays" not in text else text


def array_in(archive: Any, name: str) -> npt.NDArray[Any]:
    """Return an array of an opened ``.npz`` file. Raises TypeError for another member: numpy gives its bytes."""
    found = archive[name]
    if not isinstance(found, np.ndarray):
        raise TypeError(f"{name} is no array")
    return found


def is_masked(value: Any) -> bool:
    """Return whether a value is an array of numpy with a mask."""
    masked = sys.modules.get("numpy.ma")  # who has such an array has imported it; to import it takes 10 ms, and files
    return masked is not None and isinstance(value, masked.MaskedArray)


def of_tensor(value: Any, name: str) -> npt.NDArray[Any] | None:
    """Return the values of a torch tensor, None for anything else. ``name`` begins the message for a caller.

    Raises InputError for a tensor whose values numpy cannot hold.
    """
    torch = sys.modules.get("torch")  # a caller that has a tensor has imported torch
    if torch is None or not isinstance(value, torch.Tensor):
        return None
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else "sparse"
        dense = "to_padded_tensor(0)" if value.is_nested else "to_dense()"
        raise InputError(f"{name}got a {kind} tensor; expected a dense one: {dense}")
    if value.is_quantized:
        raise InputError(f"{name}got a quantized tensor; expected its values: dequantize()")
    if value.is_meta:
        raise InputError(f"{name}got a tensor on the device meta, which has no values")
    try:
        return np.asarray(value.numpy(force=True))
    except TypeError:
        dtype = str(value.dtype).removeprefix("torch.")
        raise InputError(f"{name}got {dtype} {tuple(value.shape)}, which numpy has not; convert it: float()") from None


def like_inputs(result: Any, given: Mapping[str, Any]) -> Any:
    """Return the result of a call, an array or a dict of them: as tensors if an input of the call is one."""
    torch = sys.modules.get("torch")
    if torch is None:
        return result
    for each in given.values():
        if isinstance(each, torch.Tensor):
            break
    else:
        return result
    if isinstance(result, dict):
        return {name: torch.from_numpy(each) for name, each in result.items()}
    return torch.from_numpy(result)


def in_own_order(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose numbers have this machine's order of bytes. Files of other programs may have another."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def load_array(item: Any, shape: tuple[int, ...] | None, *, check_finite: bool) -> npt.NDArray[np.float32]:
    """Return one float32 input of ``shape``, None for any: an array, a tensor, an ``.npy`` file or its path.

    Raises InputError.
    """
    name = ""
    if isinstance(item, str | os.PathLike):
        name, array = f"{item}: ", load_npy(Path(item))
    elif hasattr(item, "read"):
        name = f"{getattr(item, 'name', type(item).__name__)}: "
        array = load_npy(item)
    elif (tensor := of_tensor(item, "")) is not None:
        array = tensor
    elif hasattr(item, "__array__") and not is_masked(item):
        array = np.asarray(item)
    else:
        wanted = "" if shape is None else f" {shape}"
        raise InputError(f"got {type(item).__name__}; expected a float32 array{wanted} or an .npy file")
    array = in_own_order(array)
    if shape is not None and (array.dtype != np.float32 or array.shape != shape):
        raise InputError(f"{name}got {array.dtype} {array.shape}; expected one input, float32 {shape}")
    if check_finite and array.dtype == np.float32 and array.size and not is_finite(array):
        raise InputError(f"{name or 'the array: '}it has a value that is not finite or above {MOST_FLOAT:g}")
    return array


def require_finite(batch: npt.NDArray[np.float32]) -> None:
    """Raise InputError that says which sample has a value that INT8 cannot hold."""
    if is_finite(batch):
        return
    sample = next(number for number, one in enumerate(batch) if not is_finite(one))
    one = batch[sample]
    bad = one[~(np.abs(one) <= MOST_FLOAT)].flat[0]
    raise InputError(
        f"sample {sample} of the batch has {bad:g}; float input must be finite and at most {MOST_FLOAT:g} "
        "(Runner(check_finite=False) skips this check)"
    )


def is_finite(array: npt.NDArray[Any]) -> bool:
    """Return whether all floats are finite and at most ``MOST_FLOAT``.

    The sum of all squares is NaN, infinite or above that limit's where one of them is not, and is there in a sixth of
    the time for few values. It may be infinite otherwise too. Extremes are found without a temporary array.
    """
    if array.size <= _FEW and float(np.vdot(array, array)) < MOST_FLOAT * MOST_FLOAT:
        return True
    return bool(array.max() <= MOST_FLOAT and array.min() >= -MOST_FLOAT)  # false for NaN, which both pass on
