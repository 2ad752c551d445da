"""Places that a recipe names: paths from its directory, and ``package:NAME/PATH`` inside an installed package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "package:"


class NoPlaceError(Exception):
    """The package is not installed, or the name is not one."""


def is_in_package(text: str) -> bool:
    """Whether a place is inside an installed package."""
    return text.startswith(PACKAGE)


def located(text: str, directory: Path) -> Path:
    """Return the path of a place; relative ones start at ``directory``. A package is found without importing it.

    Raises NoPlaceError, in words, for a package that is not installed.
    """
    if not is_in_package(text):
        return (directory / text).resolve()
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier() or ".." in Path(inside).parts:
        raise NoPlaceError(f'"{text}" must be package:NAME/PATH, with the import name of an installed package')
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module that was started as a program has none
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise NoPlaceError(f'no package "{name}" is installed')
    return Path(places[0]) / inside
