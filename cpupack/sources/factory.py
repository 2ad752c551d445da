"""``python:FILE.py:factory``: samples that the user's own code returns or yields."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError, CpupackError, ModelError
from cpupack.model.sources import load_factory
from cpupack.model.user_code import describe_failure
from cpupack.sources.answers import class_labels, metric_targets
from cpupack.sources.arrays import DATA_KEYS
from cpupack.sources.named import row_of_item, split_item
from cpupack.sources.request import Request, array_of, floats_of, image_of, pixels_of, warn_of_raw_pixels
from cpupack.sources.texts import is_text_item, samples_of_texts, text_item

_YIELD = "yield pairs: of a sample and its label, or for a metric its target"


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
        names = [f"item {index}" for index in range(len(items))]
        entries = [text_item(item, name, request) for item, name in zip(items, names, strict=True)]
        return samples_of_texts(entries, names, request, _YIELD)
    pairs = [split_item(item, request) if request.takes_rows else _pair(item) for item in items]
    names = [f"item {index}" for index in range(len(items))]
    seconds = [second for _, second in pairs]
    labels = class_labels(seconds, names, request, _YIELD)
    targets = metric_targets(seconds, names, request, _YIELD)
    if request.takes_rows:
        request.check_memory(len(items))
        rows = np.stack([row_of_item(value, request, name) for (value, _), name in zip(pairs, names, strict=True)])
        return Samples(rows, request.spec, tuple(names), labels=labels, targets=targets)
    samples = [_sample_of(value, request, name) for (value, _), name in zip(pairs, names, strict=True)]
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
    data = np.stack(floats)
    warn_of_raw_pixels(data, request)
    return Samples(data, request.spec, tuple(names), labels=labels, targets=targets)


def _items(factory: Any, request: Request) -> Iterator[Any]:
    """Yield the factory's items. An exception in the user's code becomes a CalibrationError with its file and line."""
    try:
        made = factory()
        if isinstance(made, DataLoader) and made.batch_sampler is not None:
            for batch in made:
                yield from _apart(batch)
            return
        if isinstance(made, Iterable) and not isinstance(made, Mapping | str | bytes) and not _is_frame(made):
            yield from made
            return
        if hasattr(made, "__getitem__") and not isinstance(made, Iterable):
            # A Dataset need not raise IndexError after its last sample. What has no length ends so.
            yield from (made[number] for number in range(len(made))) if hasattr(made, "__len__") else iter(made)
            return
    except CpupackError:
        raise
    except (Exception, SystemExit) as error:
        raise CalibrationError(f"{request.spec} failed: {describe_failure(error)}") from error
    raise CalibrationError(
        f"{request.spec} returned {type(made).__name__}",
        hint="return a dict for each sample; arrays of all samples by name are for np.savez and arrays:FILE.npz"
        if isinstance(made, Mapping)
        else 'return table.to_dict("records") where its columns are inputs, or table.to_numpy() for one input of all'
        if _is_frame(made)
        else "return or yield arrays, or (array, label) pairs; a Dataset and a DataLoader will do",
    )


def _is_frame(made: Any) -> bool:
    """Whether a table of pandas is returned, which gives the names of its columns one after the other."""
    return hasattr(made, "columns") and hasattr(made, "to_dict")


def _apart(batch: Any) -> Iterator[Any]:
    """Yield the samples of a batch that a DataLoader has put together."""
    count = _count(batch)
    if count is None:
        raise TypeError("the DataLoader gives batches without tensors: return its dataset")
    for number in range(count):
        yield _sample(batch, number)


def _count(batch: Any) -> int | None:
    if isinstance(batch, torch.Tensor | np.ndarray):
        return len(batch) if batch.ndim else None
    inside = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((found for each in inside if (found := _count(each)) is not None), None)


def _sample(batch: Any, number: int) -> Any:
    if isinstance(batch, torch.Tensor | np.ndarray):
        return batch[number]
    if isinstance(batch, Mapping):
        return {key: _sample(each, number) for key, each in batch.items()}
    if isinstance(batch, tuple | list) and not all(isinstance(each, str) for each in batch):
        return tuple(_sample(each, number) for each in batch)
    return batch[number]  # texts are put together as a list of them


def _pair(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    if isinstance(item, tuple) and len(item) == 1:  # of a TensorDataset without labels
        return item[0], None
    return item, None


def _sample_of(value: Any, request: Request, name: str) -> Any:
    """Return a sample of the only input: a PIL image, or an array. An image may be named by its path.

    Raises CalibrationError for what is neither.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):
        (own,) = request.inputs
        if len(value) != 1 or next(iter(value)) not in {own.name, *DATA_KEYS}:
            raise CalibrationError(
                f"{request.spec}: {name} is a dict with {', '.join(map(str, value)) or 'nothing'}, and the model has "
                "one input",
                hint="yield its array alone, or (array, label) pairs",
            )
        return _sample_of(next(iter(value.values())), request, name)
    if request.preprocess is not None and isinstance(value, str | bytes | os.PathLike):
        return image_of(value, request, name)
    return array_of(value, request, name)


def _is_pixels(sample: Any) -> bool:
    return isinstance(sample, Image.Image) or sample.dtype == np.uint8
