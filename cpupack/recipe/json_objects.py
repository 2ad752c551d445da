"""Reads JSON files that hold one object, as the settings in a model's directory are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cpupack.errors import RecipeError


def read_json(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Return the object in a JSON file, {} for a file that is not there. Raises RecipeError."""
    if not required and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"[model] source: cannot read {path}: {reason}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"[model] source: {path} holds no JSON object")
    return found
