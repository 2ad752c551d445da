"""Calls that torch cannot run in INT8, or runs wrongly: which they are, why, and how they are hidden from torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.artifacts import CalibratedModel
from cpupack.graph.decoding import decoding_calls
from cpupack.graph.fourier import spectral_calls
from cpupack.graph.hiding import hiding_calls
from cpupack.graph.infinities import infinite_calls
from cpupack.graph.names import calls
from cpupack.graph.phases import large_angles
from cpupack.graph.pieces import pieces
from cpupack.graph.rows import laying_calls
from cpupack.graph.tags import LEVELS
from cpupack.graph.vocabulary import ADAPTIVE_POOLS, AVERAGE_POOLS, MAX_POOLS, SHAPES
from cpupack.stages.quantize import reasons
from cpupack.stages.quantize.observers import STATS_NAME
from cpupack.stages.quantize.qconfig import FIXED_RANGES, wrong_types

_SHARES_RANGE = (
    *SHAPES, *MAX_POOLS, *AVERAGE_POOLS, *ADAPTIVE_POOLS, nn.ReLU, torch.mean, F.interpolate, F.pad,
)  # fmt: skip
"""What gives values that may keep their operand's scale and zero point."""
_JOIN = (torch.add, torch.mul, torch.cat, torch.matmul)
"""What may have truth values and whole numbers beside floats, as a mask that is multiplied."""
_POOLS_OF_QNNPACK = (nn.AvgPool2d, nn.MaxPool2d, nn.MaxPool3d, nn.Softmax)
_INTERPOLATED = ("nearest", "bilinear")
"""The modes of ``F.interpolate`` that torch has in INT8."""


class InFloat(nn.Module):
    """A call that stays FP32. It is hidden from torch's lowering, which uses the type and ignores a missing qconfig.

    ``reason`` says why, in the words of the report.
    """

    def __init__(self, call: Callable[..., torch.Tensor], reason: str) -> None:
        super().__init__()
        self.call = call
        self.reason = reason

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.call(*args, **kwargs)


def keep_float(graph_module: fx.GraphModule, reason_of: Callable[[fx.Node], str | None]) -> None:
    """Hide every call for which ``reason_of`` has a reason, in place, and each ``expand``."""
    for number, node in enumerate(list(graph_module.graph.nodes)):
        reason = reason_of(node) if node.op in {"call_module", "call_function"} else None
        if node.op == "call_method" and node.target == "expand":
            # of a constant by the batch size, which a second trace cannot call
            _hide(graph_module, node, torch.Tensor.expand, number, reasons.MOVES_CONSTANT)
        elif reason is None:
            continue
        elif node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            graph_module.add_submodule(str(node.target), InFloat(module, reason))
        else:
            _hide(graph_module, node, node.target, number, reason)
    graph_module.recompile()


def _hide(graph_module: fx.GraphModule, node: fx.Node, call: Any, number: int, reason: str) -> None:
    name = f"in_float_{number}"
    graph_module.add_submodule(name, InFloat(call, reason))
    node.op, node.target = "call_module", name


def reasons_in_float(
    graph: fx.GraphModule, calibrated: CalibratedModel, engine: str
) -> Callable[[fx.Node], str | None]:
    """Return what says why a call of the graph stays FP32 whatever the recipe says; None where it need not."""
    types = wrong_types(engine)
    laying, hiding, spectral = laying_calls(graph), hiding_calls(graph), spectral_calls(graph)
    infinite = infinite_calls(graph, _infinities(calibrated))
    magnitude = _magnitudes(calibrated)
    decoding, angles = decoding_calls(graph, magnitude), large_angles(graph, magnitude)
    splines = pieces(graph)
    wrong = (_is_wrong_arithmetic(engine), _is_wrong_pooling(graph, engine), _is_fixed_in_cat(graph))

    def has_floats(node: fx.Node) -> bool:
        while node.meta[STATS_NAME] not in calibrated.stats and node.target in SHAPES:
            node = node.all_input_nodes[0]
        return node.op == "get_attr" or node.meta[STATS_NAME] in calibrated.stats

    def has_no_floats(node: fx.Node) -> bool:
        if node.target in _JOIN:
            return not all(map(has_floats, node.all_input_nodes))
        moved = node.target in SHAPES and node.meta.get("shape") is not None
        return moved and node.meta[STATS_NAME] not in calibrated.stats

    def reason(node: fx.Node) -> str | None:
        if node in laying:
            return reasons.ROWS
        if node in decoding:
            return reasons.DECODES
        if node in splines:
            return reasons.PIECES
        if node in angles:
            return reasons.ANGLES
        if node in hiding:
            return reasons.HIDES
        if node in infinite:
            return reasons.INFINITE
        if node.meta.get(LEVELS):
            return reasons.LEVELS
        if node in spectral:
            return reasons.SPECTRUM
        if has_no_floats(node):
            return reasons.NO_FLOATS
        if _is_interpolated_otherwise(node):
            return reasons.INTERPOLATION
        called = type(graph.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        return reasons.wrong_on(engine) if called in types or any(each(node) for each in wrong) else None

    return reason


def _infinities(calibrated: CalibratedModel) -> Callable[[fx.Node], bool]:
    """Return what tells whether calibration has seen values of a call that are not finite."""

    def is_infinite(node: fx.Node) -> bool:
        while node.meta[STATS_NAME] not in calibrated.stats and node.target in SHAPES:
            node = node.all_input_nodes[0]
        stats = calibrated.stats.get(node.meta[STATS_NAME])
        return stats is not None and stats.infinite

    return is_infinite


def _magnitudes(calibrated: CalibratedModel) -> Callable[[fx.Node], float | None]:
    """Return what tells the largest absolute value of a call; a call that only moves values has its operand's."""

    def magnitude(node: fx.Node) -> float | None:
        while node.meta[STATS_NAME] not in calibrated.stats and node.target in SHAPES:
            node = node.all_input_nodes[0]
        stats = calibrated.stats.get(node.meta[STATS_NAME])
        return None if stats is None else max(-stats.minimum, stats.maximum)

    return magnitude


def _is_wrong_arithmetic(engine: str) -> Callable[[fx.Node], bool]:
    """Return a function that finds sums and products that torch's INT8 computes wrongly.

    With a number, the result has the range of its operand, so x * 100 saturates. qnnpack accepts only equal shapes, so
    a constant of another shape is wrong too.
    """

    def wrong(node: fx.Node) -> bool:
        if node.target not in {torch.add, torch.mul}:
            return False
        if any(isinstance(each, int | float) for each in node.args):
            return True
        shapes = {each.meta.get("shape") for each in node.all_input_nodes}
        constant = any(each.op == "get_attr" for each in node.all_input_nodes)
        return engine == "qnnpack" and constant and len(shapes) > 1

    return wrong


def _is_wrong_pooling(graph_module: fx.GraphModule, engine: str) -> Callable[[fx.Node], bool]:
    """Return what tells poolings and softmaxes that torch's INT8 gets wrong.

    qnnpack's averages count the padding and divide by the size of the kernel, whatever the module says, and its
    maximum takes neighbours without dilation. Its softmax over another dimension than the last one may raise,
    and it has no maximum of volumes.
    """

    def wrong(node: fx.Node) -> bool:
        if engine != "qnnpack" or not calls(graph_module, node, _POOLS_OF_QNNPACK):
            return False
        pool = graph_module.get_submodule(str(node.target))
        if isinstance(pool, nn.MaxPool3d):
            return True
        if isinstance(pool, nn.Softmax):
            return pool.dim != -1
        if isinstance(pool, nn.MaxPool2d):
            return any(step != 1 for step in _pair(pool.dilation))
        assert isinstance(pool, nn.AvgPool2d)
        return pool.divisor_override is not None or (any(_pair(pool.padding)) and not pool.count_include_pad)

    return wrong


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _is_fixed_in_cat(graph_module: fx.GraphModule) -> Callable[[fx.Node], bool]:
    """Return what tells sigmoids, softmaxes and the like that ``torch.cat`` joins to other values.

    The parts of a concatenation need one range, and torch takes the first one's for all. That of a sigmoid is fixed: 0
    to 1, which clips the others.
    """

    def wrong(node: fx.Node) -> bool:
        if not calls(graph_module, node, FIXED_RANGES):
            return False
        pending = [node]
        while pending:
            for reader in pending.pop().users:
                if reader.target is torch.cat:
                    return True
                called = type(graph_module.get_submodule(str(reader.target))) if reader.op == "call_module" else None
                if (called or reader.target) in _SHARES_RANGE:
                    pending.append(reader)
        return False

    return wrong


def _is_interpolated_otherwise(node: fx.Node) -> bool:
    """Whether a call interpolates in a way that torch has in FP32 alone."""
    return node.target is F.interpolate and (node.args[3] if len(node.args) > 3 else "nearest") not in _INTERPOLATED
