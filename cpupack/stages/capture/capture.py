"""The stage: export, raise, rewrite, prove the FP32 output unchanged, and give the calls the user's names."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from cpupack.artifacts import CapturedModel, FloatModel, Samples
from cpupack.errors import ModelError
from cpupack.graph.eager import has_quant_stubs
from cpupack.graph.proposals import steady_proposals
from cpupack.graph.rows import mark_rows
from cpupack.graph.trace import record_shapes
from cpupack.model.one_row import OneRow
from cpupack.model.packed_check import check_packed
from cpupack.model.user_code import describe_failure
from cpupack.progress import Progress
from cpupack.recipe import Recipe
from cpupack.runtime.open_inputs import names_of
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.tensor_spec import LARGEST_EXACT, TensorSpec
from cpupack.stages.capture.chosen_places import compute_all_places
from cpupack.stages.capture.chosen_rows import compute_all_rows
from cpupack.stages.capture.complex_parts import split_complex
from cpupack.stages.capture.export import Exported, export
from cpupack.stages.capture.leveling import level_inputs
from cpupack.stages.capture.naming import name_calls
from cpupack.stages.capture.parted_batches import compute_all_parts
from cpupack.stages.capture.proof import Proof
from cpupack.stages.capture.raising import (
    meets_all_samples,
    raise_graph,
    refuse_counts_of_samples,
    refuse_numbers,
    refuse_pairs_of_samples,
)
from cpupack.stages.capture.rewrites import REWRITES, Rewrite
from cpupack.stages.capture.rewrites.affine import merge_batch_norms, name_batch_norms
from cpupack.stages.capture.single_precision import in_single_precision
from cpupack.stages.capture.sorted_batches import keep_order
from cpupack.targets.engines import ENGINES

_EXAMPLES = 3
_NATIVE = frozenset(each.name for each in ENGINES.values() if each.quantizer == "native")
"""The engines that take a graph."""


def capture(model: FloatModel, samples: Samples | None, recipe: Recipe, progress: Progress) -> CapturedModel:
    """Return the model as a canonical graph whose FP32 output is the model's on some of the calibration ``samples``.

    A model for dynamic quantization stays as it is; the native engine gets its graph where it may be chosen. One with
    its own QuantStub stays as it is where it cannot be captured and may run on torch's engines. Raises ModelError with
    the user's line or layer where the model cannot be exported, answers differently each time or depends on the other
    samples of a batch; CalibrationError where the model does not run on the samples. A rewrite that is at fault is left
    out with a warning.
    """
    batch = examples(model, samples)
    places = model.signature.output_places() if model.signature.gives_rows else ()
    if isinstance(model.module, OneRow) and model.module.packs:
        check_packed(model.module, model.signature, batch)
    engines = {getattr(recipe.target, cpu).engine for cpu in recipe.target.cpu}
    if recipe.quantize.mode == "dynamic":
        if not model.channels_last and engines - _NATIVE - {"auto"}:
            raise ModelError(
                "the model's code runs as it is written, and on contiguous tensors alone: torch's INT8 layers and "
                "inputs are in channels_last",
                hint="write flatten or reshape in forward where it has view",
            )
        graph = _graph_beside(model, batch, samples, places, engines, progress)
        return CapturedModel(model.module, "dynamic", batch, places, graph)
    try:
        return CapturedModel(_captured(model, batch, samples, places, progress), "fx", batch, places)
    except ModelError as error:
        if not has_quant_stubs(model.module) or not model.channels_last or engines <= _NATIVE:
            raise
        progress.warn(
            "the model runs on torch's engines alone, as it is written and between its own QuantStub and DeQuantStub, "
            f"since it cannot be captured: {error.message}"
        )
        return CapturedModel(model.module, "eager", batch, places)


def _graph_beside(
    model: FloatModel,
    batch: torch.Tensor,
    samples: Samples | None,
    places: tuple[slice, ...],
    engines: set[str],
    progress: Progress,
) -> fx.GraphModule | None:
    """Return the graph for the native engine; None where no target may have it, or another can do without."""
    if not engines & {"auto", *_NATIVE}:
        return None
    try:
        return _captured(model, batch, samples, places, progress)
    except ModelError as error:
        if engines & _NATIVE:
            raise
        progress.warn(f"the native engine is out, since the model cannot be captured: {error.message}")
        return None


def _captured(
    model: FloatModel, batch: torch.Tensor, samples: Samples | None, places: tuple[slice, ...], progress: Progress
) -> fx.GraphModule:
    with steady_proposals():
        return _proven(model, batch, samples, places, progress)


def _proven(
    model: FloatModel, batch: torch.Tensor, samples: Samples | None, places: tuple[slice, ...], progress: Progress
) -> fx.GraphModule:
    given = export(model.module, batch[:2].clone())
    exported = in_single_precision(given, model.module, batch, places)
    if exported is not given:
        progress.note("steps in float64 are computed in float32, with the same answers to calibration samples")
    exported = split_complex(exported)
    exported = compute_all_places(compute_all_rows(compute_all_parts(keep_order(exported))))
    refuse_counts_of_samples(exported)
    proof = Proof(model.module, batch, exported.batch_lines, places)

    def level(graph: fx.GraphModule) -> bool:
        return level_inputs(graph, samples)

    level.__name__ = level_inputs.__name__  # for notes and errors
    named = model.sizes is not None and not model.sizes.is_image
    # A position of an array with names is no channel: it would be another norm for another size.
    usual = tuple(each for each in REWRITES if not (named and each is name_batch_norms))
    rewrites = _Rewrites(exported, (*usual, level, merge_batch_norms), batch[:2], progress)
    graph, used = rewrites.applied()
    proof.check_model()
    if not model.signature.takes_rows and (where := meets_all_samples(exported)):  # rows hold counts and places, too
        proof.check_far_apart(where)
    refuse_pairs_of_samples(exported)
    refuse_numbers(exported)  # most of them depend on the whole batch, which has been told
    while (wrong := proof.wrong_rewrite(graph, used, rewrites.only)) is not None:
        rewrites.leave_out(wrong.rewrite, f"it changes the model's answer by {wrong.difference:.3g}")
        graph, used = rewrites.applied()
    graph = name_calls(graph)
    record_shapes(graph, batch[:2])
    signature = model.signature
    largest = [(each.size, _largest(each)) for each in signature.inputs] if signature.takes_rows else []
    if largest and (names := names_of(signature.inputs)):
        largest.append((len(names), float(LARGEST_EXACT)))
    mark_rows(graph, takes_rows=signature.takes_rows, gives_rows=signature.gives_rows, largest=largest)
    calls = sum(node.op.startswith("call") for node in graph.graph.nodes)
    progress.note(f"{calls} calls captured; rewrites: {_listed(used)}")
    return graph


def _largest(spec: TensorSpec) -> float:
    """Return the number that no value of an input is beyond, where it is read as whole numbers."""
    if spec.vocabulary is not None and None not in spec.vocabularies:
        return float(max(spec.vocabulary - 1, 1))
    return {"bool": 1.0, "uint8": 255.0}.get(spec.dtype, float(LARGEST_EXACT))


def examples(model: FloatModel, samples: Samples | None) -> torch.Tensor:
    """Return three inputs, of the calibration samples where there are any, float32 ``(3, *input_shape)``."""
    if samples is None or not len(samples):
        if model.signature.takes_rows:
            return torch.from_numpy(random_rows(model.signature.inputs, np.random.default_rng(0), _EXAMPLES))
        generator = torch.Generator().manual_seed(0)
        return torch.randn(_EXAMPLES, *model.input_shape, generator=generator)
    some = samples.spread(_EXAMPLES).tensor(slice(None)).clone(memory_format=torch.contiguous_format)
    while len(some) < _EXAMPLES:
        some = torch.cat([some, some])[:_EXAMPLES]
    return some


@dataclass
class _Rewrites:
    """What makes a raised graph canonical. None is needed for a right answer, so one that is at fault is left out."""

    exported: Exported
    rewrites: tuple[Rewrite, ...]
    batch: torch.Tensor
    progress: Progress

    def applied(self) -> tuple[fx.GraphModule, tuple[Rewrite, ...]]:
        """Return the graph after the rewrites, and those of them that changed something."""
        while True:
            try:
                return self._applied(self.rewrites)
            except _FailedRewriteError as failed:
                self.leave_out(failed.rewrite, f"it fails: {describe_failure(failed.error)}")

    def only(self, rewrites: tuple[Rewrite, ...]) -> fx.GraphModule:
        """Return the graph after some of them, which are known to run."""
        return self._applied(rewrites)[0]

    def leave_out(self, rewrite: Rewrite, why: str) -> None:
        self.progress.warn(
            f"the rewrite {rewrite.__name__} is left out, which may cost speed: {why}. This is a fault of cpupack, "
            "please report the model"
        )
        self.rewrites = tuple(each for each in self.rewrites if each is not rewrite)

    def _applied(self, rewrites: tuple[Rewrite, ...]) -> tuple[fx.GraphModule, tuple[Rewrite, ...]]:
        graph = raise_graph(self.exported)
        record_shapes(graph, self.batch)
        used = []
        for rewrite in rewrites:
            try:
                if not rewrite(graph):
                    continue
                graph.graph.eliminate_dead_code()
                graph.graph.lint()
                with contextlib.redirect_stderr(io.StringIO()):  # FX prints the line of its own code that fails
                    record_shapes(graph, self.batch)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
                raise _FailedRewriteError(rewrite, error) from error
            used.append(rewrite)
        graph.recompile()
        graph.delete_all_unused_submodules()
        return graph, tuple(used)


class _FailedRewriteError(Exception):
    """A rewrite that raised ``error``, or left a graph that does."""

    def __init__(self, rewrite: Rewrite, error: Exception) -> None:
        super().__init__(rewrite.__name__)
        self.rewrite, self.error = rewrite, error


def _listed(used: tuple[Rewrite, ...]) -> str:
    return ", ".join(dict.fromkeys(rewrite.__name__ for rewrite in used)) or "none"
