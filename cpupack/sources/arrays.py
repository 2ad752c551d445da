"""``arrays:FILE.npz``: samples, and labels or targets if they are needed, from a file that numpy saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.model.fit import listed
from cpupack.runtime.arrays import array_in
from cpupack.runtime.files import UNREADABLE
from cpupack.runtime.magic import HEAD_BYTES, recognized
from cpupack.sources.named import only_plain, rows_of_arrays
from cpupack.sources.request import Array, Request, floats_of, pixels_of, warn_of_raw_pixels

DATA_KEYS = ("data", "images", "x")
LABELS_KEY = "labels"
TARGETS_KEY = "targets"
_ARRAY, _ARCHIVE = b"\x93NUMPY", b"PK"
"""How files of numpy begin."""
_MOST_CLASSES = 2**31 - 1


def read(file: str, request: Request) -> Samples:
    """Return rows drawn with the seed.

    The array holds uint8 pixels ``(n, height, width, channels)`` or floats ``(n, *input_shape)``. Pixels need
    [preprocess] in the recipe, which is applied unless they already have the model's size.
    """
    path = request.loaded.resolve(file)
    own = [each.name for each in request.inputs]
    arrays, keys = _load(path, [*own, *DATA_KEYS], request)
    if request.takes_rows:
        return _rows(arrays, keys, path, request)
    found = [key for key in own if key in arrays] or [key for key in DATA_KEYS if key in arrays]
    if len(found) != 1:
        raise CalibrationError(
            f"{request.spec}: {path} must have one array named {' or '.join(DATA_KEYS)}; "
            f"it has {listed(keys) or 'none'}",
            hint="np.savez(path, data=..., labels=...)",
        )
    data = arrays[found[0]]
    if data.ndim == 0 or len(data) == 0:
        raise CalibrationError(f"{request.spec}: the array {found[0]} of {path} is empty")
    labels = _labels(arrays, len(data), request) if request.labelled else None
    targets = _targets(arrays, len(data), request) if request.targets else None
    rows = request.choose(len(data))
    names = [f"row {row}" for row in rows]
    labels = labels[rows] if labels is not None else None
    targets = targets[rows] if targets is not None else None
    if data.dtype == np.uint8 and request.preprocess is not None:
        request.check_memory(len(rows))
        pixels = np.stack([pixels_of(data[row], request, name) for row, name in zip(rows, names, strict=True)])
        return Samples(pixels, request.spec, tuple(names), request.preprocess, labels=labels, targets=targets)
    floats = floats_of(data[rows], request, names)
    warn_of_raw_pixels(floats, request)
    return Samples(floats, request.spec, tuple(names), labels=labels, targets=targets)


def _rows(arrays: dict[str, Array], keys: list[str], path: Path, request: Request) -> Samples:
    """Return samples of several inputs, each from the array with its name."""
    known = {each.name: arrays[each.name] for each in request.inputs if each.name in arrays}
    only, others = only_plain(request), [key for key in DATA_KEYS if key in arrays]
    if only is not None and only.name not in known and len(others) == 1:
        known[only.name] = arrays[others[0]]
    counts = {name: len(array) if array.ndim else 0 for name, array in known.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(f"{request.spec}: the arrays of {path} have different numbers of samples: {told}")
    count = next(iter(counts.values()), 0)
    if known and not count:
        raise CalibrationError(f"{request.spec}: the array {next(iter(known))} of {path} is empty")
    rows = request.choose(count) if known else np.arange(0)
    data = rows_of_arrays(known or dict.fromkeys(keys, np.empty(0)), list(rows), request, str(path))
    labels = _labels(arrays, count, request) if request.labelled else None
    targets = _targets(arrays, count, request) if request.targets else None
    return Samples(
        data,
        request.spec,
        tuple(f"row {row}" for row in rows),
        labels=labels[rows] if labels is not None else None,
        targets=targets[rows] if targets is not None else None,
    )


def _load(path: Path, names: list[str], request: Request) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays of ``names``, labels and targets, and the names of all arrays in the file."""
    if not path.is_file():
        raise CalibrationError(f"{request.spec}: {path} does not exist", hint="paths are relative to the recipe")
    try:
        # The file is opened here, because numpy does not close a damaged archive.
        with path.open("rb") as opened:
            head = opened.read(HEAD_BYTES)
            if head.startswith(_ARRAY):
                raise CalibrationError(
                    f"{request.spec}: {path} is a single .npy array",
                    hint="save it with np.savez(path, data=..., labels=...)",
                )
            if not head.startswith(_ARCHIVE):  # numpy would say that it is a pickle, and how to run it
                kind = recognized(head)
                raise CalibrationError(
                    f"{request.spec}: {path} is {kind.what if kind else 'not an archive of numpy'}",
                    hint=kind.advice if kind else "save it with np.savez(path, data=..., labels=...)",
                )
            opened.seek(0)
            loaded = np.load(opened, allow_pickle=False)
            found = [key for key in (*names, LABELS_KEY, TARGETS_KEY) if key in loaded]
            return {key: array_in(loaded, key) for key in found}, loaded.files
    except UNREADABLE as error:
        objects = "Object arrays" in str(error)
        raise CalibrationError(
            f"{request.spec}: {path} cannot be read as .npz: "
            + ("it has an array of Python objects, which are pickles and not run" if objects else _described(error)),
            hint="save arrays of numbers: np.asarray(values, np.float32)" if objects else None,
        ) from error


def _described(error: BaseException) -> str:
    """Return what numpy says; of an array that does not fit into memory, that."""
    return f"it does not fit into memory: {error}" if isinstance(error, MemoryError) else str(error)


def _labels(arrays: dict[str, Array], count: int, request: Request) -> npt.NDArray[np.int64] | None:
    """Return the class indices. Unusable labels are an error if labels are required, else a warning."""
    if LABELS_KEY not in arrays:
        if not request.required:
            return None
        raise CalibrationError(
            f'{request.spec}: there is no array "{LABELS_KEY}", which accuracy needs',
            hint="np.savez(path, data=..., labels=...)",
        )
    labels = arrays[LABELS_KEY]
    problem = None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        problem = (
            f"labels are {labels.dtype} of shape {labels.shape}; they must be {count} integers, one for each sample"
        )
    elif labels.min() < 0:
        problem = f"label {labels.min()} of row {labels.argmin()} is negative"
    elif labels.max() > _MOST_CLASSES:
        problem = f"label {labels.max()} of row {labels.argmax()} is no class of any model"
    if problem is None:
        return labels.astype(np.int64)
    if request.required:
        whole = "save them as integers: labels.astype(np.int64)"
        raise CalibrationError(f"{request.spec}: {problem}", hint=whole if labels.dtype.kind == "f" else None)
    request.progress.warn(f"{request.spec}: accuracy is not measured: {problem}")
    return None


def _targets(arrays: dict[str, Array], count: int, request: Request) -> Array:
    key = TARGETS_KEY if TARGETS_KEY in arrays else LABELS_KEY
    if key not in arrays:
        raise CalibrationError(
            f'{request.spec}: there is no array "{TARGETS_KEY}" (or "{LABELS_KEY}"), which the metric needs',
            hint="np.savez(path, data=..., targets=...)",
        )
    targets = arrays[key]
    if targets.ndim == 0 or len(targets) != count:
        raise CalibrationError(
            f"{request.spec}: {key} have shape {targets.shape}; their first dimension must be the {count} samples"
        )
    return targets
