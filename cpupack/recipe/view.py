"""A recipe's values as the checks read them: with defaults, and without values that are known to be wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cpupack.recipe import Recipe
from cpupack.recipe.lines import Key
from cpupack.recipe.problems import Problem


class UnusableError(Exception):
    """The requested value is wrong or missing, and that is already reported."""


class View:
    """A recipe's values with defaults, without values that are known to be wrong.

    ``directory`` is where relative paths start.
    """

    def __init__(self, data: Mapping[str, Any], wrong: set[Key], directory: Path) -> None:
        self._data = data
        self._wrong = wrong
        self._directory = directory

    def __call__(self, *key: str) -> Any:
        """Return the value of ``key``, its default, or None if its table is absent and has no default.

        Raises UnusableError when the value is missing or wrong. In that case it is already reported.
        """
        if any(wrong[: len(key)] == key or key[: len(wrong)] == wrong for wrong in self._wrong):
            raise UnusableError
        value: Any = self._data
        for part in key:
            if part not in value:
                return _default(key, table_given=key[0] in self._data)
            value = value[part]
        return value

    def given(self, *key: str) -> bool:
        """Whether the file itself has ``key``."""
        value: Any = self._data
        for part in key:
            if not isinstance(value, Mapping) or part not in value:
                return False
            value = value[part]
        return True

    def path(self, text: str) -> Path:
        """Return a path of the recipe made absolute. Raises OSError where that cannot be."""
        try:
            return (self._directory / text).resolve()
        except RuntimeError as error:  # Python before 3.13: links in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), text) from error


def _default(key: tuple[str, ...], *, table_given: bool) -> Any:
    table = Recipe.model_fields[key[0]]
    if not table_given and (table.is_required() or table.default is None):
        if table.is_required():
            raise UnusableError
        return None
    model: Any = Recipe
    for part in key[:-1]:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if hasattr(option, "model_fields"))
    field = model.model_fields[key[-1]]
    if field.is_required():
        raise UnusableError
    return field.get_default(call_default_factory=True)


Check = Callable[[View], Iterator[Problem]]
