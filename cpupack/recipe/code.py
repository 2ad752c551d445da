"""Which Python of the user's a recipe makes a build run."""

from __future__ import annotations

from cpupack.recipe import Recipe

_KIND = "python:"


def user_code(recipe: Recipe) -> list[str]:
    """Return what a build imports and calls, as ``KEY = "python:..."``, in the order of the recipe."""
    named = {
        "model.source": recipe.model.source,
        "calibration.source": recipe.calibration.source if recipe.calibration else None,
        "evaluation.source": recipe.evaluation.source,
        "evaluation.metric": recipe.evaluation.metric,
    }
    return [f'{key} = "{value}"' for key, value in named.items() if value is not None and value.startswith(_KIND)]
