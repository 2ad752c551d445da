"""Rewrites of a canonical graph, each one function with a name. The order is that of this list.

A rewrite takes the graph, changes it in place, and says whether it did. What nothing reads any more is swept up after
each, and shapes are taken anew.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from cpupack.stages.capture.rewrites.affine import (
    fold_into_layer_after,
    fold_into_layer_before,
    merge_batch_norms,
    name_batch_norms,
)
from cpupack.stages.capture.rewrites.branches import merge_parallel_branches
from cpupack.stages.capture.rewrites.columns import read_columns_as_rows
from cpupack.stages.capture.rewrites.functions import name_activations, name_norms
from cpupack.stages.capture.rewrites.heads import part_heads
from cpupack.stages.capture.rewrites.noops import (
    delay_squeezes,
    drop_expansions,
    drop_noops,
    drop_unread_parts,
    merge_shape_operations,
    name_pixel_shuffles,
    split_before_permutations,
)
from cpupack.stages.capture.rewrites.order import compute_before_moves
from cpupack.stages.capture.rewrites.padding import fold_padding, merge_paddings, swap_padding_and_activation
from cpupack.stages.capture.rewrites.pooling import pool_all_positions
from cpupack.stages.capture.rewrites.stacks import add_without_stacks

Rewrite = Callable[[fx.GraphModule], bool]

REWRITES: tuple[Rewrite, ...] = (
    drop_noops,
    drop_expansions,
    part_heads,
    add_without_stacks,
    merge_shape_operations,
    split_before_permutations,
    merge_shape_operations,
    delay_squeezes,
    merge_shape_operations,
    name_activations,
    name_norms,
    pool_all_positions,
    merge_shape_operations,
    name_pixel_shuffles,
    drop_unread_parts,
    compute_before_moves,
    merge_shape_operations,
    merge_paddings,
    swap_padding_and_activation,
    fold_padding,
    merge_parallel_branches,
    fold_into_layer_before,
    fold_into_layer_after,
    name_batch_norms,
    merge_batch_norms,
    read_columns_as_rows,
    merge_shape_operations,
    drop_noops,
)
"""Names before folds: a written-out norm has products with numbers that are no scales of a layer."""
