"""The packages that only some commands need: the wheel's extras, and the error where one is not installed."""

from __future__ import annotations

import importlib.util

from .errors import HostError

JINJA2 = "jinja2>=3.1,<4"
LOADGEN = "mlcommons-loadgen>=5,<7"
PYARROW = "pyarrow>=16,<27"
RAY = "ray[data,serve]>=2.60,<3"
SERVE = ("httptools>=0.6.4,<1", "uvloop>=0.21,<1", "grpcio>=1.62,<2", "protobuf>=5.26,<8")
TOKENIZERS = "tokenizers>=0.20,<1"
SIMPLEJPEG = "simplejpeg>=1.8,<2"


def require(module: str, requirement: str, needed_by: str) -> None:
    """Raise HostError when ``module`` is not installed. ``requirement`` is what pip is to install."""
    if importlib.util.find_spec(module) is None:
        raise HostError(f'{needed_by} needs {module}, which is not installed; run: pip install "{requirement}"')
