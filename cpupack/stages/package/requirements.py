"""The versions of Python, torch and other packages that a wheel requires."""

from __future__ import annotations

from packaging.version import Version

from cpupack.runtime.extras import JINJA2, LOADGEN, PYARROW, RAY, SERVE, SIMPLEJPEG, TOKENIZERS

OLDEST_TORCH = "2.10"
REQUIRES_PYTHON = ">=3.10"
"""The oldest is that of Ubuntu 22.04 and of JetPack. A test holds the runtime and the templates to it."""
RUNTIME_REQUIREMENTS = ("numpy>=1.26,<3", "pillow>=10,<14")
EXTRAS = {
    "batch": ([PYARROW], "batch: Parquet in and out"),
    "html": ([JINJA2], "bench --html"),
    "jpeg": ([SIMPLEJPEG], "decodes JPEGs a fifth faster than Pillow"),
    "loadgen": ([LOADGEN], "bench --loadgen: MLPerf Inference's own load generator"),
    "ray": ([RAY, PYARROW], "batch --address, and NAME.ray: Ray Data and Ray Serve"),
    "serve": (list(SERVE), "serve: HTTP and gRPC"),
}
"""The wheel's extras: what each requires, and what it is for."""
BUILD_REQUIRES = "hatchling>=1.28,<2"


def requirements(torch_version: str, *, needs_torch: bool, takes_text: bool = False) -> list[str]:
    """Return the wheel's dependencies. torch may be the oldest that cpupack supports, up to the builder's minor."""
    # Every wheel requires Pillow, because the runner always imports the preprocessing, even for models without images.
    torch = [f"torch{torch_range(torch_version)}"] if needs_torch else []
    return [*torch, *RUNTIME_REQUIREMENTS, *([TOKENIZERS] if takes_text else [])]


def torch_range(torch_version: str) -> str:
    """Return the versions of torch that a wheel built with this one may run on."""
    built = Version(torch_version)
    return f">={OLDEST_TORCH},<{built.major}.{built.minor + 1}"
