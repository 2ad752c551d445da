"""The recipe's JSON Schema and its reference page, both generated from ``recipe.py`` and ``tables/``.

``python -m cpupack.recipe.schema`` rewrites docs/reference/recipe.schema.json and docs/reference/recipe.md; a
test checks that they are current. Error messages take their words from the same schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cpupack.recipe import Recipe

Node = dict[str, Any]

LARGEST_COUNT = 2**31 - 1
"""Of every count in a recipe (``tables/base.py``, ``PositiveInt``)."""

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"

_PREFACE = """\
# Recipe reference

<!-- Generated from cpupack/recipe/tables/ by `python -m cpupack.recipe.schema`; a test checks that it is current. -->

A recipe is one TOML file. `cpupack init NAME --model torchvision:resnet18` writes one to start from, and
`cpupack check RECIPE` reports every problem in it with file, line and key. Relative paths start at the
directory of the recipe. `--set key=value` overrides any key for one command; its value is read as TOML, or as
plain text if it is not TOML or the key takes only text.

For completion and checks in an editor, point its TOML plugin at
[recipe.schema.json](recipe.schema.json), for instance with a first line `#:schema PATH/recipe.schema.json`.
"""


@cache
def recipe_schema() -> Node:
    """Return the JSON Schema (draft 2020-12) of a recipe file, its references resolved in place."""
    raw = Recipe.model_json_schema(by_alias=True)
    schema: Node = _tidy(raw, raw.get("$defs", {}))
    schema.pop("$defs", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cpupack recipe", **schema}


def _tidy(node: Any, definitions: Node) -> Any:
    """Resolve references, and drop null, which TOML does not have, and titles, which only repeat the key."""
    if isinstance(node, list):
        return [_tidy(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        rest = {key: value for key, value in node.items() if key != "$ref"}
        node = {**definitions[node["$ref"].rpartition("/")[2]], **rest}
    # A property may itself be called "title" or "default"; only a string title is the schema's own.
    tidy = {
        key: _tidy(value, definitions)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    options = tidy.get("anyOf")
    if options and {"type": "null"} in options:
        options = [option for option in options if option != {"type": "null"}]
        tidy["anyOf"] = options
    if options and len(options) == 1:
        del tidy["anyOf"]
        tidy = {**options[0], **tidy}
    return tidy


def node_at(path: tuple[str | int, ...]) -> Node | None:
    """Return the schema of the value at ``path``, None if the schema has no such key."""
    node: Node | None = recipe_schema()
    for part in path:
        node = _child(node, part) if node is not None else None
    return node


def _child(node: Node, part: str | int) -> Node | None:
    for option in node.get("anyOf", [node]):
        if isinstance(part, int) and "items" in option:
            items: Node = option["items"]
            return items
        if part in option.get("properties", {}):
            found: Node = option["properties"][part]
            return found
        if isinstance(part, str) and isinstance(option.get("additionalProperties"), dict):
            values: Node = option["additionalProperties"]
            return values
    return None


def known_keys(path: tuple[str | int, ...]) -> list[str]:
    """Return the keys that the table at ``path`` may have."""
    return list((node_at(path) or {}).get("properties", {}))


def all_keys() -> list[str]:
    """Return every key of a recipe as a dotted name."""
    return [".".join((*table, key)) for table, node in tables() for key in node["properties"]]


def tables() -> Iterator[tuple[tuple[str, ...], Node]]:
    """Yield each table's path and schema, outer tables first, in the order of the file; of a list, that of each."""
    queue: list[tuple[tuple[str, ...], Node]] = [((), recipe_schema())]
    while queue:
        path, node = queue.pop(0)
        yield path, node
        inner = [((*path, key), _table_of(value)) for key, value in node["properties"].items()]
        queue[:0] = [(key, table) for key, table in inner if table is not None]


def _table_of(node: Node) -> Node | None:
    """Return the schema of a table, or of each table of a list (``[[input]]``); None for any other value."""
    table: Node = node.get("items", {}) if node.get("type") == "array" else node
    return table if "properties" in table else None


def expected(node: Node) -> str:
    """Describe a valid value in plain words: "an integer of at least 1"."""
    if "x-expects" in node:
        return str(node["x-expects"])
    values = choices(node)
    if "anyOf" in node and not all(choices(option) for option in node["anyOf"]):
        return " or ".join(expected(option) for option in node["anyOf"])
    if values:
        return ("one of " if len(values) > 1 else "") + ", ".join(map(literal, values))
    match node.get("type"):
        case "string":
            return "a string" + (" that is not empty" if node.get("minLength") else "")
        case "integer" | "number":
            return {"integer": "an integer", "number": "a number"}[node["type"]] + _bounds(node)
        case "boolean":
            return "true or false"
        case "array":
            return _expected_list(node)
        case _:
            return "a table"


def _expected_list(node: Node) -> str:
    if _table_of(node) is not None:
        return "a list of tables, each with its header in double brackets"
    least, most = node.get("minItems", 0), node.get("maxItems")
    items = node["items"]
    if "x-expects" in items and "anyOf" in items:  # a union: its first branch, and the rest in words
        items = items["anyOf"][0]
    kind = {"string": "strings", "integer": "integers", "number": "numbers", "array": "lists"}[
        items.get("type", "string")
    ]
    count = f"{least} " if least and least == most else (f"{least} or more " if least else "")
    of = _bounds(items)
    if items.get("type") == "array":
        of = f", each {_expected_list(items)}"
    elif choices(items):
        of = f", each {expected(items)}"
    return f"a list of {count}{kind}{of}"


def _bounds(node: Node) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if high == LARGEST_COUNT:  # problems.py says it of a value above it; every count has it
        high = None
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    words = []
    if low is not None:
        words.append(f"at least {_number(low)}")
    if "exclusiveMinimum" in node:
        words.append(f"more than {_number(node['exclusiveMinimum'])}")
    if high is not None:
        words.append(f"at most {_number(high)}")
    return " of " + " and ".join(words) if words else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def choices(node: Node) -> list[Any]:
    """Return the values that a schema lists one by one, empty if it lists none."""
    if "anyOf" in node:
        return [value for option in node["anyOf"] for value in choices(option)]
    return list(node["enum"]) if "enum" in node else [node["const"]] if "const" in node else []


def literal(value: Any) -> str:
    """Return ``value`` as it is written in TOML (numbers, strings, booleans and lists of them)."""
    return json.dumps(value, ensure_ascii=False)


def schema_text() -> str:
    """Return the text of docs/reference/recipe.schema.json."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def reference_text() -> str:
    """Return the text of docs/reference/recipe.md."""
    parts = [_PREFACE]
    for path, node in tables():
        rows = [(key, value) for key, value in node["properties"].items() if _table_of(value) is None]
        if not rows:
            continue
        several = recipe_schema()["properties"].get(path[0], {}).get("type") == "array" if path else False
        name = f"[[{path[0]}]]" if several and len(path) == 1 else f"[{'.'.join(path)}]"
        title = f"## `{name}`" if path else "## Top level"
        required = node.get("required", [])
        parts.append(f"{title}\n\n{_prose(node['description'])}\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|")
        parts += [_row(key, value, required=key in required) for key, value in rows]
        parts.append("")
    return "\n".join(parts)


def _row(key: str, node: Node, *, required: bool) -> str:
    default = "required" if required else f"`{literal(node['default'])}`" if "default" in node else "none"
    value = _cell(expected(node))
    return f"| `{key}` | {value} | {_cell(default)} | {_cell(_prose(node['description']))} |"


def _prose(description: str) -> str:
    return " ".join(description.split()).replace("``", "`")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Rewrite both files of the reference."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in (("recipe.schema.json", schema_text()), ("recipe.md", reference_text())):
        (REFERENCE / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{REFERENCE / name}\n")


if __name__ == "__main__":
    main()
