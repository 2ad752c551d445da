import ast
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import tomli

import cpupack
from cpupack.recipe import Recipe
from cpupack.recipe import schema as recipe_schema

RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("*.toml") if not path.name.endswith(".lock.toml")
)


@pytest.mark.parametrize(
    ("name", "make"),
    [("recipe.schema.json", recipe_schema.schema_text), ("recipe.md", recipe_schema.reference_text)],
)
def test_the_committed_reference_is_current(name: str, make: Callable[[], str]) -> None:
    committed = (recipe_schema.REFERENCE / name).read_text(encoding="utf-8")
    assert committed == make(), "run python -m cpupack.recipe.schema"


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema.recipe_schema())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_by_the_schema_too(path: Path) -> None:
    jsonschema.validate(tomli.loads(path.read_text(encoding="utf-8")), recipe_schema.recipe_schema())


@pytest.mark.parametrize(
    "change",
    [
        {"package": {"name": "-x"}},
        {"tune": {"threads": "all"}},
        {"tume": {}},
        {"preprocess": {"resize": [1]}},
        {"quantize": {"observer": "best"}},
    ],
)
def test_the_schema_refuses_what_the_models_refuse(change: dict[str, object]) -> None:
    data = {
        "schema": 1,
        "package": {"name": "x"},
        "model": {"source": "s", "weights": "w", "input_shape": [1]},
    }
    Recipe.model_validate(data)
    jsonschema.validate(data, recipe_schema.recipe_schema())
    with pytest.raises(ValueError, match="validation error"):
        Recipe.model_validate(data | change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | change, recipe_schema.recipe_schema())


def test_every_key_is_described() -> None:
    for path, table in recipe_schema.tables():
        assert table["description"], path
        for key, node in table["properties"].items():
            assert node.get("description"), (*path, key)


def test_every_key_is_read_where_it_takes_effect() -> None:
    """A key that only the recipe's own package knows would be parsed and ignored."""
    root = Path(cpupack.__file__).parent
    read = set()
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] != "recipe":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                elif isinstance(node, ast.Constant):  # gates are read by their names
                    read.add(node.value)
    assert {key for _, table in recipe_schema.tables() for key in table["properties"]} <= read


def test_editors_get_no_null_and_no_references() -> None:
    text = json.dumps(recipe_schema.recipe_schema())
    assert '"null"' not in text
    assert "$ref" not in text
