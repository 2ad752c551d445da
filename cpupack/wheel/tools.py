"""The versions of everything that takes part in a build."""

from __future__ import annotations

import importlib.metadata
import platform
import zlib

import cpupack

_PACKAGES = "torch", "torchvision", "timm", "numpy", "pillow", "hatchling", "jinja2"
"""What takes part in the bytes of a wheel, where it is installed."""


def versions() -> dict[str, str]:
    """Return the versions of all that takes part: packages, Python, and zlib, which compresses the wheel."""
    found = {"cpupack": cpupack.__version__, "python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
