"""The format of programs stands in kernels/engine/program.h: the build and the runner mean the same by it."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path

import numpy as np
import pytest

from cpupack.model import two_stages
from cpupack.runtime.engine import library, program_format
from cpupack.stages.quantize.native import (
    boxes,
    float_layers,
    heads,
    moves,
    pack,
    program,
    recurrence,
    row_codes,
    walks,
)
from cpupack.stages.quantize.native.fit import Fit
from helpers import float_reference, program_header

KERNELS = program_header.PATH.parents[1]


def test_numbers() -> None:
    assert program_header.constant("CPUPACK_MAGIC") == program_format.MAGIC
    assert program_header.constant("CPUPACK_VERSION") == program_format.VERSION
    assert program_header.constant("CPUPACK_MASKED_WIDTH") == program_format.MASKED_WIDTH
    assert program_header.constant("CPUPACK_DEPTHWISE_CHANNELS") == pack.CHANNELS
    assert program_header.constant("CPUPACK_COLUMN") == recurrence.COLUMN
    assert re.search(rf"^#define BLOCK {pack.BLOCK}\b", (KERNELS / "engine" / "kernels.h").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("header", program_format.HEADER), ("buffer", program_format.BUFFER), ("layer", program_format.LAYER),
        ("walk", walks.WALK), ("instruction", walks.INSTRUCTION), ("recurrent", recurrence.RECURRENT),
        ("linear", row_codes.LINEAR), ("attention", heads.ATTENTION),
        ("proposals", boxes.PROPOSALS), ("regions", boxes.REGION),
    ],
)  # fmt: skip
def test_structs(name: str, dtype: np.dtype) -> None:
    fields = program_header.fields(name)
    assert [each[0] for each in fields] == list(dtype.names)
    offset = 0
    for member, kind, count in fields:
        base, shape = dtype[member].subdtype or (dtype[member], ())
        assert (base, int(np.prod(shape, dtype=int))) == (np.dtype(f"<{kind}"), count), member
        size = base.itemsize
        assert offset % size == 0, f"C would leave a gap before {member}"
        assert dtype.fields[member][1] == offset, member
        offset += size * count
    assert dtype.itemsize == offset
    largest = max(np.dtype(f"<{kind}").itemsize for _, kind, _ in fields)
    assert offset % largest == 0  # a C compiler would add to the end otherwise, and arrays of them would differ


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("op", program.Op), ("flag", program.Flag), ("fit", Fit), ("function", walks.Function),
        ("reduction", walks.Reduction), ("norm", walks.Norm), ("windows", walks.Windows),
        ("recurrent_kind", recurrence.Kind),
    ],
)  # fmt: skip
def test_enums(name: str, members: type[IntEnum | IntFlag]) -> None:
    assert program_header.enum(name) == {each.name: each.value for each in members}


def test_numbers_of_layers_in_fp32() -> None:
    assert program_header.constant("CPUPACK_DIMENSIONS") == walks.DIMENSIONS
    assert program_header.constant("CPUPACK_REGISTERS") == walks.REGISTERS
    assert program_header.constant("CPUPACK_SUM_LANES") == float_reference.LANES
    kernels, checks = ((KERNELS / "engine" / name).read_text() for name in ("kernels.h", "validate_floats.c"))
    assert "#define SCRATCH_BYTES (1280 * 1024)" in kernels
    assert "#define PACKED_VALUES (64 * 1024)" in kernels
    assert program_header.constant("CPUPACK_LONGEST_ROW") == row_codes.LONGEST_ROW
    assert program_header.constant("CPUPACK_OUTER") == heads.OUTER
    assert re.search(rf"^#define CPUPACK_SCORE_ROWS {heads.SCORE_ROWS}\b", kernels, re.MULTILINE)
    assert heads.SCRATCH_VALUES == 1280 * 1024 // 4
    assert program_header.constant("CPUPACK_LEVELS") == boxes.LEVELS == two_stages.MOST_LEVELS
    assert program_header.constant("CPUPACK_MOST_SAMPLES") == boxes.MOST_SAMPLES
    assert program_header.constant("CPUPACK_MOST_CELLS") == boxes.MOST_CELLS
    assert boxes.SCRATCH_BYTES == 1280 * 1024
    assert f"MOST_TAPS = {float_layers.MOST_TAPS} " in checks


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_layouts(kernel: int, stride: int) -> None:
    places, several = pack.arrange_depthwise(np.ones((2, kernel, kernel), np.int8), stride, dilated=False)
    assert several
    outputs, groups = program_header.depthwise_layouts()[kernel, stride]
    assert places.shape == (2, kernel, outputs, groups, 4)


def test_no_other_depthwise_layout() -> None:
    assert set(program_header.depthwise_layouts()) == {(3, 1), (3, 2), (5, 1), (5, 2)}
    for kernel, stride, dilated in ((7, 1, False), (3, 3, False), (3, 1, True)):
        places, several = pack.arrange_depthwise(np.ones((2, kernel, kernel), np.int8), stride, dilated=dilated)
        assert not several
        assert places.shape == (2, kernel, 1, kernel, 4)  # one group of four for each tap


def test_the_operators_name_ends_in_the_version() -> None:
    assert f'#define OPERATOR "run_{program_format.VERSION}"' in (KERNELS / "torch" / "operator.c").read_text()
    assert f"cpupack::run_{program_format.VERSION}" == library.OPERATOR


def test_no_other_file_states_the_magic() -> None:
    root = Path(__file__).resolve().parents[2]
    text = f"{program_format.MAGIC:x}"
    sources = [*(root / "cpupack").rglob("*.py"), *(root / "tests").rglob("*.py"), *KERNELS.rglob("*.*")]
    found = {str(path.relative_to(root)) for path in sources if text in path.read_text(errors="replace").lower()}
    assert found == {"cpupack/runtime/engine/program_format.py", "kernels/engine/program.h"}


def test_the_columns_of_moves_are_the_members_of_their_struct() -> None:
    names = ["from_row", "from", "to_row", "to", "length", "count", "from_step", "to_step"]
    assert program_header.fields("move") == [(name, "i4", 1) for name in names]
    assert len(names) == moves._COLUMNS
