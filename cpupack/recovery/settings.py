"""What recovery may change in ``[quantize]``, in its order, and the result as TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tomli

from cpupack.errors import PackagingError
from cpupack.graph.names import is_within
from cpupack.recipe import Quantize
from cpupack.templates import render, to_toml

KNOBS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("observer", ("tail_mse", "mse", "percentile", "entropy", "histogram")),
    ("weights", ("per_channel", "per_tensor")),
    ("bias_correction", (True, False)),
    ("equalize", (True, False)),
    ("rounding", ("adaround", "nearest")),
)
"""The settings that cost no speed and the values that are tried, in this order; layers in FP32 come after them."""

OWN_KEYS = frozenset({"recover", "budget_s"})
"""Keys that ask for the search itself; the settings it ends with do without."""

_TEMPLATE = "recipe/recovered.toml.j2"


def changed(quantize: Quantize, update: Mapping[str, Any]) -> Quantize:
    """Return the table with other values, validated as a recipe's would be."""
    return Quantize.model_validate({**quantize.model_dump(), **update})


def with_skip(quantize: Quantize, names: Sequence[str]) -> Quantize:
    """Return the table with more modules kept in FP32."""
    return changed(quantize, {"skip": [*quantize.skip, *(name for name in names if name not in quantize.skip)]})


def whole_blocks(names: Sequence[str], layers: Sequence[str]) -> list[str]:
    """Return the same layers in fewer names: a module whose ``layers`` are all among ``names`` stands for them.

    That is also what makes the additions and activations between them FP32, which are calls and have no name. A module
    with a single layer is not worth another name.
    """
    result: list[str] = []
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            inside = [layer for layer in layers if is_within(layer, [parent])]
            if len(inside) > 1 and all(is_within(layer, names) for layer in inside):
                name = parent
                break
        if name not in result:
            result.append(name)
    return result


def differences(quantize: Quantize, recipe: Quantize) -> dict[str, Any]:
    """Return the keys in which a table differs from the recipe's, with its values."""
    before = recipe.model_dump()
    return {key: value for key, value in quantize.model_dump().items() if value != before[key]}


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings on one line as a recipe would say them."""
    return ", ".join(f"{key} = {to_toml(value)}" for key, value in settings.items())


def render_toml(found: Quantize, recipe: Quantize, facts: Sequence[str]) -> str:
    """Return the ``[quantize]`` table that replaces the recipe's and says what recovery found.

    It has the recipe's own keys and the changed ones; ``facts`` become comments. Raises PackagingError when the text
    does not say what it was rendered from.
    """
    wanted = {**found.model_dump(), **{key: Quantize.model_fields[key].default for key in OWN_KEYS}}
    said = (recipe.model_fields_set | set(differences(found, recipe))) - OWN_KEYS
    if found.observer != "percentile":
        said -= {"percentile"}  # a recipe may not say what has no effect
        wanted["percentile"] = Quantize.model_fields["percentile"].default
    order = [key for key in Quantize.model_fields if key in said]
    text = render(_TEMPLATE, facts=list(facts), settings={key: wanted[key] for key in order})
    try:
        same = Quantize.model_validate(tomli.loads(text)["quantize"]).model_dump() == wanted
    except (ValueError, KeyError) as error:  # both pydantic's and tomli's errors are ValueErrors
        raise PackagingError(f"rendered {_TEMPLATE} is damaged: {error}", hint="this is a bug in cpupack") from error
    if not same:
        raise PackagingError(f"rendered {_TEMPLATE} says other settings than the trial's", hint="this is a bug")
    return text
