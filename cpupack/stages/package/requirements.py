"""What a wheel asks of pip and of Python."""

from __future__ import annotations

from packaging.version import Version

OLDEST_TORCH = "2.10"
REQUIRES_PYTHON = ">=3.11"
RUNTIME_REQUIREMENTS = ("jinja2>=3.1,<4", "numpy>=1.26,<3", "pillow>=10,<14", "psutil>=5.9,<8")
BUILD_REQUIRES = "hatchling>=1.28,<2"


def requirements(torch_version: str) -> list[str]:
    """Return the wheel's dependencies; torch from the oldest cpupack supports to the builder's minor."""
    # Pillow in every wheel: the runtime is one body of code, and its runner imports its preprocessing.
    # Jinja2 is one of torch's own dependencies: it renders the bench's page and adds nothing to an installation.
    return [f"torch{torch_range(torch_version)}", *RUNTIME_REQUIREMENTS]


def torch_range(torch_version: str) -> str:
    """Return the versions of torch that a wheel built with this one may run on."""
    built = Version(torch_version)
    return f">={OLDEST_TORCH},<{built.major}.{built.minor + 1}"
