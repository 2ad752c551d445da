"""``[sizes]``: checks of it, and the recipe of one size that the build works on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from cpupack.recipe.lines import Key
from cpupack.recipe.problems import Problem
from cpupack.recipe.recipe import Recipe
from cpupack.recipe.tables.signature import BySide, Input, NamedSizes, Sizes, sides_in_order
from cpupack.recipe.view import Check, View
from cpupack.targets.engines import ENGINES

SIDES = ("height", "width")
_MOST_NAMES = 2
_MOST_OF_INPUTS = 4
_EXAMPLE = '"height", "width"'


def is_open(shape: list[int | str]) -> bool:
    """Return whether a shape has a side that may differ."""
    return any(isinstance(each, str) for each in shape)


def of_typical_size(recipe: Recipe) -> Recipe:
    """Return a recipe with ``[sizes]`` as that of inputs of the typical size; of larger ones the centre is cut out.

    Its ``sizes`` then have all three sizes, as pairs: the least is 0 where the build is to choose it.
    """
    if recipe.sizes is None:
        return recipe
    shape = recipe.input[0].shape if recipe.input else recipe.model.input_shape or []
    if takes_rows([each.model_dump() for each in recipe.input]):
        sizes: Sizes = _of_inputs(recipe.sizes, recipe.input)
    elif isinstance(recipe.sizes.max, dict):
        sizes = _named(recipe.sizes, shape)
    else:
        least = [
            (recipe.sizes.min[side] if isinstance(recipe.sizes.min, list) else 0) if isinstance(own, str) else own
            for side, own in enumerate(shape[-2:])
        ]
        typical = recipe.sizes.typical or recipe.sizes.max
        sizes = recipe.sizes.model_copy(update={"typical": typical, "min": least})
    targets = {
        cpu: getattr(recipe.target, cpu).model_copy(update={"engine": "native"}) for cpu in ("x86_64", "aarch64")
    }
    found = recipe.model_copy(update={"sizes": sizes, "target": recipe.target.model_copy(update=targets)})
    assert isinstance(sizes.typical, list)
    return found.at_size(*sizes.typical)


def takes_rows(inputs: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a model with these tables of inputs takes rows of them."""
    return len(inputs) > 1 or (len(inputs) == 1 and inputs[0].get("dtype", "float32") != "float32")


def _of_inputs(sizes: Sizes, inputs: Sequence[Input]) -> NamedSizes:
    """Return sizes by name, in the order in which the inputs have the names."""
    names = tuple(dict.fromkeys(each for table in inputs for each in table.shape if isinstance(each, str)))
    dimensions = tuple(tuple(each if isinstance(each, str) else "" for each in table.shape) for table in inputs)

    def numbers(given: BySide | None) -> list[int]:
        by_name = given if isinstance(given, dict) else dict(zip(SIDES, given or (0, 0), strict=True))
        return [1] * (2 - len(names)) + [by_name[name] for name in names]

    most, typical = numbers(sizes.max), numbers(sizes.typical or sizes.max)
    return NamedSizes(max=most, typical=typical, min=numbers(sizes.min), names=names, dimensions=dimensions)


def _named(sizes: Sizes, shape: Sequence[int | str]) -> NamedSizes:
    """Return sizes by name as pairs in the order of the shape."""
    places = {each: axis for axis, each in enumerate(shape) if isinstance(each, str)}

    def pair(given: BySide | None) -> list[int]:
        assert isinstance(given, dict)  # as _named_sizes has checked
        return [1] * (2 - len(places)) + [given[name] for name in places]

    most, typical = pair(sizes.max), pair(sizes.typical or sizes.max)
    return NamedSizes(max=most, typical=typical, min=pair(sizes.min), names=tuple(places), axes=tuple(places.values()))


def _sizes(view: View) -> Iterator[Problem]:
    """Check which sides are open, and that ``[sizes]`` says how large they may be."""
    shapes = _shapes(view)
    if any(is_open(shape) for _, shape in shapes) and view.given("input") and takes_rows(view("input")):
        yield from _sizes_of_inputs(view, shapes)
        return
    if any(isinstance(each, str) and each not in SIDES for _, shape in shapes for each in shape):
        yield from _named_sizes(view, shapes)
        return
    for key, shape in shapes:
        for place, each in enumerate(shape):
            if isinstance(each, str) and (len(shape) != 3 or place != 1 + SIDES.index(each)):
                yield Problem(key, f'has "{each}" in dimension {place}; an image of any size is [channels, {_EXAMPLE}]')
                return
    opened = [(key, shape) for key, shape in shapes if is_open(shape)]
    if not opened:
        if view.given("sizes"):
            yield Problem(
                ("sizes",), f'has no effect without names in the shape, such as [3, {_EXAMPLE}] or [80, "time"]'
            )
        return
    key, shape = opened[0]
    if not view.given("sizes"):
        yield Problem(key, "has names, and needs [sizes] with max = [HEIGHT, WIDTH], the largest images")
        return
    if view.given("model", "stream") and view("model", "stream"):
        yield Problem(("model", "stream"), "is for models of sequences, and this one takes images")
    yield from _numbers(view, shape)
    yield from _engines(view)


def _named_sizes(view: View, shapes: list[tuple[Key, list[int | str]]]) -> Iterator[Problem]:
    """Check names of one's own, and that ``[sizes]`` has numbers for each."""
    key, shape = next((key, shape) for key, shape in shapes if is_open(shape))
    names = [each for each in shape if isinstance(each, str)]
    example = ", ".join(f"{name} = 16000" for name in dict.fromkeys(names))
    if len(set(names)) < len(names) or len(names) > _MOST_NAMES or set(names) & set(SIDES):
        yield Problem(key, f'{shape} has other names than "height" and "width" of an image, or one or two of your own')
        return
    table = ("input", 0) if view.given("input") else ("model",)
    if view.given("preprocess") or (view.given("input") and "preprocess" in view("input")[0]):
        yield Problem(key, f"has names of your own, and an image of any size is [channels, {_EXAMPLE}]")
    if view.given("model", "stream") and view("model", "stream"):
        yield Problem(("model", "stream"), "is for chunks of one length, and the shape has names; give a number")
    if view.given("input"):
        own = view("input")[0]
        if "pad" in own:
            yield Problem((*table, "pad"), "is for a shape of numbers: an input with names is taken at its own length")
    if not view.given("sizes"):
        yield Problem(key, f"has names, and needs [sizes] with max = {{ {example} }} and min")
        return
    yield from _named_numbers(view, names, example)
    yield from _engines(view)


def _sizes_of_inputs(view: View, shapes: list[tuple[Key, list[int | str]]]) -> Iterator[Problem]:
    """Check names of several inputs, or of one that is not float32."""
    tables: list[dict[str, Any]] = view("input")
    names = list(dict.fromkeys(each for _, shape in shapes for each in shape if isinstance(each, str)))
    first = next(key for key, shape in shapes if is_open(shape))
    if len(names) > _MOST_OF_INPUTS:
        yield Problem(first, f"and the other inputs have {len(names)} names ({', '.join(names)}); four are the most")
        return
    for index, ((key, shape), table) in enumerate(zip(shapes, tables, strict=True)):
        if not is_open(shape):
            continue
        own = {each for each in shape if isinstance(each, str)}
        if len(own) > _MOST_NAMES:
            yield Problem(key, f"{shape} has {len(own)} names; one input has two at most, so give one of them a number")
        if "preprocess" in table and (
            len(shape) != 3 or isinstance(shape[0], str) or not all(isinstance(each, str) for each in shape[1:])
            or shape[1] == shape[2]
        ):  # fmt: skip
            yield Problem(key, f"{shape} is no image of any size, which is [channels, {_EXAMPLE}] with two names")
        for other in ("pad", "state"):
            if other in table:
                yield Problem(
                    ("input", index, other), "is for a shape of numbers: an input with names is taken at its own size"
                )
    if any("pad" in table for table in tables if not is_open(table["shape"])):
        yield Problem(first, "has names, and another input has a pad: a model has sizes by name, or lengths")
    if view.given("model", "stream") and view("model", "stream"):
        yield Problem(("model", "stream"), "is for chunks of one length, and a shape has names; give numbers")
    example = ", ".join(f"{name} = 512" for name in names)
    if not view.given("sizes"):
        yield Problem(first, f"has names, and needs [sizes] with max = {{ {example} }} and min")
        return
    if set(names) == set(SIDES) and not any(
        isinstance(view("sizes", each), dict) for each in ("max", "typical", "min")
    ):
        yield from _numbers(view, [0, *SIDES])
    else:
        yield from _named_numbers(view, names, example)
    yield from _engines(view)


def _named_numbers(view: View, names: list[str], example: str) -> Iterator[Problem]:
    given: dict[str, dict[str, int]] = {}
    for key in ("max", "typical", "min"):
        each = view("sizes", key) if view.given("sizes", key) else None
        if each is None:
            if key == "min":
                place: Key = ("sizes",)
                yield Problem(place, f"needs min = {{ {example} }}: the least size of each name that the wheel takes")
            continue
        if not isinstance(each, dict) or set(each) != set(names):
            had = f"has {', '.join(each)}" if isinstance(each, dict) else "is a list"
            yield Problem(("sizes", key), f"{had}, and the shape has the names {', '.join(names)}: {{ {example} }}")
        else:
            given[key] = each
    for name in names:
        sizes = [(key, given[key][name]) for key in ("min", "typical", "max") if key in given]
        for (less, low), (more, high) in pairwise(sizes):
            if low > high:
                yield Problem(("sizes", less), f"has {name} = {low}, more than {more}: {high}")


def _shapes(view: View) -> list[tuple[Key, list[int | str]]]:
    if view.given("input"):
        return [(("input", index, "shape"), table["shape"]) for index, table in enumerate(view("input"))]
    shape = view("model", "input_shape")
    return [] if shape is None else [(("model", "input_shape"), shape)]


def _numbers(view: View, shape: list[int | str]) -> Iterator[Problem]:
    asked = {each: sides_in_order(view("sizes", each)) for each in ("max", "typical", "min")}
    for key, given in asked.items():
        if isinstance(given, dict):
            yield Problem(
                ("sizes", key), f"has {', '.join(given)}, and is [HEIGHT, WIDTH] for images, or has height and width"
            )
            return
    largest: list[int] = asked["max"]
    typical: list[int] = asked["typical"] or largest
    least: list[int] | None = asked["min"]
    for side, name in enumerate(SIDES):
        own = shape[1 + side]
        for key, sizes in (("max", largest), ("typical", typical), ("min", least)):
            if not isinstance(own, str) and sizes is not None and sizes[side] != own:
                yield Problem(("sizes", key), f"has the {name} {sizes[side]}, and the shape has {own}")
        if typical[side] > largest[side]:
            yield Problem(("sizes", "typical"), f"has the {name} {typical[side]}, more than max: {largest[side]}")
        if least is not None and least[side] > typical[side]:
            yield Problem(("sizes", "min"), f"has the {name} {least[side]}, more than the typical {typical[side]}")


def _engines(view: View) -> Iterator[Problem]:
    for cpu in ("x86_64", "aarch64"):
        engine = view("target", cpu, "engine")
        record = ENGINES.get(engine)
        if view.given("target", cpu, "engine") and record is not None and record.quantizer != "native":
            yield Problem(
                ("target", cpu, "engine"),
                f'"{engine}" has programs for one size alone, and the recipe has [sizes]',
                "native",
            )


def preprocess_problems(table: dict[str, Any], key: Key) -> Iterator[Problem]:
    """Yield what contradicts images of any size in a table ``preprocess``."""
    if table.get("crop") is not None:
        yield Problem((*key, "crop"), "would give all images one size, and the recipe has [sizes]; leave it out")
    if isinstance(table.get("resize"), list):
        yield Problem(
            (*key, "resize"),
            "would give all images one size, and the recipe has [sizes]; leave it out, or give the shorter edge alone",
        )


CHECKS: tuple[Check, ...] = (_sizes,)
