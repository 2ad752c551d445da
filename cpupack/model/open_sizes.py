"""Which sizes of images, or lengths of sequences, a model takes, found by running it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cpupack.errors import ModelError, RecipeError
from cpupack.model.exported_sizes import any_range
from cpupack.model.layers import watched
from cpupack.model.one_row import OneRow
from cpupack.model.user_code import describe_failure
from cpupack.recipe import Recipe
from cpupack.recipe.tables.signature import NamedSizes
from cpupack.runtime.open_sizes import SIDES, OpenSizes, Terms
from cpupack.runtime.signature import Signature

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 3, 6, 12, 24, 48, 96, 5, 10, 20, 40, 7, 14, 28, 56)
_HOPS = (160, 200, 220, 240, 256, 320, 400, 441, 480, 512, 640, 800, 882, 1024, 1280)
"""Steps of spectrograms and of the first layers over waveforms, beside what sizes have in common."""
_NEIGHBOURS = 4
"""Multiples of one number that a model is run at: three of them may agree by chance."""
_FAR = 131
"""Pixels between the least size that is tried and one further on: a layer that takes 128 pixels in one step leaves some
over, and then gives as many for all neighbours."""
_SMALL = 64
"""Pixels of a side that is tried: enough that no feature map is a single pixel, for models that shrink it 32 times."""
_MOST_STEP = 256
"""Larger divisors of the recipe's sizes are not tried: four multiples of one would be too large an image."""
LEAST_SIDE = 32
"""Pixels of a side at least, where the recipe does not say: smaller images are filled up."""


def open_sizes(module: nn.Module, signature: Signature, recipe: Recipe) -> OpenSizes | None:
    """Return the sizes that the model of one float input takes, None for a recipe of one size.

    Images are multiples of the least number for which all of the model's activations grow in step with the image.
    Raises ModelError for a model that has no such number, RecipeError for [sizes] that are no multiples of it.
    """
    table = recipe.sizes
    if table is None:
        return None
    if isinstance(table, NamedSizes):
        return _named_sizes(module, signature, table)
    channels, *typical = signature.inputs[0].shape
    assert isinstance(table.max, list)
    assert isinstance(table.min, list)
    least, most = list(table.min), list(table.max)
    opened = [least[side] != most[side] for side in range(2)]
    asked = [sizes[side] for sizes in (least, typical, most) for side in range(2) if opened[side] and sizes[side]]
    step = _multiple(module, channels, (typical[0], typical[1]), opened, asked)
    steps = [step if each else own for each, own in zip(opened, typical, strict=True)]
    for side, name in enumerate(SIDES):
        least[side] = least[side] or min(typical[side], -(-LEAST_SIDE // step) * step)
        given = {"max": most, "typical": typical, "min": least}
        for key, sizes in given.items():
            if sizes[side] % steps[side]:
                low = sizes[side] // steps[side] * steps[side]
                raise RecipeError(
                    f"[sizes] {key}: a {name} of {sizes[side]} is no multiple of {steps[side]}, and the model takes "
                    f"those alone: {f'{low} or ' if low else ''}{low + steps[side]}",
                    hint="images of other sizes are filled up to the next multiple when they are predicted",
                )
    found = OpenSizes((least[0], least[1]), (most[0], most[1]), (steps[0], steps[1]))
    if not signature.gives_rows:
        return found
    return dataclasses.replace(
        found, outputs=_outputs(module, found, [-(-_SMALL // each) for each in found.multiple], channels)
    )


def _named_sizes(module: nn.Module, signature: Signature, table: NamedSizes) -> OpenSizes:
    """Return the sizes of dimensions with names: each has a multiple of its own."""
    (spec,) = signature.inputs
    given = {"min": table.min, "typical": table.typical, "max": table.max}
    steps = [1, 1]
    for side, (name, axis) in enumerate(zip(table.names, table.axes, strict=True), 2 - len(table.names)):
        sizes = {key: each[side] for key, each in given.items() if isinstance(each, list)}
        if sizes["min"] == sizes["max"]:
            steps[side] = sizes["max"]
            continue
        steps[side] = step = step_of(partial(_with_side, module, spec.shape, axis), name, sizes)
        check_multiples(name, sizes, step)
    assert isinstance(table.min, list)
    assert isinstance(table.max, list)
    found = OpenSizes(
        (table.min[0], table.min[1]), (table.max[0], table.max[1]), (steps[0], steps[1]),
        names=table.names, axes=table.axes, shape=spec.shape,
    )  # fmt: skip
    if not signature.gives_rows:
        return found
    first = [low // step for low, step in zip(found.least, found.multiple, strict=True)]
    return dataclasses.replace(found, outputs=_outputs(module, found, first))


def step_of(batch: Callable[[int], tuple[nn.Module, torch.Tensor]], name: str, sizes: dict[str, int]) -> int:
    """Return the least number for which activations grow in step with a named dimension in multiples of it.

    ``batch`` gives a model and what it takes with a size of that name.
    """
    low, typical = sizes["min"], sizes["typical"]
    common, failed = math.gcd(*sizes.values()), ""
    for step in sorted({*_MULTIPLES, *_HOPS, *(each for each in range(1, common + 1) if common % each == 0)}):
        if step > typical:
            break
        first = -(-low // step)
        found: list[list[tuple[int, ...]]] = []
        for number in (*range(first, first + _NEIGHBOURS), max(first, typical // step)):
            if not _in_step(found):  # before the typical size, which may take a hundred times as long
                break
            module, given = batch(number * step)
            with watched(module) as at:
                try:
                    found.append(_calls(module, given))
                except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                    failed = failed or f"; at {name} = {number * step}: {describe_failure(error, at.layer)}"
                    break
        if len(found) == _NEIGHBOURS + 1 and _in_step(found[:-1]) and _goes_on(found, max(0, typical // step - first)):
            return step
    raise ModelError(
        f"[sizes]: the model takes no other {name}, or its activations do not grow in step with it{failed}",
        hint=f"a layer that needs one size (a linear layer over all positions, a table of positions) fixes {name}: "
        "average over the positions before it, keep min and max within what it takes, or give the shape a number",
    )


def _with_side(module: nn.Module, shape: tuple[int, ...], axis: int, size: int) -> tuple[nn.Module, torch.Tensor]:
    own = [size if place == axis else each for place, each in enumerate(shape)]
    return module, torch.zeros(1, *own)


def check_multiples(name: str, sizes: dict[str, int], step: int) -> None:
    """Raise RecipeError for a size of a name that is no multiple of what the model takes."""
    for key, size in sizes.items():
        if size % step:
            low = size // step * step
            raise RecipeError(
                f"[sizes] {key}: a {name} of {size} is no multiple of {step}, and the model takes those alone: "
                f"{f'{low} or ' if low else ''}{low + step}",
                hint="fill inputs of other sizes up to the next multiple, or cut them, before they are predicted",
            )


def _goes_on(found: list[list[tuple[int, ...]]], distance: int) -> bool:
    """Return whether the last of these shapes are ``distance`` further on the line, or area, of the first ones."""
    if len({len(each) for each in found}) > 1:
        return False
    for shapes in zip(*found, strict=True):
        if len({len(each) for each in shapes}) > 1:
            return False
        for one, two, three, *_, last in zip(*shapes, strict=True):
            if last != one + distance * (two - one) + distance * (distance - 1) // 2 * (three - 2 * two + one):
                return False
    return True


def _calls(module: nn.Module, batch: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shape of every tensor that the functions of a model's code return: of a recurrent layer, the whole."""
    seen = _Results()
    with any_range(), torch.inference_mode(), seen:
        module(batch)
    return seen.shapes


class _Results(TorchFunctionMode):
    """Keeps the shapes of the results of functions, and not of what they call."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.shapes += _shapes_of(func, args, result)
        return result


def _shapes_of(func: Any, args: Any, result: Any) -> list[tuple[int, ...]]:
    """Return the shapes of a call's results. Raises ValueError for an adaptive pooling whose windows differ in size."""
    found = [tuple(each.shape) for each in (result if isinstance(result, tuple | list) else (result,))
             if isinstance(each, torch.Tensor)]  # fmt: skip
    name = getattr(func, "__name__", "")
    if "adaptive" in name and found and args and isinstance(args[0], torch.Tensor):
        pooled, given = found[0], tuple(args[0].shape)
        if any(size % own for size, own in zip(given, pooled, strict=True)):
            raise ValueError(f"an adaptive pooling of {given[1:]} to {pooled[1:]} has windows of several sizes")
    return found


def output_shapes(module: nn.Module, batch: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shape of each output of a model for a sample of a batch of images."""
    with any_range(), torch.inference_mode():
        found = module.outputs(module.tensors(batch)) if isinstance(module, OneRow) else [module(batch)]
    return [tuple(each.shape[1:]) for each in found]


def _outputs(module: nn.Module, sizes: OpenSizes, first: list[int], channels: int = 0) -> tuple[tuple[Terms, ...], ...]:
    """Return how the shape of each output changes with the size, from ``first`` multiples on."""
    shapes = {}
    for more in ((0, 0), (1, 0), (0, 1), (1, 1)):
        # One name has no first side.
        rows, columns = (one + other for one, other in zip(first, more, strict=True))
        height, width = rows * sizes.multiple[0], columns * sizes.multiple[1]
        own = (channels, height, width) if sizes.is_image else sizes.shape_at(sizes.shape, (height, width))
        shapes[more] = output_shapes(module, torch.zeros(1, *own))
    found = []
    for corners in zip(shapes[0, 0], shapes[1, 0], shapes[0, 1], shapes[1, 1], strict=True):
        terms = []
        for here, below, beside, both in zip(*corners, strict=True):
            d = both - below - beside + here
            b, c = below - here - d * first[1], beside - here - d * first[0]
            terms.append((here - b * first[0] - c * first[1] - d * first[0] * first[1], b, c, d))
        found.append(tuple(terms))
    return tuple(found)


def _multiple(
    module: nn.Module, channels: int, typical: tuple[int, int], opened: list[bool], asked: Sequence[int]
) -> int:
    """Return the least number for which activations grow in step with an image in multiples of it.

    Raises ModelError without one. ``asked`` are the sizes of the recipe, whose divisors may be that number.
    """
    problem, larger = "", 0
    common = math.gcd(*asked)
    divisors = [each for each in range(1, min(common, _MOST_STEP) + 1) if common % each == 0]

    def activations(number: int) -> list[tuple[int, ...]]:
        size = [number * step if each else own for each, own in zip(opened, typical, strict=True)]
        return _activations(module, torch.zeros(1, channels, *size))

    for step in dict.fromkeys([*_MULTIPLES, *divisors]):
        small, may_hide = -(-_SMALL // step), step >= _SMALL
        for first in dict.fromkeys([small, max(small, min(asked) // step) if may_hide else small]):
            numbers = [*range(first, first + _NEIGHBOURS), first + max(_NEIGHBOURS, -(-_FAR // step))]
            found: list[list[tuple[int, ...]]] = []
            try:
                for number in numbers[:-1]:
                    found.append(activations(number))
                    if not _in_step(found[may_hide:]):
                        break
                else:
                    found.append(activations(numbers[-1] if _in_step(found) else first + _NEIGHBOURS))
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                size = numbers[len(found)] * step
                problem = f"; at {size} x {size} it fails: {str(error).splitlines()[0][:200]}"
                continue
            if len(found) < len(numbers):
                continue
            if not _in_step(found[:-1]):
                larger = larger or ((first + 1) * step if _in_step(found[1:]) else 0)
            # A multiple of the number that smaller images hide is none.
            elif _goes_on(found, numbers[-1] - first) and not (larger and any(each % step for each in asked)):
                return step
    if larger:
        raise ModelError(
            f"[sizes]: the model computes something else for images of {larger} x {larger} or more than for smaller "
            "ones, as one whose windows are shifted where a map has several",
            hint=f"set [sizes] min to {larger} or more, and typical to four windows along each side; or leave [sizes] "
            "out, and give input_shape numbers",
        )
    raise ModelError(
        "[sizes]: the model's activations do not grow in step with the image, whatever number its sides are multiples "
        f"of{problem}",
        hint="a layer that needs one size (a linear layer over all pixels, a table of positions) fixes the size: leave "
        "[sizes] out, and give input_shape numbers",
    )


def _activations(module: nn.Module, image: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the shape of everything that a model computes for an image."""
    seen = _Shapes()
    with any_range(), torch.inference_mode(), seen:
        module(image)
    return seen.shapes


def _in_step(found: list[list[tuple[int, ...]]]) -> bool:
    """Return whether each size of each activation is on a line, so far."""
    if len({len(each) for each in found}) > 1:
        return False
    for shapes in zip(*found, strict=True):
        if len({len(each) for each in shapes}) > 1:
            return False
        for sizes in zip(*shapes, strict=True):
            steps = {after - before for before, after in pairwise(sizes)}
            if len(steps) > 1 and not _is_area(sizes):
                return False
    return True


def _is_area(sizes: tuple[int, ...]) -> bool:
    """Return whether sizes grow as a square does: pixels that were laid out in a row."""
    steps = [after - before for before, after in pairwise(sizes)]
    return len({after - before for before, after in pairwise(steps)}) == 1


class _Shapes(TorchDispatchMode):
    """Keeps the shapes of all results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.shapes += _shapes_of(func, args, result)
        return result
