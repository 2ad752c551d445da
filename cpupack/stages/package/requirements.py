"""The versions of Python, torch and other packages that a wheel requires."""

from __future__ import annotations

from packaging.version import Version

OLDEST_TORCH = "2.10"
REQUIRES_PYTHON = ">=3.11"
RUNTIME_REQUIREMENTS = ("jinja2>=3.1,<4", "numpy>=1.26,<3", "pillow>=10,<14")
BUILD_REQUIRES = "hatchling>=1.28,<2"


def requirements(torch_version: str) -> list[str]:
    """Return the wheel's dependencies. torch may be the oldest that cpupack supports, up to the builder's minor."""
    # Every wheel requires Pillow, because the runner always imports the preprocessing, even for models without images.
    # Jinja2 renders the bench's page. torch requires it anyway, so it adds nothing to an installation.
    return [f"torch{torch_range(torch_version)}", *RUNTIME_REQUIREMENTS]


def torch_range(torch_version: str) -> str:
    """Return the versions of torch that a wheel built with this one may run on."""
    built = Version(torch_version)
    return f">={OLDEST_TORCH},<{built.major}.{built.minor + 1}"
