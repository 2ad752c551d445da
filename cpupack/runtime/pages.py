"""A measurement as one page: a file without scripts that fetches nothing, made from the JSON's own figures."""

from __future__ import annotations

from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def loader() -> jinja2.BaseLoader:
    """Return what loads the shipped templates, each as ``runtime/NAME``: the build's pages extend them."""
    return jinja2.PrefixLoader({"runtime": jinja2.FileSystemLoader(TEMPLATES)})
