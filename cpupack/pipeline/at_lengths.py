"""The model at shorter lengths of a sample: its graph, with the weights of the greatest length, and its program."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from cpupack.accuracy import FloatArray
from cpupack.artifacts import CalibratedModel, FloatModel, FusedModel, QuantizedModel, Samples
from cpupack.errors import ModelError, QuantizationError
from cpupack.graph.native_model import NativeModel
from cpupack.graph.substitution import NotDerivedError, derived
from cpupack.graph.trace import record_shapes
from cpupack.model.one_row import OneRow
from cpupack.model.signature import fit_signature
from cpupack.pipeline.again import capture_again
from cpupack.pipeline.prepare import Prepared
from cpupack.progress import Progress, SilentProgress
from cpupack.recipe import Recipe
from cpupack.runtime.engine.lengths import Field, fields
from cpupack.runtime.signature import Signature
from cpupack.stages.quantize import quantize
from cpupack.targets import Target

COMPARED = 4
"""Samples of each length that are compared."""
SAME = 1e-3
"""Of the largest output: what FP32 outputs with and without padding may differ by. The proof of capture has it too."""
_ROW = 16
"""A stored row of values of pairs of positions has a multiple of so many."""


class ShorterLengths:
    """The model at lengths below the greatest one, ``longest``. ``found`` has those that were lowered.

    ``programs`` has the program of each of them and of ``longest``.
    """

    def __init__(self, prepared: Prepared, corrected: CalibratedModel, target: Target, whole: bytes) -> None:
        self._prepared, self._corrected, self._target = prepared, corrected, target
        self._padded = {each.name: each.shape[0] for each in prepared.model.signature.inputs if each.pad is not None}
        (self.longest,) = set(self._padded.values())
        self.programs = {self.longest: whole}
        self.found: list[AtLength] = []

    @property
    def signature(self) -> Signature:
        """The signature of the greatest length."""
        return self._prepared.model.signature

    def keep(self, values: Sequence[int]) -> None:
        """Leave other lengths out of ``found``."""
        self.found = sorted((each for each in self.found if each.length in values), key=lambda each: each.length)

    def runs(self, length: int) -> bool:
        """Return whether the model runs at a length: a convolution needs as many positions as its kernel has."""
        try:
            _model_at(self._prepared, self._prepared.loaded.recipe.at_length(self._padded, length))
        except ModelError:
            return False
        return True

    def lower(self, values: Sequence[int], progress: Progress) -> None:
        """Lower the model for lengths that are not lowered yet. Raises ModelError or QuantizationError."""
        wanted = [each for each in values if each not in self.programs]
        for number, value in enumerate(wanted):
            own = self._prepared.loaded.recipe.at_length(self._padded, value)
            at = _at(self._prepared, own, value, self.longest, self._corrected, self.found[:1])
            self.programs[value] = self._lowered(at.calibrated, at.model, own, value)
            self.found.append(at)
            progress.step(number + 1, len(wanted), "lengths")

    def with_shared_pairs(self) -> dict[int, bytes]:
        """Return the programs of all lengths in which they can share constants of pairs of positions.

        Raises QuantizationError.
        """
        recipe, pitch = self._prepared.loaded.recipe, (self.longest // _ROW + 1) * _ROW
        whole = dataclasses.replace(self._corrected, grid=(self.longest, pitch))
        programs = {self.longest: self._lowered(whole, self._prepared.model, recipe, self.longest)}
        for each in self.found:
            calibrated = dataclasses.replace(each.calibrated, grid=(each.length, pitch))
            own = recipe.at_length(self._padded, each.length)
            programs[each.length] = self._lowered(calibrated, each.model, own, each.length)
        return programs

    def _lowered(self, calibrated: CalibratedModel, model: FloatModel, recipe: Recipe, length: int) -> bytes:
        return _program_of(quantize(calibrated, model.module, recipe, self._target, frozenset()), length)


def apart_by_padding(prepared: Prepared, whole: Signature, length: int, *, left: bool) -> float:
    """Return how far FP32's answers to samples of a length are apart with padding and without it.

    ``whole`` has the pads of the inputs; with ``left`` padding is before the sample. The distance is a share of the
    largest value of an output, the greatest of all outputs, each where both have positions. Raises ModelError where
    the model does not run at that length.
    """
    padded = {each.name: each.shape[0] for each in whole.inputs if each.pad is not None}
    model = _model_at(prepared, prepared.loaded.recipe.at_length(padded, length))
    inputs = inputs_of(whole)
    rows = shortened(prepared.reference.samples.spread(COMPARED), inputs, length, left=left)
    with torch.inference_mode():
        with_padding = whole.split(prepared.model.module(torch.from_numpy(rows)).numpy())
        alone = model.signature.split(model.module(torch.from_numpy(_cut(rows, inputs, length, left=left))).numpy())
    apart = []
    for name, own in alone.items():
        sizes = zip(own.shape, with_padding[name].shape, strict=True)
        both = tuple(slice(size - own_size if left else 0, size if left else own_size) for own_size, size in sizes)
        apart.append(distance(with_padding[name][both], own))
    return float(np.max(apart))  # NaN, where there is one


@dataclass(frozen=True)
class AtLength:
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
    anchor: Sequence[AtLength],
) -> AtLength:
    """Return the model for a length: derived from the graphs of the greatest one and an ``anchor``, else captured."""
    model = _model_at(prepared, recipe)
    inputs = inputs_of(prepared.model.signature)
    rows = shortened(prepared.reference.samples.spread(COMPARED), inputs, length)
    cut = _cut(rows, inputs, length)
    with torch.inference_mode():
        answers = model.module(torch.from_numpy(cut)).numpy()
    fused = None
    if anchor:
        fused = _derived(corrected.fused, anchor[0], (length, longest), cut, answers)
    if fused is None:
        fused = _captured(prepared, model, recipe, length, corrected)
    return AtLength(length, model, dataclasses.replace(corrected, fused=fused), rows, answers)


def _derived(
    whole: FusedModel, anchor: AtLength, lengths: tuple[int, int], rows: FloatArray, answers: FloatArray
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
    if found.shape != answers.shape or not distance(answers, found) <= SAME:
        return None
    if isinstance(whole.module, fx.GraphModule):
        return dataclasses.replace(whole, module=graph)
    return dataclasses.replace(whole, graph=graph)


def _captured(
    prepared: Prepared, model: FloatModel, recipe: Recipe, length: int, corrected: CalibratedModel
) -> FusedModel:
    """Capture and fuse the model for a length, with the weights of the greatest one."""
    samples = prepared.reference.samples if prepared.calibration is None else prepared.calibration
    some = samples.spread(COMPARED)
    cut = dataclasses.replace(some, data=_cut(some.data, inputs_of(prepared.model.signature), length))
    return capture_again(model, cut, recipe, corrected)


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


def inputs_of(signature: Signature) -> tuple[Field, ...]:
    return fields(
        [each.shape for each in signature.inputs],
        [None if each.pad is None else 0 for each in signature.inputs],
        [each.pad or 0.0 for each in signature.inputs],
    )


def _cut(rows: np.ndarray, inputs: tuple[Field, ...], length: int, *, left: bool = False) -> np.ndarray:
    """Return rows of the greatest length as those of another, without what is beyond it, or before it."""
    kept = slice(-length, None) if left else slice(length)
    parts = [(each.of(rows) if each.axis is None else each.of(rows)[:, kept]).reshape(len(rows), -1) for each in inputs]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def distance(expected: FloatArray, found: FloatArray) -> float:
    """Return how far two answers are apart, as a share of the largest output."""
    return float(np.abs(expected - found).max()) / (float(np.abs(expected).max()) or 1.0)


def shortened(samples: Samples, inputs: tuple[Field, ...], length: int, *, left: bool = False) -> np.ndarray:
    """Return samples as rows that have padding from ``length`` on, or before their last ``length`` positions."""
    padding = slice(-length) if left else slice(length, None)
    rows = np.array(samples.data, np.float32)
    for each in inputs:
        if each.axis is not None:
            own = each.of(rows).copy()
            own[:, padding] = each.pad
            rows[:, each.first : each.first + each.size] = own.reshape(len(rows), -1)
    return rows
