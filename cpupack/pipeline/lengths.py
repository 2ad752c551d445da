"""Programs for several lengths: the winner of a contest is lowered again for each shorter length of a sample.

All have the weights and the choices of the winner. The least length is captured; the graphs between it and the
greatest one are derived from these two, and compared with the model; where that fails, a length is captured too. Each
is compared with the greatest, in FP32 and in INT8: a model whose answer depends on its padding is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import fx

from cpupack.accuracy import FloatArray, sqnr_db
from cpupack.artifacts import CalibratedModel, Contender, FloatModel, FusedModel, QuantizedModel, Reference, Samples
from cpupack.errors import ModelError, QuantizationError, RecipeError
from cpupack.graph.native_model import NativeModel
from cpupack.graph.substitution import NotDerivedError, derived
from cpupack.graph.trace import record_shapes
from cpupack.model.one_row import OneRow
from cpupack.model.signature import fit_signature
from cpupack.pipeline.contest import Settled, judged
from cpupack.pipeline.corrections import Corrections
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress, SilentProgress
from cpupack.quantized_engine import engine
from cpupack.recipe import Recipe
from cpupack.runtime.engine.lengths import Field, Lengths, fields, ladder
from cpupack.runtime.engine.program import Session, read_program
from cpupack.runtime.signature import Signature
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.lengths import join_programs
from cpupack.stages.script import script
from cpupack.stages.verify import choose, compare

_COMPARED = 4
_SAME = 1e-3
"""Of the largest output: what FP32 outputs with and without padding may differ by. The proof of capture has it too."""
_LEAST_DB = 6.0
"""SQNR of a length's INT8 outputs beside FP32, below which something is wrong with its program."""


def with_lengths(settled: Settled, corrections: Corrections, work: Path, progress: Progress) -> Settled:
    """Return the settled contest with a winner that has a program for each length of the recipe.

    The gates judge these programs again, on all samples. Raises ModelError where the model's answer depends on its
    padding, or where it cannot be captured at a length, and VerificationError where a gate does not hold.
    """
    recipe, signature = settled.prepared.loaded.recipe, settled.prepared.model.signature
    if all(each.pad is None for each in signature.inputs):
        return settled
    asked = recipe.lengths is not None or any(each.pad is not None for each in recipe.input_specs)
    module = settled.winner.quantized.module
    if not isinstance(module, NativeModel) or settled.winner.scripted.torch_reason is not None:
        progress.warn(
            "inputs have a pad, but the native engine does not run the whole model: padding is computed "
            f"({settled.winner.scripted.torch_reason})"
        )
        return settled
    with progress.stage("lengths"):
        try:
            return dataclasses.replace(settled, winner=_lengthened(settled, module, corrections, work, progress))
        except (ModelError, QuantizationError) as error:
            if asked:
                raise
            progress.warn(f"texts are padded to the greatest length, and padding is computed: {error}")
            return settled


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
    padded = {each.name: each.shape[0] for each in prepared.model.signature.inputs if each.pad is not None}
    (longest,) = set(padded.values())
    asked = recipe.lengths.values if recipe.lengths is not None else "auto"
    values = ladder(longest) if asked == "auto" else tuple(sorted({*asked, longest}))
    if values[-1] > longest:
        raise RecipeError(f"[lengths] values: {values[-1]} is more than {longest}, the greatest length of the inputs")
    target = winner.quantized.target
    corrected = corrections.corrected(prepared, recipe.quantize, target, SilentProgress())
    programs, found = [], list[_AtLength]()
    for number, value in enumerate(values[:-1]):
        own = recipe.at_length(padded, value)
        found.append(_at(prepared, own, value, longest, corrected, found[:1]))
        quantized = quantize(found[-1].calibrated, found[-1].model.module, own, target, frozenset())
        programs.append(_program_of(quantized, value))
        progress.step(number + 1, len(values) - 1, "lengths")
    programs.append(module.get_buffer("program").numpy().tobytes())
    block, offsets = join_programs(programs)
    whole = prepared.model.signature
    outputs = _outputs(whole, [each.model.signature for each in found], values)
    lengths = Lengths(values, tuple(offsets), _inputs(whole), outputs)
    sample = prepared.reference.samples.spread(1).tensor(slice(None))
    lengthened = dataclasses.replace(winner.quantized, module=module.with_lengths(block, lengths))
    scripted = script(lengthened, prepared.model.input_shape, winner.scripted.path, sample)
    with engine(target.engine):
        worst = _compared(prepared, found, lengths, scripted.path)
    checked = _judged(prepared, winner, compare(lengthened, scripted, _blanked(prepared.reference, lengths), work))
    more = (len(block) - len(programs[-1])) / 2**20
    progress.note(
        f"{len(values)} lengths from {values[0]} to {values[-1]} share their weights (+{more:.1f} MB); the least SQNR "
        f"of a length is {worst[0]:.1f} dB, at {worst[1]}"
    )
    return checked


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


@dataclass(frozen=True)
class _AtLength:
    """The model for one length, with the weights and statistics of the greatest one.

    ``rows`` are some samples of that length, with padding up to the greatest; ``answers`` is what FP32 says to them.
    """

    length: int
    model: FloatModel
    calibrated: CalibratedModel
    rows: FloatArray
    answers: FloatArray

    @property
    def graph(self) -> fx.GraphModule:
        """The captured graph."""
        graph = self.calibrated.fused.canonical
        assert graph is not None  # the native engine runs captured models alone
        return graph


def _at(
    prepared: Prepared,
    recipe: Recipe,
    length: int,
    longest: int,
    corrected: CalibratedModel,
    anchor: Sequence[_AtLength],
) -> _AtLength:
    """Return the model for a length: derived from the graphs of the greatest one and an ``anchor``, else captured."""
    model = _model_at(prepared, recipe)
    inputs = _inputs(prepared.model.signature)
    rows = _shortened(prepared.reference.samples.spread(_COMPARED), inputs, length)
    cut = _cut(rows, inputs, length)
    with torch.inference_mode():
        answers = model.module(torch.from_numpy(cut)).numpy()
    fused = None
    if anchor:
        fused = _derived(corrected.fused, anchor[0], (length, longest), cut, answers)
    if fused is None:
        fused = _captured(prepared, model, recipe, length, corrected)
    return _AtLength(length, model, dataclasses.replace(corrected, fused=fused), rows, answers)


def _derived(
    whole: FusedModel, anchor: _AtLength, lengths: tuple[int, int], rows: FloatArray, answers: FloatArray
) -> FusedModel | None:
    """Return the fused graph of a length without capturing it, None where that is not the model."""
    length, longest = lengths
    assert whole.canonical is not None
    batch = torch.from_numpy(rows)
    try:
        graph = derived(anchor.graph, whole.canonical, (anchor.length, longest), length)
        with contextlib.redirect_stderr(io.StringIO()):  # FX prints the line of its own code that fails
            record_shapes(graph, batch[:2])
            with torch.inference_mode():
                found = graph(batch).numpy()
    except (NotDerivedError, RuntimeError, TypeError, ValueError, LookupError):
        return None
    if found.shape != answers.shape or not _apart(answers, found) <= _SAME:
        return None
    if isinstance(whole.module, fx.GraphModule):
        return dataclasses.replace(whole, module=graph)
    return dataclasses.replace(whole, graph=graph)


def _captured(
    prepared: Prepared, model: FloatModel, recipe: Recipe, length: int, corrected: CalibratedModel
) -> FusedModel:
    """Capture and fuse the model for a length, with the weights of the greatest one."""
    silent = SilentProgress()
    samples = prepared.reference.samples if prepared.calibration is None else prepared.calibration
    some = samples.spread(_COMPARED)
    cut = dataclasses.replace(some, data=_cut(some.data, _inputs(prepared.model.signature), length))
    fused = fuse(capture(model, cut, recipe, silent), recipe, silent)
    graph, whole_graph = fused.canonical, corrected.fused.canonical
    assert graph is not None
    assert whole_graph is not None  # the native engine runs captured models alone
    known = dict(whole_graph.named_parameters())
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if name in known and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
    return fused


def _model_at(prepared: Prepared, recipe: Recipe) -> FloatModel:
    """Return the user's model with the inputs of another length."""
    user = prepared.model.module
    assert isinstance(user, OneRow)  # inputs that have a length are rows
    fitted = fit_signature(user.user, recipe.model.source, recipe, SilentProgress())
    signature = Signature(
        tuple(
            dataclasses.replace(spec, vocabulary=whole.vocabulary, pad=whole.pad)
            for spec, whole in zip(fitted.signature.inputs, prepared.model.signature.inputs, strict=True)
        ),
        fitted.signature.outputs,
    )
    return dataclasses.replace(prepared.model, module=fitted.module.eval(), signature=signature)


def _program_of(quantized: QuantizedModel, length: int) -> bytes:
    module = quantized.module
    if not isinstance(module, NativeModel) or module.head is not None or module.tail is not None:
        names = ", ".join(fact.name for fact in quantized.layers if fact.kernel == "aten")
        raise QuantizationError(
            f"the native engine does not run the whole model at length {length}: {names or 'it has parts of torch'}",
            hint="leave that length out of [lengths] values",
        )
    return module.get_buffer("program").numpy().tobytes()


def _inputs(signature: Signature) -> tuple[Field, ...]:
    return fields(
        [each.shape for each in signature.inputs],
        [None if each.pad is None else 0 for each in signature.inputs],
        [each.pad or 0.0 for each in signature.inputs],
    )


def _outputs(whole: Signature, others: list[Signature], values: tuple[int, ...]) -> tuple[Field, ...]:
    """Return the outputs with the dimension that changes with the length. Raises ModelError for another change."""
    axes: list[int | None] = []
    for number, output in enumerate(whole.outputs):
        found: set[int] = set()
        for signature, value in zip(others, values, strict=False):
            shape = signature.outputs[number].shape
            differ = [axis for axis, sizes in enumerate(zip(shape, output.shape, strict=False)) if len(set(sizes)) > 1]
            wrong = len(shape) != len(output.shape) or any(shape[axis] != value for axis in differ)
            if wrong or len(differ) > 1:
                raise ModelError(
                    f'the output "{output.name}" has the shape {shape} at length {value}, and {output.shape} at '
                    f"{values[-1]}: only one dimension may change, to the length",
                    hint="drop the output ([[output]] drop = true), or leave the pad out of the inputs",
                )
            found |= set(differ)
        if len(found) > 1:
            raise ModelError(f'two dimensions of the output "{output.name}" change with the length')
        axes.append(found.pop() if found else None)
    return fields([each.shape for each in whole.outputs], axes, [0.0] * len(axes))


def _cut(rows: np.ndarray, inputs: tuple[Field, ...], length: int) -> np.ndarray:
    """Return rows of the greatest length as those of another, without what is beyond it."""
    parts = [
        (each.of(rows) if each.axis is None else each.of(rows)[:, :length]).reshape(len(rows), -1) for each in inputs
    ]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _compared(prepared: Prepared, found: Sequence[_AtLength], lengths: Lengths, path: Path) -> tuple[float, int]:
    """Compare each length with the greatest; return the least SQNR and its length. Raises ModelError."""
    worst = float("inf"), lengths.values[-1]
    session = Session(read_program(path), 1)
    try:
        for place, each in enumerate(found):
            rows, own = each.rows, each.answers
            with torch.inference_mode():
                expected = prepared.model.module(torch.from_numpy(rows)).numpy()
            alone = np.zeros((len(rows), sum(field.size for field in lengths.outputs)), np.float32)
            lengths.put(own.reshape(len(own), -1), place, alone, np.arange(len(own)), lengths.ends(rows))
            expected = lengths.blanked(rows, expected.reshape(len(expected), -1))
            if not (apart := _apart(expected, alone)) <= _SAME:
                raise ModelError(
                    f"the model's answer depends on padding: a sample of length {each.length} gives another answer "
                    f"with padding up to {lengths.values[-1]} (they differ by {apart:.2g} of the largest output)",
                    hint="hide padding in the model by a mask, check the pad of each [[input]], or leave the pad out",
                )
            worst = min(worst, (sqnr_db(alone, session(rows).reshape(alone.shape)), each.length))
    finally:
        session.close()
    if worst[0] < _LEAST_DB and len(lengths.values) > 1:
        raise QuantizationError(f"at length {worst[1]} INT8 leaves an SQNR of {worst[0]:.1f} dB")
    return worst


def _apart(expected: FloatArray, found: FloatArray) -> float:
    """Return how far two answers are apart, as a share of the largest output."""
    return float(np.abs(expected - found).max()) / (float(np.abs(expected).max()) or 1.0)


def _shortened(samples: Samples, inputs: tuple[Field, ...], length: int) -> np.ndarray:
    """Return samples as rows that have padding from ``length`` on."""
    rows = np.array(samples.data, np.float32)
    for each in inputs:
        if each.axis is not None:
            own = each.of(rows).copy()
            own[:, length:] = each.pad
            rows[:, each.first : each.first + each.size] = own.reshape(len(rows), -1)
    return rows
