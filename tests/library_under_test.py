"""Lets the kernel tests run another build of the native library: one with sanitizers, or an emulated one.

``kernels/check.py`` names it in ``CPUPACK_TEST_LIBRARY`` and has pytest import this module (``-p``).
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from cpupack.runtime.engine import library

VARIABLE = "CPUPACK_TEST_LIBRARY"

if VARIABLE in os.environ:
    patch.object(library, "_own_path", lambda: Path(os.environ[VARIABLE])).start()
