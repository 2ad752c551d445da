"""What an exported model does with its batch that no saved model can do: told before anything is built on it."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from cpupack.errors import ModelError
from cpupack.graph.needed import needed
from cpupack.graph.open_sizes import COUNTED_RESULTS
from cpupack.stages.capture.export import Exported, depends_on_values, is_dynamic
from cpupack.stages.capture.lines import line_of, scope_of


def refuse_numbers(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a number that is taken out of a computed tensor (``x.item()``)."""
    for node in needed(exported.result):
        if node.target in {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}:
            raise depends_on_values(line_of(node))


def refuse_counts_of_samples(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a call whose number of results depends on the size of the batch."""
    for node in needed(exported.result):
        sizes = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.SymInt)]
        counted = isinstance(node.target, OpOverload) and node.target._opname in COUNTED_RESULTS
        if sizes and counted and not splits_batches(node, exported.source):
            raise ModelError(
                f"the model cannot be captured: {node.target} in {scope_of(node)} takes the size of the batch as a "
                f"number, and the saved model would keep that of one batch{line_of(node)}",
                hint="write that line so that it works for any batch size: a slice in place of a part of a split",
            )


def splits_batches(node: fx.Node, source: fx.Node) -> bool:
    """Whether each part of a split is a whole batch: of batches that were joined there are always as many."""
    batch = source.meta["val"].shape[0].node.expr
    sizes = [each.shape[0] for each in node.meta["val"]] if isinstance(node.meta["val"], list | tuple) else []
    return len(sizes) > 1 and all(isinstance(each, torch.SymInt) and each.node.expr == batch for each in sizes)


def refuse_pairs_of_samples(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a tensor that has the batch in two dimensions: pairs of samples.

    What a sample does to the others may be too little to show in three samples' answers.
    """
    read = needed(exported.result)
    for node in (each for each in exported.graph.nodes if each in read):  # in order: the first one is the cause
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and sum(map(is_dynamic, value.shape)) > 1:
            raise ModelError(
                f"the model's answer to a sample depends on the other samples of its batch: {scope_of(node)} makes a "
                f"tensor that has the batch in two dimensions, so samples meet each other{line_of(node)}",
                hint="look for a matrix product or a comparison that takes the batch for another dimension: "
                "transpose(-1, -2) of a tensor (batch, tokens) needs a third dimension. "
                "docs/how-to/capture-refused.md says more",
            )


_SHAPE_ALONE = ("new_", "_like", "sym_", "empty", "zeros", "ones", "full")
"""Calls that take of a tensor its shape or its type."""


def meets_all_samples(exported: Exported) -> str | None:
    """Return the line of a call that makes of a batch a float tensor with no dimension of its size; None without one.

    A maximum of the whole batch is one. Whether it changes the answers is to be tried: many are compared and no more.
    """
    for node in needed(exported.result):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or any(map(is_dynamic, value.shape)):
            continue
        name = node.target._opname if isinstance(node.target, OpOverload) else ""
        taken = [each.meta.get("val") for each in node.all_input_nodes]
        of_batch = any(isinstance(each, torch.Tensor) and any(map(is_dynamic, each.shape)) for each in taken)
        if name and of_batch and not any(each in name for each in _SHAPE_ALONE):
            return f"{scope_of(node)}{line_of(node)}"
    return None
