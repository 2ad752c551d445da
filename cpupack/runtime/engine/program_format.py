"""What a program begins with: ``struct cpupack_header`` of kernels/engine/program.h, for the build and the runner.

``tests/unit/test_program_format.py`` compares it with the C header.
"""

from __future__ import annotations

import numpy as np

MAGIC, VERSION = 0x314B5043, 2

HEADER = np.dtype(
    [
        ("magic", "<i4"), ("version", "<i4"), ("buffers", "<i4"), ("layers", "<i4"),
        ("input_channels_pixels", "<i4"), ("input_channels_float", "<i4"), ("input_height", "<i4"),
        ("input_width", "<i4"), ("outputs", "<i4"), ("alone", "<i4"), ("identity", "<i4", 2), ("arena_bytes", "<i8"),
        ("constants", "<i8"),
    ]
)  # fmt: skip

MASKED_WIDTH = 4096
"""The widest image, in pixels, whose fourth channel the kernels add."""
