"""The import name of a distribution, and whether Python can import it."""

from __future__ import annotations

import keyword
import re
import sys

KNOWN_LABELS = ("imagenet", "coco", "voc")
"""Lists of labels by name: those of torchvision's classifiers, detectors and segmentation models."""
_TAKEN = frozenset({"torch", "torchvision", "timm", "numpy", "PIL", "pil", "psutil", "jinja2", "cpupack"})
"""Modules that a wheel or cpupack imports, or that users of a wheel often import: a package must not hide them."""


def import_name(distribution: str) -> str:
    """Return the import name of a distribution: lower case, runs of ``-``, ``_`` and ``.`` become ``_``."""
    return re.sub(r"[-_.]+", "_", distribution).lower()


def why_not_importable(name: str) -> str | None:
    """Return the problem of an import name as a clause that starts with "which", or None."""
    if not name.isidentifier() or keyword.iskeyword(name):
        return "which Python cannot import"
    if name in _TAKEN or name in sys.stdlib_module_names:
        return f"which would hide the module {name}"
    return None
