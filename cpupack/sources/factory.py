"""``python:FILE.py:factory``: samples that the user's own code returns or yields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError, CpupackError, ModelError
from cpupack.model.sources import load_factory
from cpupack.model.user_code import describe_failure
from cpupack.sources.named import row_of_item, split_item
from cpupack.sources.request import Request, floats_of, pixels_of
from cpupack.sources.texts import is_text_item, rows_of_texts, text_item


def read(spec: str, request: Request) -> Samples:
    """Call the factory without arguments and take the first ``request.samples`` items of what it returns.

    An item is one sample, a ``(sample, label)`` pair, or, for a metric, a ``(sample, target)`` pair. A target may have
    any shape. If the recipe has [preprocess], a sample is a PIL image or uint8 pixels ``(height, width, channels)``.
    Otherwise it is an array or tensor of floats in the model's input shape. Of several inputs, it is a dict by their
    names, or a tuple in their order. Of a model with a tokenizer, it is a text, or a dict with ``text``, and maybe
    ``text_pair`` and ``label``.
    """
    try:
        factory = load_factory(spec, request.loaded, key=f"source {request.spec}")
    except ModelError as error:
        raise CalibrationError(error.message, hint=error.hint) from error
    items = list(islice(_items(factory, request), request.samples))
    if not items:
        raise CalibrationError(f"{request.spec} gave no samples")
    request.warn_if_few(len(items))
    if request.tokenizer is not None and any(map(is_text_item, items)):
        return _texts(items, request)
    pairs = [split_item(item, request) if request.takes_rows else _pair(item) for item in items]
    names = [f"item {index}" for index in range(len(items))]
    seconds = [second for _, second in pairs]
    labels = _labels(seconds, names, request) if request.labelled else None
    targets = _targets(seconds, names, request) if request.targets else None
    if request.takes_rows:
        request.check_memory(len(items))
        rows = np.stack([row_of_item(value, request, name) for (value, _), name in zip(pairs, names, strict=True)])
        return Samples(rows, request.spec, tuple(names), labels=labels, targets=targets)
    samples = [value if isinstance(value, Image.Image) else _array(value) for value, _ in pairs]
    if request.preprocess is not None and all(map(_is_pixels, samples)):
        pixels = np.stack([pixels_of(sample, request, name) for sample, name in zip(samples, names, strict=True)])
        return Samples(pixels, request.spec, tuple(names), request.preprocess, labels=labels, targets=targets)
    floats = []
    for sample, name in zip(samples, names, strict=True):
        if isinstance(sample, Image.Image):
            raise CalibrationError(
                f"{request.spec}: {name} is a PIL image, and "
                + ("others are not" if request.preprocess else "the recipe has no [preprocess]")
            )
        floats.append(floats_of(sample[None], request, [name])[0])
    return Samples(np.stack(floats), request.spec, tuple(names), labels=labels, targets=targets)


def _texts(items: list[Any], request: Request) -> Samples:
    """Return texts as rows of the model's inputs."""
    names = [f"item {index}" for index in range(len(items))]
    pairs = [text_item(item, name, request) for item, name in zip(items, names, strict=True)]
    answers = [second for _, second in pairs]
    return Samples(
        rows_of_texts([first for first, _ in pairs], names, request),
        request.spec,
        tuple(names),
        labels=_labels(answers, names, request) if request.labelled else None,
        targets=_targets(answers, names, request) if request.targets else None,
    )


def _items(factory: Any, request: Request) -> Iterator[Any]:
    """Yield the factory's items. An exception in the user's code becomes a CalibrationError with its file and line."""
    try:
        made = factory()
        if isinstance(made, Iterable) or hasattr(made, "__getitem__"):
            yield from made
            return
    except CpupackError:
        raise
    except (Exception, SystemExit) as error:
        raise CalibrationError(f"{request.spec} failed: {describe_failure(error)}") from error
    raise CalibrationError(
        f"{request.spec} returned {type(made).__name__}",
        hint="return or yield arrays, or (array, label) pairs",
    )


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    return item, None


def _array(value: Any) -> np.ndarray[Any, Any]:
    return np.asarray(value)


def _is_pixels(sample: Any) -> bool:
    return isinstance(sample, Image.Image) or sample.dtype == np.uint8


def _labels(labels: list[Any], names: list[str], request: Request) -> npt.NDArray[np.int64] | None:
    """Return class indices, or None if they are not required and the second items of the pairs are something else."""
    if not request.required and not all(map(_is_index, labels)):
        return None
    return np.array([_label(label, name, request) for label, name in zip(labels, names, strict=True)], np.int64)


def _is_index(label: Any) -> bool:
    number = np.asarray(label) if label is not None else None
    return number is not None and number.shape == () and number.dtype.kind in "iu" and bool(number >= 0)


def _label(label: Any, name: str, request: Request) -> int:
    if not _is_index(label):
        raise CalibrationError(
            f"{request.spec}: {name} has no label, which accuracy needs"
            if label is None
            else f"{request.spec}: the label of {name} is {label!r}; it must be a class index",
            hint="yield (sample, label) pairs",
        )
    return int(label)


def _targets(targets: list[Any], names: list[str], request: Request) -> np.ndarray[Any, Any]:
    """Return the targets as one array. Raises CalibrationError if one is missing or their shapes differ."""
    arrays = []
    for target, name in zip(targets, names, strict=True):
        if target is None:
            raise CalibrationError(
                f"{request.spec}: {name} has no target, which the metric needs",
                hint="yield (sample, target) pairs",
            )
        arrays.append(np.asarray(target))
        if arrays[-1].shape != arrays[0].shape:
            raise CalibrationError(
                f"{request.spec}: the target of {name} has shape {arrays[-1].shape}, "
                f"and that of {names[0]} {arrays[0].shape}",
                hint="pad them to one shape",
            )
    return np.stack(arrays)
