"""Finds the Jinja templates and renders them.

A source checkout keeps them in ``templates/`` next to the package; a wheel of cpupack has the same files in
``cpupack/templates``. Templates of the runtime are available as ``runtime/NAME``. Undefined names are errors. Values in
HTML are escaped. TOML values go through the ``toml`` filter, YAML values through ``yaml``; no template writes quotes
around a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpupack.errors import PackagingError

if TYPE_CHECKING:
    import jinja2

_BARE_KEY = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def templates_dir() -> Path:
    """Return the directory of the templates. Raises PackagingError when this installation has none."""
    package = Path(__file__).resolve().parent
    # The packaged copy first: next to an installed package, "templates" may belong to something else.
    for directory in (package / "templates", package.parent / "templates"):
        if (directory / "recipe").is_dir():
            return directory
    raise PackagingError(f"cpupack's templates are missing next to {package}", hint="reinstall cpupack")


@cache
def environment() -> jinja2.Environment:
    """Return the environment of all templates: the filters, and undefined names are errors."""
    import jinja2  # imported here, because `cpupack check` and `--help` render nothing

    import cpupack
    from cpupack.runtime.pages.bench_page import loader

    env = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(templates_dir()), loader()]),
        undefined=jinja2.StrictUndefined,
        # All other templates are TOML, YAML, Python or Markdown. Values of the first two use a filter.
        autoescape=jinja2.select_autoescape(("html.j2",), default=False),
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["toml"] = to_toml
    env.filters["yaml"] = json.dumps  # JSON is YAML
    env.globals["cpupack_version"] = cpupack.__version__
    return env


def render(template: str, /, **values: Any) -> str:
    """Render ``template`` (path below the templates directory) with ``values``."""
    return environment().get_template(template).render(**values)


def to_toml(value: object) -> str:
    """Return ``value`` as a TOML value on one line. Raises TypeError for a type that TOML does not have."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case str():
            return _string(value)
        case list() | tuple():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case Mapping():
            return "{" + ", ".join(f"{_key(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"TOML has no value for {type(value).__name__}")


def _key(key: str) -> str:
    return key if key and _BARE_KEY.issuperset(key) else _string(key)


def _string(text: str) -> str:
    text.encode()  # raises on a lone surrogate, which no TOML file can hold
    # JSON's escapes are a subset of TOML's; DEL is the one character JSON leaves bare and TOML forbids.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
