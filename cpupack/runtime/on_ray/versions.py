"""Whether a Ray that can be used is installed. Imports no Ray."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from ..errors import HostError

OLDEST = (2, 60)
"""The oldest that was tested. A cluster has one version on all its nodes, so it is the cluster's, too."""
_MODULES = {"pyarrow": "ray[data]", "starlette": "ray[serve]"}
"""What parts of Ray need and bring: without it they fail in their own words."""


def require_ray(name: str) -> None:
    """Raise HostError where Ray is missing, too old, or without the parts that this package uses."""
    extra = f"pip install '{name}[ray]'"
    try:
        found = metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise HostError(f"{name}.ray needs Ray, which is not installed; run: {extra}") from None
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise HostError(f"ray {found} is too old: {name} needs {oldest} or newer on every node; run: {extra}")
    for module, part in _MODULES.items():
        if importlib.util.find_spec(module) is None:
            raise HostError(f"Ray is here without {part}, which needs {module}; run: {extra}")
