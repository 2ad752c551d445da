"""What a program begins with: header, buffers and layers of kernels/engine/program.h, for the build and the runner.

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

BUFFER = np.dtype(
    [
        ("height", "<i4"), ("width", "<i4"), ("channels", "<i4"), ("halo_y", "<i4"), ("halo_x", "<i4"),
        ("fill", "<i4"), ("frames", "<i4"), ("halo_z", "<i4"), ("offset", "<i8"), ("sample_bytes", "<i8"),
    ]
)  # fmt: skip
_INTEGERS = (
    "op", "flags", "input", "input2", "output", "kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w",
    "dilation_h", "dilation_w", "kernel_d", "stride_d", "pad_d", "dilation_d",
    "channels_out", "runs", "chunks", "chunk_bytes", "input_zero_point",
    "input2_zero_point", "output_zero_point", "low", "high",
)  # fmt: skip
LAYER = np.dtype(
    [(name, "<i4") for name in _INTEGERS]
    + [("scale", "<f4"), ("scale2", "<f4"), ("channel_offset", "<i4"), ("span_out", "<i4"), ("span_in", "<i4")]
    + [("fit", "<i4")]
    + [(name, "<i8") for name in ("weights", "scales", "biases", "table")]
)

MASKED_WIDTH = 4096
"""The widest image, in pixels, whose fourth channel the kernels add."""
