"""``open_source`` on a recipe of the test's own directory, and what it says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpupack.artifacts import Samples
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.sources import open_source
from helpers.tiny_models import Recorder

Open = Callable[..., Samples]


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def read(tmp_path: Path, progress: Recorder) -> Open:
    """Return a function that opens a source of a recipe in ``tmp_path``; keywords change the model or the request."""

    def open_it(
        spec: str,
        *,
        shape: tuple[int, ...] = (3, 8, 8),
        preprocess: dict[str, Any] | None = {"resize": 8, "crop": 8},  # noqa: B006 - never written to
        labels: list[str] | str | None = None,
        samples: int | None = None,
        seed: int = 0,
        skip_corrupt: bool = False,
        labelled: bool = False,
        required: bool = True,
        targets: bool = False,
    ) -> Samples:
        data: dict[str, Any] = {
            "schema": 1,
            "package": {"name": "net"},
            "model": {"source": "python:net.py:make", "weights": "random", "input_shape": list(shape)},
        }
        if labels is not None:
            data["model"]["labels"] = labels
        if preprocess is not None:
            data["preprocess"] = preprocess
        loaded = LoadedRecipe(recipe=Recipe.model_validate(data), path=tmp_path / "recipe.toml", text="")
        return open_source(
            spec,
            loaded,
            samples=samples,
            seed=seed,
            skip_corrupt=skip_corrupt,
            labelled=labelled,
            progress=progress,
            required=required,
            targets=targets,
        )

    return open_it
