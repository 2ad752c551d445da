"""The files that a recipe names, by the keys that name them. A new kind of source is added here, and in ``checks``.

The lock hashes them, and the cache those of the model. Folders of images are not here: which of their photos a build
reads is known when it has read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cpupack.recipe.metrics import PICTURE_ENDINGS, TARGET_FILES
from cpupack.recipe.names import KNOWN_LABELS
from cpupack.recipe.places import NoPlaceError, is_in_package, located
from cpupack.recipe.recipe import Recipe
from cpupack.recipe.shards import ShardError, files_of
from cpupack.recipe.tables.model import WEIGHT_FILES
from cpupack.recipe.text_checks import DIRECTORIES

PYTHON = "python"
_ONE_FILE = ("arrays", "text", "export", "torchscript")
"""Kinds of sources that are ``KIND:FILE``."""


@dataclass(frozen=True)
class NamedFile:
    """A file that the key ``key`` names. ``name`` is how the recipe would write its place."""

    key: str
    name: str


def sources(recipe: Recipe) -> dict[str, str]:
    """Return every ``KIND:WHAT`` of a recipe by its key, in the order of the recipe."""
    named = {
        "model.source": recipe.model.source,
        "calibration.source": recipe.calibration.source if recipe.calibration else None,
        "evaluation.source": recipe.evaluation.source,
        "evaluation.metric": recipe.evaluation.metric,
    }
    return {key: value for key, value in named.items() if value is not None}


def named_files(recipe: Recipe, directory: Path) -> Iterator[NamedFile]:
    """Yield the files that a recipe names and that exist; of a directory with a model, all in it.

    ``directory`` is where relative paths start.
    """
    for key, name in _named(recipe):
        path = place_of(name, directory)
        if path is None:
            continue
        if path.is_file():
            for each in _parts(path):
                yield NamedFile(key, _relative((Path(name).parent / each.name).as_posix(), directory))
        elif path.is_dir() and key == "model.source":
            for each in sorted(path.rglob("*")):
                if each.is_file():
                    yield NamedFile(
                        key, f"{_relative(name, directory).rstrip('/')}/{each.relative_to(path).as_posix()}"
                    )


def _parts(path: Path) -> list[Path]:
    """Return a file, and the shards that it names if it is an index. Loading says what is wrong with it."""
    try:
        return files_of(path)
    except ShardError:
        return [path]


def target_of(kind: str, directory: str, image: str) -> str:
    """Return the file of an image below the directory of ``masks:DIR`` or ``maps:DIR``, which has the same name."""
    return f"{directory.rstrip('/')}/{Path(image).with_suffix(TARGET_FILES[kind]).as_posix()}"


def picture_of(directory: Path, image: str) -> Path | None:
    """Return the picture of an image below the directory of ``images:DIR``: of its name, perhaps with another ending.

    None where there is none.
    """
    given = directory / image
    endings = (given.suffix, *(each for each in PICTURE_ENDINGS if each != given.suffix))
    return next((path for each in endings if (path := given.with_suffix(each)).is_file()), None)


def place_of(name: str, directory: Path) -> Path | None:
    """Return the path of a ``NamedFile``'s name, None where its package is not installed."""
    try:
        return located(name, directory)
    except NoPlaceError:
        return None


def _named(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key, source in sources(recipe).items():
        kind, _, rest = source.partition(":")
        place = rest.rpartition(":")[0]
        if kind in _ONE_FILE or kind in DIRECTORIES:
            yield key, rest
        elif kind == PYTHON and place.endswith(".py"):
            yield key, place
    if recipe.model.weights.endswith(WEIGHT_FILES):
        yield "model.weights", recipe.model.weights
    if isinstance(recipe.model.labels, str) and recipe.model.labels not in KNOWN_LABELS:
        yield "model.labels", recipe.model.labels
    if recipe.evaluation.targets is not None:  # of a folder what was read is hashed, as of photos
        yield "evaluation.targets", recipe.evaluation.targets.partition(":")[2]
    if recipe.tokenizer is not None and recipe.tokenizer.source is not None:
        yield "tokenizer.source", recipe.tokenizer.source


def _relative(name: str, directory: Path) -> str:
    """Return a name without the place of this checkout: what is below the recipe's directory begins there."""
    path = Path(name)
    if is_in_package(name) or not path.is_absolute():
        return name
    # The directory may be reached by a link, and so may the file: what is below it by either way begins there.
    for base in (directory.absolute(), directory.resolve()):
        for each in (path, path.resolve()):
            if each.is_relative_to(base):
                return each.relative_to(base).as_posix()
    return name
