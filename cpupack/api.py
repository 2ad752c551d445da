"""The functions that ``import cpupack`` offers. torch is imported only when a build starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpupack.progress import Progress, WarningProgress
from cpupack.recipe import LoadedRecipe

if TYPE_CHECKING:
    from cpupack.pipeline import BuildOptions, BuildResult
    from cpupack.wheel.inspect import Inspection


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe, without loading its model.

    ``overrides`` are texts like ``"calibration.samples=64"``, as ``--set`` takes them. Relative paths in the recipe are
    relative to its file.

    Raises RecipeError with every problem, one on each line.
    """
    from cpupack.recipe.file import load_recipe as load

    return load(Path(path), overrides)


def build(
    recipe: LoadedRecipe | Path | str,
    *,
    out: Path | str = "dist",
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> list[BuildResult]:
    """Build the wheels of a recipe, one for each CPU family, and return one result for each wheel.

    ``recipe`` is a file or what ``load_recipe`` returned. The wheels go into the directory ``out``, which is created if
    it does not exist. If one build fails, no wheel is left there. ``options`` holds settings that no recipe has.

    ``progress`` receives reports of what the build does (``cpupack.Progress``). Without it a build reports only
    warnings: each is issued once as a BuildWarning by Python's ``warnings``, so its filters apply. Either way
    ``BuildResult.warnings`` has all of them. Code that the recipe names runs in this process and may print.

    Raises a CpupackError: RecipeError, ModelError, CalibrationError, QuantizationError, VerificationError (a gate
    failed), TuningError or PackagingError.
    """
    from cpupack.pipeline import BuildOptions
    from cpupack.pipeline import build as build_wheels

    loaded = recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe)
    return build_wheels(loaded, Path(out), options or BuildOptions(), progress or WarningProgress())


def inspect(wheel: Path | str) -> Inspection:
    """Read a wheel that cpupack made and check every file against the build's hashes. None of its code is run.

    A file that differs is not an error; it gets a line in ``Inspection.problems``. Raises UsageError for a file that
    cannot be read or is not a wheel made by cpupack.
    """
    from cpupack.wheel.inspect import inspect as read

    return read(Path(wheel))
