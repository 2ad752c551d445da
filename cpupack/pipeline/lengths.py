"""Programs for the lengths of a sample: the winner of a contest is lowered again for some shorter ones.

All have the weights and the choices of the winner. The least length is captured; the graphs between it and the
greatest one are derived from these two, and compared with the model; where that fails, a length is captured too. Each
is compared with the greatest, in FP32 and in INT8: a model whose answer depends on its padding is refused.

Where a few lengths prove a form (``stages/quantize/native/forms.py``), the wheel makes the program of every length from
it. Otherwise it has those of several lengths.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import Contender, QuantizedModel, Reference, ScriptedModel
from cpupack.errors import ModelError, QuantizationError, RecipeError
from cpupack.graph.native_model import NativeModel
from cpupack.model.text_input import padded
from cpupack.pipeline.at_lengths import (
    COMPARED,
    SAME,
    AtLength,
    ShorterLengths,
    apart_by_padding,
    distance,
    inputs_of,
    shortened,
)
from cpupack.pipeline.contest import Settled, judged
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress, SilentProgress
from cpupack.quantized_engine import engine
from cpupack.runtime.engine.forms import Form
from cpupack.runtime.engine.lengths import Field, Lengths, every, fields, ladder
from cpupack.runtime.engine.program import read_program
from cpupack.runtime.engine.session import Session
from cpupack.runtime.errors import IntegrityError, RunnerError
from cpupack.runtime.signature import Signature
from cpupack.stages.quantize.native.forms import NoFormError, block_of
from cpupack.stages.quantize.native.lengths import join_programs
from cpupack.stages.script import script
from cpupack.stages.verify import choose, compare

_SHORTEST = 8
"""The least length that is lowered, where the model runs at it. Shorter ones follow from a form, or take its
program."""
_SHORT = (1, 2, 3, 5, 7)
"""Lengths below it that are compared with FP32."""
_LESS_DB = 10.0
"""What these may lose beside the lengths that were lowered: a single token has fewer values to average."""
_LEAST_DB = 6.0
"""SQNR of a length's INT8 outputs beside FP32, below which something is wrong with its program."""


def with_lengths(settled: Settled, corrections: Corrections, work: Path, progress: Progress) -> Settled:
    """Return the settled contest with a winner that has a program for each length of the recipe.

    The gates judge these programs again, on all samples. Raises ModelError where the model's answer depends on its
    padding, or where it cannot be captured at a length, and VerificationError where a gate does not hold.
    """
    recipe, signature = settled.prepared.loaded.recipe, settled.prepared.model.signature
    text = settled.prepared.model.tokenizer
    if text is not None and text.spec.side == "left" and not (recipe.tokenizer and recipe.tokenizer.fixed_length):
        _check_padding(settled.prepared, padded(signature, text.spec), progress, asked=False, left=True)
    if all(each.pad is None for each in signature.inputs):
        return settled
    asked = recipe.lengths is not None or any(each.pad is not None for each in recipe.input_specs)
    module = settled.winner.quantized.module
    if not isinstance(module, NativeModel) or settled.winner.scripted.torch_reason is not None:
        progress.warn(
            "inputs have a pad, but the native engine does not run the whole model: padding is computed "
            f"({settled.winner.scripted.torch_reason})"
        )
        _check_padding(settled.prepared, signature, progress, asked=asked)
        return settled
    with progress.stage("lengths"):
        try:
            return dataclasses.replace(settled, winner=_lengthened(settled, module, corrections, work, progress))
        except (ModelError, QuantizationError) as error:
            if asked:
                raise
            progress.warn(f"texts are padded to the greatest length, and padding is computed: {error}")
            return settled


def _check_padding(
    prepared: Prepared, whole: Signature, progress: Progress, *, asked: bool, left: bool = False
) -> None:
    """Say that padding, which is computed, changes the answer to a short sample; with ``asked`` raise that."""
    (longest,) = {each.shape[0] for each in whole.inputs if each.pad is not None}
    length = (longest // 2) | 1
    if length >= longest:
        return
    try:
        apart = apart_by_padding(prepared, whole, length, left=left)
    except ModelError as error:
        progress.note(f"whether the answer depends on padding was not seen: {error}")
        return
    if apart <= SAME:
        return
    depends = _depends(length, longest, apart)
    if asked:
        raise depends
    progress.warn(str(depends))


def _depends(length: int, longest: int, apart: float) -> ModelError:
    return ModelError(
        f"the model's answer depends on padding: a sample of length {length} gives another answer "
        f"with padding up to {longest} (they differ by {apart:.2g} of the largest output)",
        hint="hide padding in the model by a mask, check the pad of each [[input]], or leave the pad out",
    )


def _lengthened(
    settled: Settled, module: NativeModel, corrections: Corrections, work: Path, progress: Progress
) -> Contender:
    prepared, winner = settled.prepared, settled.winner
    recipe = prepared.loaded.recipe
    if module.image:
        raise QuantizationError(
            "the model's output is an image, which has no program for each length",
            hint="leave [lengths] and the pad of the inputs out, or return (batch, positions, values)",
        )
    target = winner.quantized.target
    corrected = corrections.corrected(prepared, recipe.quantize, target, SilentProgress())
    program = module.get_buffer("program").numpy().tobytes()
    shorter = ShorterLengths(prepared, corrected, target, program)
    longest = shorter.longest
    asked = recipe.lengths.values if recipe.lengths is not None else "auto"
    values = ladder(longest) if asked == "auto" else tuple(sorted({*asked, longest}))
    if values[-1] > longest:
        raise RecipeError(f"[lengths] values: {values[-1]} is more than {longest}, the greatest length of the inputs")
    least = _SHORTEST
    if asked == "auto":  # a convolution may need more positions than the least length has
        values = tuple(itertools.dropwhile(lambda value: value < longest and not shorter.runs(value), values))
        least = max(least, values[0])
    block, lengths = _programs(shorter, values, progress, least if asked == "auto" else None)
    sample = prepared.reference.samples.spread(1).tensor(slice(None))
    with engine(target.engine):
        lengthened, scripted = _scripted(prepared, winner, module.with_lengths(block, lengths), sample)
        worst = _compared(prepared, shorter.found, lengths, scripted.path)
        short = lengths.form is not None and lengths.values[0] < least
        if short and not _serves_short(prepared, lengths, scripted.path, worst[0]):
            assert lengths.form is not None
            lengths = every(least, longest, lengths.inputs, lengths.outputs, lengths.form)
            lengthened, scripted = _scripted(prepared, winner, module.with_lengths(block, lengths), sample)
    blanked = _blanked(prepared.reference, lengths)
    checked = _judged(prepared, winner, compare(lengthened, scripted, blanked, work, progress))
    more = max(0, len(block) - len(program)) / 2**20
    count = f"{len(values)} lengths" if lengths.form is None else "all lengths"
    progress.note(
        f"{count} from {lengths.values[0]} to {longest} share their weights (+{more:.1f} MB); the least SQNR "
        f"of {len(shorter.found)} that were compared is {worst[0]:.1f} dB, at {worst[1]}"
    )
    return checked


def _programs(
    shorter: ShorterLengths, values: tuple[int, ...], progress: Progress, least: int | None
) -> tuple[bytes, Lengths]:
    """Return a block of programs: of every length that is proved from ``least`` on where there is a form, or of values.

    Without ``least`` no form is looked for.
    """
    signature = shorter.signature
    if least is not None:
        try:
            shorter.lower(_proving(least, shorter.longest), progress)
            block, form = _formed(shorter, progress)
        except (NoFormError, ModelError, QuantizationError) as error:
            progress.note(f"there is no program for every length, but for several: {error}")
        else:
            outputs = _outputs(signature, shorter.found)
            first = 1 if least <= _SHORTEST else least
            return block, every(first, shorter.longest, inputs_of(signature), outputs, form)
    shorter.lower(values, progress)
    shorter.keep(values)
    block, offsets = join_programs([shorter.programs[value] for value in values])
    return block, Lengths(values, tuple(offsets), inputs_of(signature), _outputs(signature, shorter.found))


def _formed(shorter: ShorterLengths, progress: Progress) -> tuple[bytes, Form]:
    """Return the form of all lengths, if need be with constants of pairs of positions that all share.

    Raises NoFormError.
    """
    try:
        return _form_of(shorter.programs, shorter.longest)
    except NoFormError:
        # Products of two lengths take one length more to prove.
        shorter.lower([each for each in (3 * shorter.longest // 4,) if each > _SHORTEST], progress)
        return _form_of(shorter.with_shared_pairs(), shorter.longest)


def _form_of(programs: Mapping[int, bytes], longest: int) -> tuple[bytes, Form]:
    """Return the form of all these programs, or of the longer half of them.

    Short samples may be copied in another order, whose result is the same: their programs then follow from the longer
    ones, and are compared with FP32. Raises NoFormError.
    """
    try:
        return block_of(programs)
    except NoFormError:
        return block_of({each: own for each, own in programs.items() if 2 * each > longest})


def _proving(least: int, longest: int) -> list[int]:
    """Return the lengths that prove a form, with the greatest one: an odd one, and one that is nearly as long."""
    return sorted({least, (5 * longest // 8) | 1, longest - 1} & set(range(least, longest)))


def _scripted(
    prepared: Prepared, winner: Contender, module: NativeModel, sample: torch.Tensor
) -> tuple[QuantizedModel, ScriptedModel]:
    lengthened = dataclasses.replace(winner.quantized, module=module)
    return lengthened, script(lengthened, prepared.model.input_shape, winner.scripted.path, sample)


def _serves_short(prepared: Prepared, lengths: Lengths, path: Path, least_db: float) -> bool:
    """Return whether the kernels take the programs of all lengths, and those below what was lowered are like FP32."""
    session = Session(read_program(path), 1)
    try:
        session.make_ready(all_lengths=True)
        for length in (each for each in _SHORT if each < min(_SHORTEST, lengths.values[-1])):
            rows = shortened(prepared.reference.samples.spread(COMPARED), lengths.inputs, length)
            with torch.inference_mode():
                expected = prepared.model.module(torch.from_numpy(rows)).numpy()
            expected = lengths.blanked(rows, expected.reshape(len(expected), -1))
            if sqnr_db(expected, session(rows).reshape(expected.shape)) < max(_LEAST_DB, least_db - _LESS_DB):
                return False
    except (IntegrityError, RunnerError):  # a size that is not above zero, or values that are not there
        return False
    finally:
        session.close()
    return True


def _blanked(reference: Reference, lengths: Lengths) -> Reference:
    """Return FP32's outputs with zeros where a sample has padding, as the wheel gives them."""
    rows = np.asarray(reference.samples.data, np.float32)
    outputs = lengths.blanked(rows, reference.outputs.reshape(len(rows), -1)).reshape(reference.outputs.shape)
    return dataclasses.replace(reference, outputs=outputs)


def _judged(prepared: Prepared, winner: Contender, compared: Contender) -> Contender:
    """Return the compared model with the winner's other facts. Raises VerificationError where a gate does not hold."""
    speed = {name: getattr(winner.report, name) for name in ("speedup", "speedup_ci95", "speed_rows")}
    report = dataclasses.replace(compared.report, **speed)
    facts = dataclasses.replace(compared, report=report, saturation=winner.saturation, layers=winner.layers)
    return choose([judged(prepared, facts)])


def _outputs(whole: Signature, found: Sequence[AtLength]) -> tuple[Field, ...]:
    """Return the outputs with the dimension that changes with the length. Raises ModelError for another change."""
    (longest,) = {each.shape[0] for each in whole.inputs if each.pad is not None}
    axes: list[int | None] = []
    for number, output in enumerate(whole.outputs):
        changing: set[int] = set()
        for each in found:
            shape, value = each.model.signature.outputs[number].shape, each.length
            differ = [axis for axis, sizes in enumerate(zip(shape, output.shape, strict=False)) if len(set(sizes)) > 1]
            wrong = len(shape) != len(output.shape) or any(shape[axis] != value for axis in differ)
            if wrong or len(differ) > 1:
                raise ModelError(
                    f'the output "{output.name}" has the shape {shape} at length {value}, and {output.shape} at '
                    f"{longest}: only one dimension may change, to the length",
                    hint="drop the output ([[output]] drop = true), or leave the pad out of the inputs",
                )
            changing |= set(differ)
        if len(changing) > 1:
            raise ModelError(f'two dimensions of the output "{output.name}" change with the length')
        axes.append(changing.pop() if changing else None)
    return fields([each.shape for each in whole.outputs], axes, [0.0] * len(axes))


def _compared(prepared: Prepared, found: Sequence[AtLength], lengths: Lengths, path: Path) -> tuple[float, int]:
    """Compare each length with the greatest; return the least SQNR and its length. Raises ModelError."""
    worst = float("inf"), lengths.values[-1]
    session = Session(read_program(path), 1)
    try:
        for each in found:
            rows, own, place = each.rows, each.answers, lengths.values.index(each.length)
            with torch.inference_mode():
                expected = prepared.model.module(torch.from_numpy(rows)).numpy()
            alone = np.zeros((len(rows), sum(field.size for field in lengths.outputs)), np.float32)
            lengths.put(own.reshape(len(own), -1), place, alone, np.arange(len(own)), lengths.ends(rows))
            expected = lengths.blanked(rows, expected.reshape(len(expected), -1))
            if not (apart := distance(expected, alone)) <= SAME:
                raise _depends(each.length, lengths.values[-1], apart)
            worst = min(worst, (sqnr_db(alone, session(rows).reshape(alone.shape)), each.length))
    finally:
        session.close()
    if worst[0] < _LEAST_DB and len(lengths.values) > 1:
        raise QuantizationError(f"at length {worst[1]} INT8 leaves an SQNR of {worst[0]:.1f} dB")
    return worst
