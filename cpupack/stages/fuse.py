"""FloatModel -> FusedModel: fuse the chains that run as one operator, and prove the FP32 output unchanged."""

from __future__ import annotations

import math

from torch import fx

from cpupack.artifacts import FloatModel, FusedModel
from cpupack.errors import ModelError
from cpupack.graph.chains import find_chains, fuse_chain, largest_difference, resolve_chains
from cpupack.graph.eager import find_eager_chains, fuse_eager, has_quant_stubs
from cpupack.graph.trace import remove_inference_noops, trace
from cpupack.progress import Progress
from cpupack.recipe import Recipe

_RELATIVE_TOLERANCE = 1e-3
"""Folding a BatchNorm reorders FP32 sums; more than this share of the largest output means a wrong fusion."""


def fuse(model: FloatModel, recipe: Recipe, progress: Progress) -> FusedModel:
    """Fuse the chains of ``[fuse] modules`` and return the model with the largest difference of its FP32 output.

    Raises ModelError when the model cannot be traced (naming the line), when a listed chain does not exist or cannot be
    fused, or when the output differs by more than rounding.
    """
    if recipe.quantize.mode == "dynamic":
        return FusedModel(model.module, "dynamic", (), max_abs_diff=0.0, max_abs_output=0.0)
    if has_quant_stubs(model.module):
        module, names = fuse_eager(model.module, model.input_shape, recipe.fuse.modules)
        style = "eager"
    else:
        graph = _traced(model)
        wanted = recipe.fuse.modules
        chains = find_chains(graph) if isinstance(wanted, str) else resolve_chains(graph, wanted)
        names = tuple(chain.names for chain in chains)
        for chain in chains:
            fuse_chain(graph, chain)
        graph.recompile()
        graph.delete_all_unused_submodules()
        module, style = graph.eval(), "fx"
    difference, largest = largest_difference(model.module, module, model.input_shape)
    if not math.isfinite(largest):
        raise ModelError(
            f"[model] {recipe.model.source} gives NaN or infinity on normal random inputs, so its fusion cannot be "
            "checked",
            hint="does the checkpoint hold NaN? Or is there a division, a logarithm or a root of any input?",
        )
    if not difference <= _RELATIVE_TOLERANCE * largest:
        raise ModelError(
            f"[fuse] the fused model's FP32 output differs by {difference:.3g} (largest output {largest:.3g})",
            hint="a fused module's output is probably read in a second place; list the chains by hand without it",
        )
    progress.note(f"{len(names)} chains fused; FP32 outputs differ by at most {difference:.1e} of {largest:.3g}")
    return FusedModel(module, style, names, difference, largest)


def list_chains(model: FloatModel) -> tuple[tuple[str, ...], ...]:
    """Return every chain that ``auto`` fuses, by name. Raises ModelError when the model cannot be traced."""
    if has_quant_stubs(model.module):
        return find_eager_chains(model.module, model.input_shape)
    return tuple(chain.names for chain in find_chains(_traced(model)))


def _traced(model: FloatModel) -> fx.GraphModule:
    graph = trace(model.module)
    remove_inference_noops(graph)
    return graph
