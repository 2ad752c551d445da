"""cpupack: turns a TOML recipe into a tuned, verified INT8 wheel for CPUs.

The names of ``__all__`` are the public API. Each is imported when it is first used, so ``import cpupack`` does not
load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpupack.api import build, inspect, load_recipe
    from cpupack.errors import CpupackError
    from cpupack.pipeline import BuildOptions, BuildResult
    from cpupack.progress import BuildWarning, Progress, SilentProgress
    from cpupack.recipe import LoadedRecipe
    from cpupack.wheel.inspect import Inspection

__version__ = "0.1.0"
__all__ = [
    "BuildOptions",
    "BuildResult",
    "BuildWarning",
    "CpupackError",
    "Inspection",
    "LoadedRecipe",
    "Progress",
    "SilentProgress",
    "build",
    "inspect",
    "load_recipe",
]

_HOMES = {
    "BuildOptions": "cpupack.pipeline",
    "BuildResult": "cpupack.pipeline",
    "BuildWarning": "cpupack.progress",
    "CpupackError": "cpupack.errors",
    "Inspection": "cpupack.wheel.inspect",
    "LoadedRecipe": "cpupack.recipe",
    "Progress": "cpupack.progress",
    "SilentProgress": "cpupack.progress",
    "build": "cpupack.api",
    "inspect": "cpupack.api",
    "load_recipe": "cpupack.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
