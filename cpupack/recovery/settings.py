"""The settings in ``[quantize]`` that recovery may change, in order, and the result as TOML."""

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
"""The settings that cost no speed and the values to try, in this order. Layers in FP32 are tried after them."""

OWN_KEYS = frozenset({"recover", "budget_s"})
"""Keys that control the search itself. The resulting settings leave them out."""

_TEMPLATE = "recipe/recovered.toml.j2"


def changed(quantize: Quantize, update: Mapping[str, Any]) -> Quantize:
    """Return the table with other values, validated like a recipe."""
    return Quantize.model_validate({**quantize.model_dump(), **update})


def with_skip(quantize: Quantize, names: Sequence[str]) -> Quantize:
    """Return the table with more modules kept in FP32."""
    return changed(quantize, {"skip": [*quantize.skip, *(name for name in names if name not in quantize.skip)]})


def whole_blocks(names: Sequence[str], layers: Sequence[str]) -> list[str]:
    """Return the same layers with fewer names: a module replaces its ``layers`` if all of them are in ``names``.

    The additions and activations between these layers have no names of their own, and the name of the module makes them
    FP32 too. A module with only one layer does not replace it.
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
    """Return settings on one line, written as in a recipe."""
    return ", ".join(f"{key} = {to_toml(value)}" for key, value in settings.items())


def render_toml(found: Quantize, recipe: Quantize, facts: Sequence[str]) -> str:
    """Return the ``[quantize]`` table with the settings that recovery found, to replace the recipe's.

    It has the recipe's own keys and the changed ones. ``facts`` become comments. Raises PackagingError when the text,
    read back, differs from these settings.
    """
    wanted = {**found.model_dump(), **{key: Quantize.model_fields[key].default for key in OWN_KEYS}}
    keys = (recipe.model_fields_set | set(differences(found, recipe))) - OWN_KEYS
    if found.observer != "percentile":
        keys -= {"percentile"}  # a recipe must not have a key without effect
        wanted["percentile"] = Quantize.model_fields["percentile"].default
    order = [key for key in Quantize.model_fields if key in keys]
    text = render(_TEMPLATE, facts=list(facts), settings={key: wanted[key] for key in order})
    try:
        same = Quantize.model_validate(tomli.loads(text)["quantize"]).model_dump() == wanted
    except (ValueError, KeyError) as error:  # both pydantic's and tomli's errors are ValueErrors
        raise PackagingError(f"rendered {_TEMPLATE} is damaged: {error}", hint="this is a bug in cpupack") from error
    if not same:
        raise PackagingError(f"rendered {_TEMPLATE} has other settings than the trial", hint="this is a bug")
    return text
