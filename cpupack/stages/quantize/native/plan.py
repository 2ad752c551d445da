"""Decides, before anything is lowered, which calls of a graph stay FP32 and which linear layers go by rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx

from cpupack.artifacts import CalibratedModel
from cpupack.errors import QuantizationError
from cpupack.graph.choices import choosing_calls
from cpupack.graph.decoding import decoding_calls
from cpupack.graph.divisors import divisors
from cpupack.graph.fourier import spectral_calls
from cpupack.graph.hiding import hiding_calls
from cpupack.graph.infinities import infinite_calls
from cpupack.graph.names import core, is_named
from cpupack.graph.phases import large_angles
from cpupack.graph.pieces import pieces
from cpupack.graph.proposals import is_between_stages
from cpupack.graph.roots import under_roots
from cpupack.graph.rows import laying_calls
from cpupack.graph.tags import LEVELS
from cpupack.graph.vocabulary import NORMALIZATIONS, SOFTMAXES
from cpupack.graph.waveforms import normalized_waveforms
from cpupack.recipe import Quantize
from cpupack.stages.quantize import reasons
from cpupack.stages.quantize.native.batches import bring_batches_forward
from cpupack.stages.quantize.native.beside import calls_beside_layers
from cpupack.stages.quantize.native.calls import Calls
from cpupack.stages.quantize.native.filters import has_weights
from cpupack.stages.quantize.native.masks_first import bring_masks_forward
from cpupack.stages.quantize.native.measured import Forms, forms_of
from cpupack.stages.quantize.native.recurrent import is_recurrent
from cpupack.stages.quantize.native.rows import is_static, layers_by_rows, small_heads
from cpupack.stages.quantize.native.scores import order_attention
from cpupack.stages.quantize.native.split import split
from cpupack.stages.quantize.native.steep import steep_functions

_FLOAT_MODULES = (*NORMALIZATIONS, *SOFTMAXES)
_FLOAT_CALLS = (torch.matmul, torch.div, F.scaled_dot_product_attention)


@dataclass
class Plan:
    """A graph that is ready to be lowered: ``kept`` are the calls in FP32 with the reason; torch runs ``beyond``.

    ``by_rows`` are those of ``kept`` that are INT8 layers which take and give float32 values. ``forms`` says what the
    linear layers lose so, and with one range.
    """

    calls: Calls
    kept: dict[fx.Node, str]
    beyond: set[fx.Node]
    by_rows: list[fx.Node]
    forms: dict[str, Forms]


def plan_of(calibrated: CalibratedModel, recipe: Quantize, input_shape: tuple[int, ...]) -> Plan:
    """Return the plan of a copy of a fused graph. Raises QuantizationError where it was not captured."""
    if calibrated.fused.canonical is None:
        raise QuantizationError("the native engine only runs models that could be captured")
    graph = copy.deepcopy(calibrated.fused.canonical)
    bring_batches_forward(graph, input_shape)
    order_attention(graph)
    calls = Calls(graph, input_shape)
    bring_masks_forward(graph)
    nodes = calls.graph.graph.nodes
    skipped = [node for node in nodes if node.op.startswith("call") and is_named(node, recipe.skip)]
    # A program runs sample by sample: these are torch's, in FP32.
    apart, of_other_types = set(calls.across_samples()), set(calls.of_other_types())
    beyond = apart | of_other_types
    magnitude = _magnitudes(calibrated, calls)
    kept: dict[fx.Node, str] = {}
    for reason, found in (  # the first that holds is told
        (reasons.SKIPPED, skipped),
        (reasons.NO_BATCH, apart),
        (reasons.NO_FLOATS, of_other_types),
        (reasons.LEVELS, [node for node in nodes if node.meta.get(LEVELS)]),
        (reasons.DIVISOR, divisors(calls.graph, of_quotients_alone=True)),
        (reasons.SPECTRUM, spectral_calls(calls.graph)),
        (reasons.WAVEFORM, normalized_waveforms(calls.graph, calls.rearranges)),
        (reasons.ROOT, under_roots(calls.graph)),
        (reasons.ROWS, laying_calls(calls.graph)),
        (reasons.DECODES, decoding_calls(calls.graph, magnitude)),
        (reasons.PIECES, pieces(calls.graph)),
        (reasons.ANGLES, large_angles(calls.graph, magnitude)),
        (reasons.STEEP, steep_functions(calls, calibrated.stats)),
        (
            reasons.CHOOSES,
            choosing_calls(calls.graph, lambda node: has_weights(calls, node) or is_recurrent(calls, node)),
        ),
        (reasons.HIDES, hiding_calls(calls.graph)),
        (reasons.INFINITE, infinite_calls(calls.graph, _infinities(calibrated, calls))),
        (reasons.BOXES, [node for node in nodes if is_between_stages(node)]),
        (reasons.NO_FLOATS, calls.beyond_floats()),
        (reasons.BESIDE, calls_beside_layers(calls)),
    ):
        kept = dict.fromkeys(found, reason) | kept
    kept |= dict.fromkeys(small_heads(calls, recipe, kept), reasons.FEW_PRODUCTS)
    forms = forms_of(calls, calibrated, recipe)
    by_rows = layers_by_rows(calls, recipe, kept, forms, {node for node in nodes if _is_float(calls, node)})
    kept |= dict.fromkeys(by_rows, reasons.BY_ROWS)
    if recipe.mode == "dynamic":
        kept |= {node: reasons.DYNAMIC for node in nodes if node not in kept and is_static(calls, node)}
    return Plan(calls, kept, beyond, by_rows, forms)


def _magnitudes(calibrated: CalibratedModel, calls: Calls) -> Callable[[fx.Node], float | None]:
    """Return what tells the largest absolute value of a call; a call that only moves values has its operand's."""

    def magnitude(node: fx.Node) -> float | None:
        stats = calibrated.stats.get(calls.observed(node, calibrated.stats).name)
        return None if stats is None else max(-stats.minimum, stats.maximum)

    return magnitude


def _infinities(calibrated: CalibratedModel, calls: Calls) -> Callable[[fx.Node], bool]:
    """Return what tells whether calibration has seen values of a call that are not finite."""

    def is_infinite(node: fx.Node) -> bool:
        stats = calibrated.stats.get(calls.observed(node, calibrated.stats).name)
        return stats is not None and stats.infinite

    return is_infinite


def rounded_by_range(calibrated: CalibratedModel, recipe: Quantize, input_shape: tuple[int, ...]) -> frozenset[str]:
    """Return the calls (and the input) of which INT8 layers read codes in a range from calibration, by name.

    All others stay float32, or get a scale for each row while the program runs. Raises QuantizationError as lowering
    does.
    """
    plan = plan_of(calibrated, recipe, input_shape)
    nodes = plan.calls.graph.graph.nodes
    kept = dict.fromkeys((node for node in nodes if _is_float(plan.calls, node)), "") | plan.kept
    _, reasons = split(plan.calls, kept, plan.beyond, plan.by_rows)
    coded = [
        node
        for node in nodes
        if node.op.startswith("call") and node not in reasons and not plan.calls.is_constant(node)
        if not is_recurrent(plan.calls, node)  # it reads float32 values, and rounds each step by itself
    ]
    return frozenset(each.name for node in coded for each in node.all_input_nodes)


def _is_float(calls: Calls, node: fx.Node) -> bool:
    """Whether a call has no INT8 kernel whatever is around it."""
    module = calls.module(node)
    return node.target in _FLOAT_CALLS or (module is not None and isinstance(core(module), _FLOAT_MODULES))
