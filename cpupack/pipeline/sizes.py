"""Programs for images of any size: the winner of a contest is lowered again at a few other sizes.

All have the weights and the ranges of the winner. How its program changes with the size is found from these, and proven
at one more: the program that the runner will make is the one that is lowered. Its answers there, at the least size and
at the largest are compared with FP32: what is alike at all sizes that were lowered may be another thing far away.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from cpupack.accuracy import FloatArray
from cpupack.artifacts import CalibratedModel, Contender, FloatModel, QuantizedModel, Samples
from cpupack.errors import QuantizationError, VerificationError
from cpupack.graph.native_model import NativeModel
from cpupack.model.one_row import OneRow
from cpupack.model.open_sizes import output_shapes
from cpupack.model.user_code import describe_failure
from cpupack.pipeline.again import capture_again
from cpupack.pipeline.contest import Settled
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared
from cpupack.pipeline.sized_samples import cut_samples, resized_rows
from cpupack.progress import Progress, SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import Recipe
from cpupack.runtime.engine.program import Program, read_program
from cpupack.runtime.engine.session import Session
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.open_sizes import OpenSizes, Size
from cpupack.runtime.signature import Signature, worst_sqnr_db
from cpupack.size_terms import probes
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.choices import spans_of, without_periods, without_spans
from cpupack.stages.quantize.native.largest import Tables
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import (
    GrowingTablesError,
    check_sides,
    same_program,
    sizes_of,
    tables_of,
)
from cpupack.stages.quantize.native.stretches import grids_of
from cpupack.stages.script import script
from cpupack.targets import Target

_LEAST_DB = 6.0
"""SQNR of a size's INT8 outputs beside FP32, below which something is wrong with its program. A lower gate lowers it,
as it does for the typical size."""
_WORSE_DB = 12.0
"""With the gate off, a size below ``_LEAST_DB`` and so far below another one is a warning."""
_SAMPLES = 2
_STEPS_ABOVE = 3
"""So many multiples above the least size its programs are looked for at larger ones."""
_FAR = 16
"""So many times as many positions as the typical size the size has at most where FP32 is asked: its time and its memory
grow with them, with attention by their square."""


def with_sizes(settled: Settled, corrections: Corrections, work: Path, progress: Progress) -> Settled:
    """Return the settled contest with a winner that has a program for each size of the recipe.

    A recipe of one size is returned as it is. Raises QuantizationError where the model has no such programs, and
    RecipeError for sizes that it does not take.
    """
    if settled.prepared.loaded.recipe.sizes is None:
        return settled
    with progress.stage("sizes"):
        return dataclasses.replace(settled, winner=_opened(settled, corrections, work, progress))


def _opened(settled: Settled, corrections: Corrections, work: Path, progress: Progress) -> Contender:
    prepared, winner = settled.prepared, settled.winner
    recipe = prepared.loaded.recipe
    module = winner.quantized.module
    if not isinstance(module, NativeModel) or winner.scripted.torch_reason is not None:
        raise QuantizationError(
            "only the native engine has programs for inputs of any size, and it does not run the whole model: "
            f"{winner.scripted.torch_reason}",
            hint="leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
        )
    sizes = prepared.model.sizes
    assert sizes is not None  # the recipe has them
    typical = sizes.typical(prepared.model.input_shape)
    target = winner.quantized.target
    corrected = corrections.corrected(prepared, recipe.quantize, target, SilentProgress())
    model = _OpenModel(prepared, recipe, sizes, corrected, target, without_spans(module.choices))
    model, probed = _known(model, typical, progress, has_spans=bool(spans_of(module.choices)))
    if model.largest is None and not same_program(probed.lowered[0].program, program_of(module)):
        raise QuantizationError("the model was lowered twice to different programs: please report this")
    module = probed.typical
    opened = dataclasses.replace(
        winner.quantized, module=module.with_sizes(probed.known, probed.tables.after(program_of(module)))
    )
    sample = prepared.reference.samples.spread(1).tensor(slice(None))
    scripted = script(opened, prepared.model.input_shape, winner.scripted.path, sample)
    least = least_db(recipe, random=prepared.model.random_weights)
    others = [model.answers(size) for size in dict.fromkeys([sizes.least, _far(sizes, typical)])]
    with engine(target.engine):
        program = _proven(scripted.path, probed)
        found = {each.size: _sqnr_db(program, each) for each in [probed.last.answers, *others]}
    _check(found, probed.last.size, least, sizes, progress)
    what = "images of " if sizes.is_image else ""
    known = ", ".join(f"{left:.1f} dB at {sizes.size_text(size)}" for size, left in sorted(found.items()))
    progress.note(f"{what}{sizes.text()}; the SQNR is {known}")
    return dataclasses.replace(winner, quantized=opened, scripted=scripted)


def _known(
    model: _OpenModel, typical: Size, progress: Progress, *, has_spans: bool
) -> tuple[_OpenModel, _Probed]:  # fmt: skip
    """Return how the model's program changes, and the model that tells it.

    Which moves of a list are joined is what gives the fewest at each size, and in narrow images that may be another
    step by chance. Where such programs do not tell how they change, those with the steps of the typical size may.
    """
    free = dataclasses.replace(model, choices=without_periods(model.choices))
    try:
        return _known_so(free, typical, progress, has_spans=has_spans)
    except QuantizationError as refusal:
        if free.choices == model.choices:
            raise
        try:
            return _known_so(model, typical, progress, has_spans=has_spans)
        except QuantizationError:
            raise refusal from None


def _known_so(
    model: _OpenModel, typical: Size, progress: Progress, *, has_spans: bool
) -> tuple[_OpenModel, _Probed]:  # fmt: skip
    """Return the same for choices that are made: with the largest size where that helps.

    Capturing the largest size takes time and memory. Tables that are cut need it, and constants that are laid out with
    another range at another size (``has_spans`` says that some are laid out).
    """
    try:
        return model, _probed_anywhere(model, typical, progress)
    except GrowingTablesError as growing:  # as positions that are cut to the length
        model = model.with_largest(growing.layers)
    except QuantizationError:
        if not has_spans:
            raise
        model = model.with_largest()
    try:
        return model, _probed_anywhere(model, typical, progress)
    except GrowingTablesError as growing:
        model = model.with_tables(growing.layers)
    return model, _probed_anywhere(model, typical, progress)


@dataclass(frozen=True)
class _OpenModel:
    """What the model is lowered from at any size."""

    prepared: Prepared
    recipe: Recipe
    sizes: OpenSizes
    corrected: CalibratedModel
    target: Target
    choices: Mapping[Any, float]
    tables: Mapping[int, npt.NDArray[np.float32]] | None = None
    largest: Lowered | None = None

    def at(self, size: Size) -> _AtSize:
        """Capture and fuse the model for a size, with the weights of the typical one."""
        own = self.recipe.at_size(*size)
        answers, model, some = _answers(self.prepared, own, size, _SAMPLES)
        fused = capture_again(model, some, own, self.corrected)
        return _AtSize(size, own, model.module, dataclasses.replace(self.corrected, fused=fused), answers)

    def with_largest(self, layers: Sequence[int] = ()) -> _OpenModel:
        """Return this with the program of the largest size, its ranges of constants and its tables of ``layers``."""
        quantized = self.lowered(self.at(self.sizes.most))
        lowered = _lowered_of(quantized, self.sizes.most, self.sizes)
        assert isinstance(quantized.module, NativeModel)  # as that has seen
        choices = {**self.choices, **spans_of(quantized.module.choices)}
        return dataclasses.replace(self, choices=choices, largest=lowered).with_tables(layers)

    def with_tables(self, layers: Sequence[int]) -> _OpenModel:
        """Return this with the tables of some layers of the largest size."""
        assert self.largest is not None
        return dataclasses.replace(self, tables=tables_of(self.largest, layers))

    def answers(self, size: Size) -> _Answers:
        return _answers(self.prepared, self.recipe.at_size(*size), size, 1)[0]

    def lowered(self, at: _AtSize) -> QuantizedModel:
        calibrated = dataclasses.replace(at.calibrated, choices=self.choices, tables=self.tables)
        return quantize(calibrated, at.module, at.recipe, self.target, frozenset())


@dataclass(frozen=True)
class _Probed:
    """The programs of some sizes, the last of which is there to check by, and how they change.

    ``typical`` is the model of the first one. ``tables`` belong at the end of its program.
    """

    asked: list[Size]
    lowered: list[Lowered]
    typical: NativeModel
    last: _AtSize
    known: Sizes
    tables: Tables


def _probed_anywhere(model: _OpenModel, typical: Size, progress: Progress) -> _Probed:
    """Lower the model at sizes that tell how its program changes. Raises QuantizationError where none do."""
    try:
        return _probed(model, probes(typical, model.sizes), progress)
    except GrowingTablesError:
        raise
    except QuantizationError as refusal:
        # At the least sizes a dimension of one position is none, and lists that are apart lie together: the programs of
        # larger ones may still tell how they change.
        return _probed_above(model, typical, progress, refusal)


def _probed(model: _OpenModel, asked: list[Size], progress: Progress) -> _Probed:
    """Lower the model at sizes. Raises QuantizationError where their programs do not tell how they change."""
    lowered, modules, last = [], list[nn.Module](), None
    for number, size in enumerate(asked):
        last = model.at(size)
        quantized = model.lowered(last)
        lowered.append(_lowered_of(quantized, size, model.sizes))
        modules.append(quantized.module)
        progress.step(number + 1, len(asked), "sizes")
    module = model.prepared.model.module
    tables = Tables(model.largest, model.sizes, grids_of([*module.parameters(), *module.buffers()]))
    known = sizes_of(lowered[:-1] if len(lowered) > 2 else lowered, model.sizes, tables)
    assert last is not None
    assert isinstance(modules[0], NativeModel)
    return _Probed(asked, lowered, modules[0], last, known, tables)


def _probed_above(model: _OpenModel, typical: Size, progress: Progress, refusal: QuantizationError) -> _Probed:
    """Lower the model at larger sizes. Raises ``refusal`` where these do not tell either how programs change."""
    sizes = model.sizes
    for more in range(1, _STEPS_ABOVE + 1):
        floor = tuple(
            max(low, min(low + more * step, own))
            for low, step, own in zip(sizes.least, sizes.multiple, typical, strict=True)
        )
        try:
            return _probed(model, probes(typical, dataclasses.replace(sizes, least=floor)), progress)
        except GrowingTablesError:
            raise
        except QuantizationError:
            continue
    raise refusal


@dataclass(frozen=True)
class _Answers:
    """FP32's answers to ``batch``, whose samples are of a size."""

    size: Size
    batch: torch.Tensor
    values: FloatArray
    signature: Signature


@dataclass(frozen=True)
class _AtSize:
    """The model for one size with the weights and statistics of the typical one."""

    size: Size
    recipe: Recipe
    module: torch.nn.Module
    calibrated: CalibratedModel
    answers: _Answers


def _far(sizes: OpenSizes, typical: Size) -> Size:
    """Return the largest size, or one on the way to it that has ``_FAR`` times as many positions as the typical one."""
    size = sizes.most
    while math.prod(size) > _FAR * math.prod(typical):
        size = tuple(
            own + (side - own) // 2 // step * step
            for own, side, step in zip(typical, size, sizes.multiple, strict=True)
        )
    return size


def _answers(prepared: Prepared, own: Recipe, size: Size, count: int) -> tuple[_Answers, FloatModel, Samples]:
    """Ask FP32 about a few samples of a size; return the model and the samples, too."""
    samples = prepared.reference.samples if prepared.calibration is None else prepared.calibration
    assert prepared.model.sizes is not None  # the recipe has them
    inputs = tuple(
        dataclasses.replace(spec, shape=at.shape, preprocess=at.preprocess)
        for spec, at in zip(prepared.model.signature.inputs, own.input_specs, strict=True)
    )
    signature = dataclasses.replace(prepared.model.signature, inputs=inputs)
    some = samples.spread(count)
    if prepared.model.sizes.inputs:
        rows = resized_rows(some.data, prepared.model.signature.inputs, inputs)
        some = dataclasses.replace(some, data=rows, targets=None)
    else:
        some = cut_samples(some, size, prepared.model.sizes)
    model = dataclasses.replace(prepared.model, signature=signature)
    if isinstance(model.module, OneRow):
        model = dataclasses.replace(model, module=model.module.with_inputs(inputs).eval())
    batch = some.tensor(slice(None))
    try:
        with torch.inference_mode():
            values = model.module(batch.clone(memory_format=torch.contiguous_format)).numpy()
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise QuantizationError(
            f"[sizes]: the model fails for inputs of {prepared.model.sizes.size_text(size)}: {describe_failure(error)}",
            hint="set min and max to sizes that it takes",
        ) from error
    shapes = output_shapes(model.module, batch)
    assert model.sizes is not None
    if model.sizes.outputs and shapes != list(model.sizes.shapes(size)):
        raise QuantizationError(
            f"the model has no outputs for any size: at {model.sizes.size_text(size)} they have the shapes {shapes}, "
            f"and other sizes say {list(model.sizes.shapes(size))}",
            hint="leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
        )
    outputs = tuple(
        dataclasses.replace(each, shape=shape) for each, shape in zip(signature.outputs, shapes, strict=True)
    )
    signature = dataclasses.replace(signature, outputs=outputs)
    model = dataclasses.replace(model, signature=signature)
    return _Answers(size, batch, values, signature), model, some


def _lowered_of(quantized: QuantizedModel, size: Size, sizes: OpenSizes) -> Lowered:
    module = quantized.module
    if not isinstance(module, NativeModel) or not module.is_program:
        names = ", ".join(fact.name for fact in quantized.layers if fact.kernel == "aten")
        why = names or "it has parts of torch"
        raise QuantizationError(
            f"the native engine does not run the whole model at {sizes.size_text(size)}: {why}",
            hint="set [sizes] min to larger sizes",
        )
    counts = tuple(side // step for side, step in zip(size, sizes.multiple, strict=True))
    return Lowered(counts, program_of(module), module.result_shape)


def program_of(module: NativeModel) -> bytes:
    """Return the program of a model."""
    return module.get_buffer("program").numpy().tobytes()


def least_db(recipe: Recipe, *, random: bool) -> float:
    """Return the least SQNR at a size that is not the typical one: random weights have none, as they have no gates."""
    given = recipe.evaluation.min_sqnr_db
    if given is None or isinstance(given, str) or (random and "min_sqnr_db" not in recipe.evaluation.model_fields_set):
        return -math.inf
    return min(given, _LEAST_DB)


def _proven(path: Path, probed: _Probed) -> Program:
    """Compare what the runner makes with what was lowered; return the program."""
    program = read_program(path)
    assert program.sized is not None
    for size, each in zip(probed.asked, probed.lowered, strict=True):
        if not same_program(program.sized.alone(*size).tobytes(), each.program, program.sized.sizes.rounded):
            raise QuantizationError(
                f"the model has no program for any size: at {program.sized.sizes.range.size_text(size)} it is another "
                "one than its other sizes say",
                hint="leave [sizes] out and give input_shape numbers; docs/how-to/sizes.md says what else there is",
            )
    most = program.sized.sizes.range.most
    check_sides(program.sized.alone(*most).tobytes(), program.sized.sizes.range.size_text(most))
    return program


def _sqnr_db(program: Program, fp32: _Answers) -> float:
    """Compare the answers at a size with FP32."""
    assert program.sized is not None
    session = Session(program, 1)
    try:
        session.make_ready()  # as a runner does: what the typical size prepares, other sizes share
        found = session(fp32.batch.numpy()).reshape(fp32.values.shape)
        for size in (program.sized.sizes.range.least, program.sized.sizes.range.most):
            session.make_ready(size=size)
    finally:
        session.close()
    return worst_sqnr_db(fp32.signature, fp32.values, found)


def _check(
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
