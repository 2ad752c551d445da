"""The proof of a program for any size: it is the one that each size is lowered to, and answers as FP32 does.

What is alike at all sizes that were lowered may be another thing far away. So the answers at the least size, at one
between and at a large one are compared with FP32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cpupack.errors import QuantizationError, VerificationError
from cpupack.pipeline.size_answers import Answers, on_the_way
from cpupack.progress import Progress
from cpupack.recipe import Recipe
from cpupack.runtime.engine.program import Program, read_program
from cpupack.runtime.engine.session import Session
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.runtime.signature import worst_sqnr_db
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import check_sides, same_program

_LEAST_DB = 6.0
"""SQNR of a size's INT8 outputs beside FP32, below which something is wrong with its program. A lower gate lowers it,
as it does for the typical size."""
_WORSE_DB = 12.0
"""With the gate off, a size below ``_LEAST_DB`` and so far below another one is a warning."""
_FAR = 16
"""So many times as many positions as the typical size the size has at most where FP32 is asked."""


def far_size(sizes: OpenSizes, typical: Size) -> Size:
    """Return the largest size, or one on the way to it that has ``_FAR`` times as many positions as the typical one."""
    size = sizes.most
    while math.prod(size) > _FAR * math.prod(typical):
        size = on_the_way(typical, size, sizes, 50)
    return size


def least_db(recipe: Recipe, *, random: bool) -> float:
    """Return the least SQNR at a size that is not the typical one: random weights have none, as they have no gates."""
    given = recipe.evaluation.min_sqnr_db
    if given is None or isinstance(given, str) or (random and "min_sqnr_db" not in recipe.evaluation.model_fields_set):
        return -math.inf
    return min(given, _LEAST_DB)


def proven(path: Path, asked: Sequence[Size], lowered: Sequence[Lowered]) -> Program:
    """Compare what the runner makes with what was lowered at the sizes ``asked``; return the program."""
    program = read_program(path)
    assert program.sized is not None
    for size, each in zip(asked, lowered, strict=True):
        if not same_program(program.sized.alone(*size).tobytes(), each.program, program.sized.sizes.rounded):
            raise QuantizationError(
                f"the model has no program for any size: at {program.sized.sizes.range.size_text(size)} it is another "
                "one than its other sizes say",
                hint="leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
            )
    most = program.sized.sizes.range.most
    check_sides(program.sized.alone(*most).tobytes(), program.sized.sizes.range.size_text(most))
    return program


def sqnr_db(program: Program, fp32: Answers) -> float:
    """Compare the answers at a size with FP32."""
    assert program.sized is not None
    session = Session(program, 1)
    try:
        session.make_ready()  # as a runner does: what the typical size prepares, other sizes share
        found = session(fp32.batch.numpy()).reshape(fp32.values.shape)
        sizes = program.sized.sizes.range
        for key, size in (("min", sizes.least), ("max", sizes.most)):
            try:
                session.make_ready(size=size)
            except IntegrityError as error:
                raise QuantizationError(
                    f"[sizes] {key}: the native engine takes no inputs of {sizes.size_text(size)}: a layer has more "
                    "values there than it can count, or places beyond its input",
                    hint="set max to less, or min to more; large inputs can be given in parts",
                ) from error
    finally:
        session.close()
    return worst_sqnr_db(fp32.signature, fp32.values, found)


def check(
    found: Mapping[Size, float], near: Size, least_db: float, sizes: OpenSizes, progress: Progress
) -> None:  # fmt: skip
    """Raise VerificationError for a size with less than ``least_db``, or warn of one far below the size ``near``."""
    for size, left in found.items():
        where = f"inputs of {sizes.size_text(size)} have {left:.1f} dB"
        if size != near:
            where += f", those of {sizes.size_text(near)} {found[near]:.1f} dB"
        if left < least_db:
            raise VerificationError(
                f"[evaluation] min_sqnr_db = {least_db:g}: {where}",
                hint="set [sizes] typical and the calibration data to inputs like those that the model will see, and "
                'min and max to sizes that it was made for; "off" turns the gate off (docs/how-to/gates.md)',
            )
        if left < min(_LEAST_DB, found[near] - _WORSE_DB):
            progress.warn(
                f"[sizes]: {where}: there the model computes something else, or values that no calibration sample has; "
                "set min and max to sizes that it was made for"
            )
