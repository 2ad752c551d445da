"""What the commands share that run stages of a build: their recipes, the options of a build, the cache of stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpupack.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from cpupack.cache import StageCache
    from cpupack.pipeline import BuildOptions
    from cpupack.progress import Progress
    from cpupack.recipe import LoadedRecipe


def build_options(targets: Sequence[str], *, tune: bool, cache: bool, cache_gib: float, **others: Any) -> BuildOptions:
    """Return the options of a build as the command line gives them. Called when torch is imported."""
    from cpupack.pipeline import BuildOptions

    cpus = tuple(dict.fromkeys(targets))
    return BuildOptions(cpus=cpus, tune=tune, cache=cache, cache_bytes=_bytes_of(cache_gib), **others)


def open_cache(loaded: LoadedRecipe, cache_gib: float | None, progress: Progress) -> StageCache:
    """Return the cache of stages for a recipe, None for none. Called when torch is imported."""
    from cpupack.cache import StageCache

    if cache_gib is None:
        return StageCache.none()
    return StageCache.of_user(loaded, progress, limit_bytes=_bytes_of(cache_gib))


def _bytes_of(gib: float) -> int:
    return int(gib * 2**30)


def load_recipes(paths: Sequence[Path], overrides: Sequence[str]) -> list[LoadedRecipe]:
    """Load all recipes before the first build starts, and report the problems of all of them."""
    from cpupack.recipe.file import load_recipe

    loaded: dict[str, LoadedRecipe] = {}
    failed: list[RecipeError] = []
    for path in paths:
        try:
            recipe = load_recipe(path, overrides)
        except RecipeError as error:
            failed.append(error)
            continue
        package = recipe.recipe.package
        wheel = f"{package.import_name} {package.version}"
        if wheel in loaded:
            raise UsageError(
                f"{loaded[wheel].path} and {recipe.path} both build {wheel}",
                hint="give them different [package] names or versions, or build them one by one into different --out",
            )
        loaded[wheel] = recipe
    if failed:
        hint = f"fix them and run `cpupack check {' '.join(map(str, paths))}`"
        raise RecipeError(
            "\n".join(error.message for error in failed), hint=failed[0].hint if len(failed) == 1 else hint
        )
    return list(loaded.values())
