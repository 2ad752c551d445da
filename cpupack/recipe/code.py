"""Which Python of the user's a recipe makes a build run."""

from __future__ import annotations

from cpupack.recipe.files import PYTHON, sources
from cpupack.recipe.recipe import Recipe


def user_code(recipe: Recipe) -> list[str]:
    """Return what a build imports and calls, as ``KEY = "python:..."``, in the order of the recipe."""
    return [f'{key} = "{value}"' for key, value in sources(recipe).items() if value.partition(":")[0] == PYTHON]
