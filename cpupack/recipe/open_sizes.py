"""``[sizes]``: checks of it, and the recipe of one size that the build works on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cpupack.recipe.lines import Key
from cpupack.recipe.problems import Problem
from cpupack.recipe.recipe import Recipe
from cpupack.recipe.view import Check, View
from cpupack.targets.engines import ENGINES

SIDES = ("height", "width")
_EXAMPLE = '"height", "width"'


def is_open(shape: list[int | str]) -> bool:
    """Return whether a shape has a side that may differ."""
    return any(isinstance(each, str) for each in shape)


def of_typical_size(recipe: Recipe) -> Recipe:
    """Return a recipe with ``[sizes]`` as that of images of the typical size; of larger ones the centre is cut out.

    Its ``sizes`` then have all three sizes: the least is 0 where the build is to choose it.
    """
    if recipe.sizes is None:
        return recipe
    shape = recipe.input[0].shape if recipe.input else recipe.model.input_shape or []
    typical = recipe.sizes.typical or recipe.sizes.max
    least = [
        (recipe.sizes.min[side] if recipe.sizes.min else 0) if isinstance(own, str) else own
        for side, own in enumerate(shape[-2:])
    ]
    sizes = recipe.sizes.model_copy(update={"typical": typical, "min": least})
    targets = {
        cpu: getattr(recipe.target, cpu).model_copy(update={"engine": "native"}) for cpu in ("x86_64", "aarch64")
    }
    found = recipe.model_copy(update={"sizes": sizes, "target": recipe.target.model_copy(update=targets)})
    return found.at_size(typical[0], typical[1])


def _sizes(view: View) -> Iterator[Problem]:
    """Check which sides are open, and that ``[sizes]`` says how large they may be."""
    shapes = _shapes(view)
    for key, shape in shapes:
        for place, each in enumerate(shape):
            if isinstance(each, str) and (len(shape) != 3 or place != 1 + SIDES.index(each)):
                yield Problem(key, f'has "{each}" in dimension {place}; an image of any size is [channels, {_EXAMPLE}]')
                return
    opened = [(key, shape) for key, shape in shapes if is_open(shape)]
    if not opened:
        if view.given("sizes"):
            yield Problem(("sizes",), f"has no effect without names in the shape, such as [3, {_EXAMPLE}]")
        return
    key, shape = opened[0]
    if not view.given("sizes"):
        yield Problem(key, "has names, and needs [sizes] with max = [HEIGHT, WIDTH], the largest images")
        return
    if len(shapes) > 1:
        yield Problem(key, "has names, which is for models with one input; give numbers (docs/how-to/sizes.md)")
    if view.given("model", "stream") and view("model", "stream"):
        yield Problem(("model", "stream"), "is for models of sequences, and this one takes images")
    for index, table in enumerate(view("input") or []):
        if table.get("dtype", "float32") != "float32":
            yield Problem(
                ("input", index, "dtype"), f'"{table["dtype"]}" is not that of an image of any size', "float32"
            )
    yield from _numbers(view, shape)
    yield from _engines(view)


def _shapes(view: View) -> list[tuple[Key, list[int | str]]]:
    if view.given("input"):
        return [(("input", index, "shape"), table["shape"]) for index, table in enumerate(view("input"))]
    shape = view("model", "input_shape")
    return [] if shape is None else [(("model", "input_shape"), shape)]


def _numbers(view: View, shape: list[int | str]) -> Iterator[Problem]:
    largest: list[int] = view("sizes", "max")
    typical: list[int] = view("sizes", "typical") or largest
    least: list[int] | None = view("sizes", "min")
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
