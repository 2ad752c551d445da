"""Checks of a model's inputs and outputs: ``input_shape``, ``[[input]]``, ``[[output]]``, ``[preprocess]``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cpupack.recipe import open_sizes
from cpupack.recipe.lines import Key
from cpupack.recipe.problems import Problem
from cpupack.recipe.text_checks import DIRECTORIES
from cpupack.recipe.view import Check, UnusableError, View

LARGEST_EXACT = 2**24
"""Whole numbers up to this are exact in float32, in which the engine takes them (``runtime/signature.py``)."""
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}

_SHAPE = ("model", "input_shape")
_WHOLE = ("int64", "uint8")
_MOST = {"mean": 2.0, "std": 10.0}
"""More than any pixel scaled to 0..1 needs. Tools that do not scale have 123.675 and 58.395 for ImageNet."""
_NOT_IN_NAMES = " /\\"


def _inputs(view: View) -> Iterator[Problem]:
    """Check that the inputs are described once, by ``input_shape`` or by tables."""
    if not view.given("input"):
        if view(*_SHAPE) is None and view("model", "source").partition(":")[0] not in DIRECTORIES:
            yield Problem(
                _SHAPE,
                "is missing; it must be a list of 1 or more integers of at least 1, the shape of the only float32 "
                "input without the batch (other models have an [[input]] table for each input)",
                missing=True,
            )
        return
    if view.given(*_SHAPE):
        yield Problem(_SHAPE, "contradicts [[input]], which has the shape of each input; leave one of them out")
    if view.given("preprocess"):
        yield Problem(
            ("preprocess",), "belongs to the input that is an image: write it as [input.preprocess] below its [[input]]"
        )
    if not view("input"):
        yield Problem(("input",), "has no table; leave it out, or describe every input")


def _lengths(view: View) -> Iterator[Problem]:
    """Check what has a length: the inputs with a ``pad``, which have it in common."""
    tables = [(index, table) for index, table in enumerate(view("input") or []) if "pad" in table]
    if not tables:
        directory = view("model", "source").partition(":")[0] in DIRECTORIES
        if view.given("lengths") and not view.given("tokenizer") and not directory:
            yield Problem(("lengths",), "needs an input whose length may differ: give its [[input]] a pad")
        return
    longest: set[int] = set()
    for index, table in tables:
        if not table["shape"] or "preprocess" in table:
            what = "an image" if table["shape"] else "one number for each sample"
            yield Problem(("input", index, "pad"), f"belongs to an input with positions, and this is {what}")
            continue
        first, *rest = table["shape"]
        if first == 1 and any(each > 1 for each in rest):
            yield Problem(
                ("input", index, "pad"),
                f"is for positions, which are the first dimension of shape, and {table['shape']} has one position; "
                "give the shape as [positions, ...], and turn it in forward: x.transpose(1, 2)",
            )
            continue
        longest.add(first)
    if len(longest) > 1:
        yield Problem(
            ("input", tables[-1][0], "shape"),
            f"inputs with a pad have the same length, not {' and '.join(map(str, sorted(longest)))}",
        )
    values = view("lengths", "values") if view.given("lengths") else "auto"
    if isinstance(values, list) and longest and max(values) > min(longest):
        yield Problem(
            ("lengths", "values"), f"{max(values)} is more than {min(longest)}, the greatest length of the inputs"
        )


def _each_input(view: View) -> Iterator[Problem]:
    tables = view("input")
    for index, table in enumerate(tables):
        yield from _input(("input", index), table)
        if table["name"] in [other["name"] for other in tables[:index]]:
            yield Problem(("input", index, "name"), f'"{table["name"]}" appears twice')
        if "preprocess" in table:
            yield from preprocess_problems(
                View({"preprocess": table["preprocess"]}, set(), view.path(".")),
                ("input", index, "preprocess"),
                ("input", index, "shape"),
                table["shape"],
            )
    if tables and all("default" in table or "state" in table for table in tables):
        yield Problem(
            ("input", len(tables) - 1, "default" if "default" in tables[-1] else "state"),
            "every input has a default; at least one must be given, which says how many samples there are",
        )


def _input(key: Key, table: dict[str, Any]) -> Iterator[Problem]:
    dtype, vocabulary = table.get("dtype", "float32"), table.get("vocabulary")
    first, *keys = table["name"].split(".")
    if not first.isidentifier() or not all(each.isidentifier() or each.isdecimal() for each in keys):
        yield Problem((*key, "name"), f'"{table["name"]}" is not the name of an argument of a Python function')
    if table.get("batch_dim", 0) > len(table["shape"]):
        yield Problem(
            (*key, "batch_dim"),
            f"is {table['batch_dim']}, and forward takes {len(table['shape']) + 1} dimensions of it, with the batch: "
            f"{len(table['shape'])} is the last one",
        )
    if table.get("batch_dim", 0) and "preprocess" in table:
        yield Problem((*key, "batch_dim"), "is for sequences; images have the batch first")
    if vocabulary is not None and dtype not in _WHOLE:
        yield Problem((*key, "vocabulary"), f'has no effect for dtype = "{dtype}"; ids are int64 or uint8')
    elif vocabulary is not None and vocabulary > (most := 256 if dtype == "uint8" else LARGEST_EXACT):
        yield Problem((*key, "vocabulary"), f"must be at most {most} for {dtype}, not {vocabulary}")
    if "preprocess" in table and dtype != "float32":
        yield Problem((*key, "dtype"), f'"{dtype}" is not what [input.preprocess] makes of an image', "float32")
    if "default" in table and (expected := _why_no_default(table["default"], dtype, vocabulary)) is not None:
        yield Problem((*key, "default"), f'must be {expected} for dtype = "{dtype}", not {_toml(table["default"])}')


def _states(view: View) -> Iterator[Problem]:
    """Check the inputs that are states: float32 values alone, each with an output of its own that the wheel has."""
    outputs = {table["name"]: table for table in view("output") or []}
    seen: set[str] = set()
    for index, table in enumerate(view("input") or []):
        name = table.get("state")
        if name is None:
            continue
        key: Key = ("input", index, "state")
        if table.get("dtype", "float32") != "float32":
            yield Problem(("input", index, "dtype"), f'"{table["dtype"]}" is no dtype of a state', "float32")
        for other in ("preprocess", "pad"):
            if other in table:
                yield Problem(("input", index, other), "has no effect on a state, which the model itself computes")
        if name in seen:
            yield Problem(key, f'"{name}" is the next value of another input too')
        seen.add(name)
        for other in ("drop", "apply"):
            if outputs.get(name, {}).get(other):
                yield Problem(
                    key, f'"{name}" has {other} in its [[output]]; a state is passed on as the model gives it'
                )
    stream = view.given("model", "stream") and view("model", "stream")
    if stream and view.given("preprocess"):
        yield Problem(("model", "stream"), "is for models of sequences, and this one takes images")
    if seen and stream:
        yield Problem(("model", "stream"), "is for models without a state of their own, and an [[input]] has state")


def _why_no_default(value: Any, dtype: str, vocabulary: int | None) -> str | None:
    """Return what a default must be, None where it is that."""
    if dtype == "bool":
        return None if isinstance(value, bool) else "true or false"
    if dtype == "float32":
        return "a number" if isinstance(value, bool) else None
    low, high = (0, 255) if dtype == "uint8" else (-LARGEST_EXACT, LARGEST_EXACT)
    low, high = (low, high) if vocabulary is None else (0, vocabulary - 1)
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return None if fits else f"an integer from {low} to {high}"


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _outputs(view: View) -> Iterator[Problem]:
    tables = view("output")
    for index, table in enumerate(tables):
        key: Key = ("output", index)
        if table["name"] in [other["name"] for other in tables[:index]]:
            yield Problem((*key, "name"), f'"{table["name"]}" appears twice')
        if len(table) == 1:
            yield Problem(key, f'says nothing about "{table["name"]}"; add rename, drop or apply, or leave it out')
        if table.get("drop", False):
            for other in ("rename", "apply", "dim"):
                if other in table:
                    yield Problem((*key, other), "has no effect on an output that is dropped")
        elif "dim" in table and table.get("apply") not in {"softmax", "argmax"}:
            yield Problem((*key, "dim"), 'has no effect without apply = "softmax" or "argmax"')
        name = table.get("rename", "x")
        if not name.isprintable() or any(each in _NOT_IN_NAMES for each in name):
            yield Problem((*key, "rename"), f'"{name}" has a space, a slash or a character that cannot be printed')
        if "rename" in table and table["rename"] in [other.get("rename") for other in tables[:index]]:
            yield Problem((*key, "rename"), f'"{table["rename"]}" is the name of another output too')


def _preprocess(view: View) -> Iterator[Problem]:
    if not view.given("preprocess") or view.given("input"):
        return
    shape = view(*_SHAPE)
    if shape is not None:
        yield from preprocess_problems(view, ("preprocess",), _SHAPE, shape)


def preprocess_problems(view: View, key: Key, shape_key: Key, shape: list[Any]) -> Iterator[Problem]:
    """Yield the contradictions between a view's ``preprocess``, which is at ``key`` of the recipe, and a shape."""
    mode = view("preprocess", "mode")
    for name in ("mean", "std", "pad_value"):
        count = len(view("preprocess", name))
        if count not in {1, CHANNELS[mode]}:
            yield Problem((*key, name), f'has {count} values; mode = "{mode}" takes {_one_or(CHANNELS[mode])}')
    for name, most in _MOST.items():
        largest = max(map(abs, view("preprocess", name)))
        if largest > most:
            yield Problem(
                (*key, name),
                f"has {largest:g}, which is of pixels from 0 to 255; here pixels are scaled to 0..1 first: divide by "
                f"255 ({largest / 255:.4g})",
            )
    yield from _padding(view, key)
    told = f"{shape_key[-1]} = {shape}"
    if len(shape) != 3:
        table = "[preprocess]" if len(key) == 1 else "[input.preprocess]"
        yield Problem(
            shape_key,
            f"{shape} is not [channels, height, width], which {table} needs; "
            f"leave {table} out if the model does not take images",
        )
        return
    if shape[0] != CHANNELS[mode]:
        near = next((name for name, channels in CHANNELS.items() if channels == shape[0]), None)
        yield Problem((*key, "mode"), f'"{mode}" gives {CHANNELS[mode]} channels, and {told} takes {shape[0]}', near)
    if open_sizes.is_open(shape):
        yield from open_sizes.preprocess_problems(view("preprocess"), key)
    else:
        yield from _size(view, key, told, shape)


def _padding(view: View, key: Key) -> Iterator[Problem]:
    """Check what belongs to ``fit = "pad"``."""
    if view("preprocess", "fit") == "pad":
        if not isinstance(view("preprocess", "resize"), list):
            yield Problem((*key, "fit"), '"pad" needs resize = [height, width], the size that an image is padded to')
        if view("preprocess", "crop") is not None:
            yield Problem((*key, "crop"), 'has no use with fit = "pad", which keeps the whole image; leave it out')
        return
    for name in ("pad_value", "place"):
        if view.given("preprocess", name):
            yield Problem((*key, name), 'has no effect without fit = "pad"')


def _one_or(channels: int) -> str:
    return "1" if channels == 1 else f"1 or {channels}"


def _size(view: View, key: Key, told: str, shape: list[int]) -> Iterator[Problem]:
    resize, crop = view("preprocess", "resize"), view("preprocess", "crop")
    if crop is not None:
        size = [crop, crop] if isinstance(crop, int) else crop
        if size != shape[1:]:
            yield Problem((*key, "crop"), f"gives {_by(size)}, and {told} takes {_by(shape[1:])}")
    elif isinstance(resize, list):
        if resize != shape[1:]:
            yield Problem((*key, "resize"), f"gives {_by(resize)}, and {told} takes {_by(shape[1:])}")
    elif resize is not None:
        yield Problem(
            (*key, "resize"),
            f"sets only the shorter edge, so images would have different sizes; add crop = {shape[1:]} "
            "or give [height, width]",
        )


def _by(size: list[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _is_directory(view: View) -> bool:
    """Return whether the model's directory may say how an image becomes its input."""
    return str(view("model", "source")).partition(":")[0] == "transformers"


def why_no_images(view: View) -> str | None:
    """Return why image folders cannot be the data of a recipe, None where they can."""
    if not view.given("input"):
        return (
            None
            if view.given("preprocess") or _is_directory(view)
            else "images need [preprocess], which says how an image becomes the model's input"
        )
    try:
        tables = view("input")
    except UnusableError:
        return None
    images = [table["name"] for table in tables if "preprocess" in table]
    if len(images) != 1:
        return (
            f"a folder of images is data for one image, and the recipe has {len(images)} inputs with "
            "[input.preprocess]; use arrays:FILE.npz or python:FILE.py:factory"
        )
    others = [table["name"] for table in tables if "preprocess" not in table and "default" not in table]
    if others:
        return (
            f"a folder of images has no values for {', '.join(others)}; give a default, or use arrays:FILE.npz or "
            "python:FILE.py:factory"
        )
    return None


CHECKS: tuple[Check, ...] = (_inputs, _each_input, _states, _lengths, _outputs, _preprocess)
