"""CapturedModel -> FusedModel: fuses chains that run as one operator, and checks that FP32 outputs do not change."""

from __future__ import annotations

import copy
import math

from torch import fx

from cpupack.artifacts import CapturedModel, FusedModel
from cpupack.errors import CalibrationError, ModelError
from cpupack.graph.chains import find_chains, fuse_chain, largest_difference, resolve_chains
from cpupack.graph.eager import find_eager_chains, fuse_eager
from cpupack.graph.trace import first_not_finite
from cpupack.progress import Progress
from cpupack.recipe import Recipe

_RELATIVE_TOLERANCE = 1e-3
"""Folding a BatchNorm reorders FP32 sums. A difference above this share of the largest output means a wrong fusion."""


def fuse(captured: CapturedModel, recipe: Recipe, progress: Progress) -> FusedModel:
    """Fuse the chains of ``[fuse] modules`` and record the largest difference of the FP32 output.

    Raises ModelError when a listed chain does not exist or cannot be fused, or when the output differs by more than
    rounding, and CalibrationError when it is not finite.
    """
    before = captured.module
    if captured.style == "dynamic":
        return _beside(captured)
    wanted = recipe.fuse.modules
    if not isinstance(before, fx.GraphModule):
        module, names = fuse_eager(before, tuple(captured.example.shape[1:]), wanted)
    else:
        module, names = _fused(before, wanted)
    difference, largest = largest_difference(before, module, captured.example, captured.output_places)
    if not math.isfinite(largest):
        layer = first_not_finite(before, captured.example) if isinstance(before, fx.GraphModule) else None
        raise CalibrationError(
            f"the output of {layer or recipe.model.source} is not finite on calibration samples, so fusion cannot be "
            "checked",
            hint="look for huge values in these samples, and for a division, a logarithm, a root or an overflow in the "
            "FP32 model",
        )
    if not difference <= _RELATIVE_TOLERANCE * largest:
        raise ModelError(
            f"[fuse] the fused model's FP32 output differs by {difference:.3g} (largest output {largest:.3g})",
            hint="another layer probably also reads a fused module's output; list the chains in the recipe without it",
        )
    progress.note(f"{len(names)} chains fused; FP32 outputs differ by at most {difference:.1e} of {largest:.3g}")
    return FusedModel(module, captured.style, names, difference, largest)


def _beside(captured: CapturedModel) -> FusedModel:
    """Return a model to quantize dynamically: torch's engines take the module as it is, the native engine the graph."""
    if captured.graph is None:
        return FusedModel(captured.module, "dynamic", (), max_abs_diff=0.0, max_abs_output=0.0)
    graph, _ = _fused(captured.graph, "auto")
    difference, largest = largest_difference(captured.graph, graph, captured.example, captured.output_places)
    if not difference <= _RELATIVE_TOLERANCE * largest:
        raise ModelError(
            f"the fused graph's FP32 output differs by {difference:.3g} (largest output {largest:.3g})",
            hint='this is a fault in cpupack; [target.x86_64] engine = "fbgemm" does not need the graph',
        )
    return FusedModel(captured.module, "dynamic", (), difference, largest, graph)


def list_chains(captured: CapturedModel) -> tuple[tuple[str, ...], ...]:
    """Return every chain that ``auto`` fuses, by name."""
    if not isinstance(captured.module, fx.GraphModule):
        return find_eager_chains(captured.module, tuple(captured.example.shape[1:]))
    return tuple(chain.names for chain in find_chains(captured.module))


def _fused(before: fx.GraphModule, wanted: str | list[list[str]]) -> tuple[fx.GraphModule, tuple[tuple[str, ...], ...]]:
    graph = copy.deepcopy(before)
    chains = find_chains(graph) if isinstance(wanted, str) else resolve_chains(graph, wanted)
    names = tuple(chain.names for chain in chains)
    for chain in chains:
        fuse_chain(graph, chain)
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph.eval(), names
