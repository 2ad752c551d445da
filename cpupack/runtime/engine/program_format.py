"""What a program begins with: header, buffers and layers of kernels/engine/program.h, for the build and the runner.

``tests/unit/test_program_format.py`` compares them with the C header.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

MAGIC, VERSION = 0x314B5043, 3

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
CONSTANTS = ("weights", "scales", "biases", "table")
LAYER = np.dtype(
    [(name, "<i4") for name in _INTEGERS]
    + [("scale", "<f4"), ("scale2", "<f4"), ("channel_offset", "<i4"), ("span_out", "<i4"), ("span_in", "<i4")]
    + [("fit", "<i4")]
    + [(name, "<i8") for name in CONSTANTS]
)


class Op(IntEnum):
    """The operation of a layer (``enum cpupack_op``)."""

    INPUT_PIXELS = 0
    INPUT_FLOAT = 1
    CONV = 2
    DEPTHWISE = 3
    MAX_POOL = 4
    GLOBAL_AVERAGE = 5
    SCALE = 6
    ADD = 7
    TABLE = 8
    AVERAGE_POOL = 9
    OUTPUT = 10
    MOVE = 11
    MULTIPLY = 12
    AFFINE = 13
    RESAMPLE = 14
    FLOAT_INPUT = 15
    DEQUANTIZE = 16
    QUANTIZE = 17
    FLOAT_MAP = 18
    FLOAT_REDUCE = 19
    FLOAT_NORMALIZE = 20
    FLOAT_MATMUL = 21
    FLOAT_WINDOWS = 22
    FLOAT_GATHER = 23
    RECURRENT = 24
    FLOAT_CODES = 25
    FLOAT_ATTENTION = 26
    FLOAT_LOOKUP = 27
    PROPOSE = 28
    REGIONS = 29
    FLOAT_ORDER = 30
    FLOAT_PICK = 31
    FLOAT_PUT = 32
    FLOAT_SAMPLE = 33


MASKED_WIDTH = 4096
"""The widest image, in pixels, whose fourth channel the kernels add."""
