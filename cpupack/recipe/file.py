"""Reads a recipe file: parses it, applies overrides, validates, and reports every problem at once.

``cpupack check`` uses this module, so it must import quickly and without torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from cpupack.errors import RecipeError
from cpupack.recipe import LoadedRecipe, Recipe
from cpupack.recipe import schema as recipe_schema
from cpupack.recipe.checks import cross_problems
from cpupack.recipe.derived import derived
from cpupack.recipe.lines import Key, key_lines, split_key
from cpupack.recipe.open_sizes import of_typical_size
from cpupack.recipe.problems import dotted, one_line, schema_problems, unknown_key, without_consequences

MOST_BYTES = 1 << 20
"""Of a recipe. A list of labels for ten thousand classes takes a fifth of it."""
_AROUND = 100
"""Characters before and after a fault that are shown of its line."""
Reported = tuple[str, str]
"""A problem as it is reported: the place (``FILE:LINE`` or ``--set``) and the text."""

SET = "--set"

_ABSENT = "no recipe yet? `cpupack init NAME --model torchvision:resnet18` writes one"
_PLACE = re.compile(r" \(at (?:line \d+, column \d+|end of document)\)$")
_TWICE = re.compile(r"Cannot declare \((.*)\) twice")
_NAME = r"'([^']*)'"
_BARE_VALUE = re.compile(r"^[A-Za-z_./:][\w./:-]*\s*(#.*)?$")


@dataclass
class _Draft:
    """An unchecked recipe: its values, and where each of them came from."""

    shown: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Key, int] = field(default_factory=dict)
    overridden: list[Key] = field(default_factory=list)

    def place(self, key: Key) -> str:
        """Return where to look for ``key``: its own place, or that of the nearest table around it that has one."""
        if any(key[: len(override)] == override for override in self.overridden):
            return SET
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.shown}:{self.lines[key[:length]]}"
            if any(override[:length] == key[:length] for override in self.overridden):
                return SET
        return f"{self.shown}:1"

    def order(self, key: Key) -> int:
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return self.lines[key[:length]]
        return 0


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read and check a recipe.

    ``overrides`` are ``key=value`` texts of ``--set``. Raises RecipeError with every problem, one on each line:
    ``FILE:LINE: key: what is wrong; did you mean "x"?`` (``--set`` in place of the file for overridden keys).
    The text of the result has the overrides applied.
    """
    text = _read(path)
    recipe, problems, final = parse_recipe(text, str(path), path.resolve().parent, overrides)
    if recipe is None:
        reported = [f"{place}: {text}" for place, text in problems]
        raise RecipeError("\n".join(reported), hint=_hint(path, problems))
    return LoadedRecipe(recipe=recipe, path=path.resolve(), text=final)


def parse_recipe(
    text: str, shown: str, directory: Path, overrides: Sequence[str] = ()
) -> tuple[Recipe | None, list[Reported], str]:
    """Check a recipe's text, called ``shown`` in messages, with relative paths from ``directory``.

    Returns the recipe (None when there are problems), the problems (place and text), and the text with the
    overrides applied.
    """
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        return None, [_syntax_problem(text, shown, error)], text
    except RecursionError:
        return None, [(shown, "not TOML that can be read: lists or tables are nested too deep")], text
    draft = _Draft(shown, data, key_lines(text))
    reported = [(SET, message) for override in overrides if (message := _apply(draft, override))]
    problems = schema_problems(draft.data)
    problems += cross_problems(draft.data, problems, directory)
    problems = without_consequences(problems)
    problems.sort(key=lambda problem: draft.order(problem.key))
    reported += [(draft.place(problem.key), str(problem)) for problem in problems]
    if reported:
        return None, reported, text
    return (
        of_typical_size(derived(Recipe.model_validate(draft.data), directory)),
        [],
        _written(draft.data) if overrides else text,
    )


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device may never end
            raise RecipeError(f"{path} is not a file", hint="name the recipe's file")
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"{path} is larger than {MOST_BYTES:,} bytes, which no recipe is")
        return path.read_text(encoding="utf-8-sig")  # Windows editors add a byte order mark, which is not TOML
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint=_ABSENT) from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a directory", hint="name the recipe file in it") from None
    except UnicodeDecodeError as error:
        wheel = path.suffix == ".whl"
        hint = "it is a wheel: `cpupack inspect` shows what is in it" if wheel else "save it as UTF-8"
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start})", hint=hint) from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error


def _hint(path: Path, problems: Sequence[Reported]) -> str:
    them = "it" if len(problems) == 1 else f"the {len(problems)} problems"
    # If only --set is wrong, `cpupack check FILE` would find nothing.
    in_file = any(place != SET for place, _ in problems)
    again = f" and run `cpupack check {path}`" if in_file else ""
    return f"fix {them}{again}; docs/reference/recipe.md describes every key"


def _syntax_problem(text: str, shown: str, error: tomli.TOMLDecodeError) -> Reported:
    reason = _PLACE.sub("", str(error))
    number, column = error.lineno, error.colno
    if reason == 'Expected "\'"':
        # tomli searched for the closing quote to the end of the file. The string begins at the last quote.
        last = text.rfind("'")
        number, column = text.count("\n", 0, last) + 1, last - text.rfind("\n", 0, last)
    lines = text.split("\n")
    line = lines[number - 1] if number <= len(lines) else ""
    at = f"column {column}: {_excerpt(line, column)}" if line.strip() else "end of file"
    return f"{shown}:{number}", one_line(f"not TOML: {_syntax_words(reason, line[column - 1 :])}, {at}")


def _excerpt(line: str, column: int) -> str:
    """Return a line, of a long one the part around a column."""
    first, last = max(0, column - _AROUND), column + _AROUND
    return "..." * (first > 0) + line[first:last].strip() + "..." * (last < len(line))


def _syntax_words(reason: str, rest: str) -> str:
    if reason == 'Expected "\'"' or (reason.endswith("'\\n'") and "character" in reason):
        return "the string has no closing quote on its line"
    if reason == "Invalid value" and _BARE_VALUE.match(rest):
        return "invalid value (text needs quotes)"
    twice = _TWICE.fullmatch(reason)
    if twice:
        return f"[{'.'.join(re.findall(_NAME, twice[1]))}] appears twice"
    return {"Cannot overwrite a value": "the key appears twice"}.get(reason, reason[:1].lower() + reason[1:])


def _apply(draft: _Draft, override: str) -> str | None:
    """Put one ``key=value`` into the draft. Return the problem with it, or None."""
    try:
        key, end = split_key(override)
    except (ValueError, IndexError):
        key, end = (), 0
    sign, value = override[end:].lstrip()[:1], override[end:].lstrip()[1:].strip()
    if sign != "=" or not key:
        return f"{one_line(override)}: must be key=value with a dotted key, such as calibration.samples=64"
    node = recipe_schema.node_at(key)
    if node is None and not _inside_free_table(key):
        return str(unknown_key(_unknown_part(key)))
    table = draft.data
    for depth, part in enumerate(key[:-1]):
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            return f"{dotted(key)}: {dotted(key[: depth + 1])} is not a table"
        table = inner
    table[key[-1]] = _value(value, node)
    draft.overridden.append(key)
    return None


def _unknown_part(key: tuple[str, ...]) -> Key:
    """Return ``key`` up to and including its first unknown part."""
    return next(key[:end] for end in range(1, len(key) + 1) if recipe_schema.node_at(key[:end]) is None)


def _inside_free_table(key: tuple[str, ...]) -> bool:
    """Whether ``key`` is below a table that may have any key, such as model.kwargs."""
    nodes = (recipe_schema.node_at(key[:end]) for end in range(1, len(key)))
    return any(node is not None and node.get("additionalProperties") is True for node in nodes)


def _value(text: str, node: recipe_schema.Node | None) -> Any:
    """Read the value of ``--set``: TOML, or plain text if it is not TOML or if the key takes only text."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except (tomli.TOMLDecodeError, RecursionError):
        return text
    if set(parsed) != {"value"}:
        return text  # it contains a line break and was read as several keys
    value = parsed["value"]
    # The key takes only text, so package.version=1.0 means "1.0".
    return text if node and node.get("type") == "string" and not isinstance(value, str) else value


def _written(data: dict[str, Any]) -> str:
    import tomli_w  # imported here, because only --set needs it

    return tomli_w.dumps(data)
