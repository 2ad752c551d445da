"""Images that a network has in its batch, read between their pixels: several of each sample (``grid_sample``).

RAFT reads a map of likenesses for each pixel, ``(batch * pixels, 1, height, width)``, deformable attention one for each
head. The engine's values are those of a sample, so these become ``(batch, images, channels, height, width)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

_CALLS = (torch.ops.aten.grid_sampler.default, torch.ops.aten.grid_sampler_2d.default)


class SampledImages(nn.Module):
    """``grid_sample`` of ``(batch, images, channels, height, width)`` at ``(batch, images, rows, columns, 2)``."""

    def __init__(self, how: int, around: int, *, corners: bool) -> None:
        super().__init__()
        self.how, self.around, self.corners = how, around, corners

    def forward(self, images: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.grid_sampler(
            images.flatten(0, 1), grids.flatten(0, 1), self.how, self.around, self.corners
        ).unflatten(0, images.shape[:2])
        return found


def sample_images(graph: fx.GraphModule, node: fx.Node, moved: Mapping[fx.Node, Any], batch: Any) -> bool:
    """Have a call read several images of each sample, in place; False if it is another, or reads others.

    ``moved`` says where the tensors that it reads have the batch: all of them as ``batch`` does.
    """
    if node.target not in _CALLS or node.meta.get("rank") != 4 or batch.axis != 0 or node.kwargs:
        return False
    given: Any = node.args
    images, grids, how, around, corners = given
    if any(not isinstance(each, fx.Node) or moved.get(each) != batch for each in (images, grids)):
        return False
    name = f"{node.name}_of_images"
    graph.add_submodule(name, SampledImages(how, around, corners=bool(corners)))
    node.op, node.target, node.args = "call_module", name, (images, grids)
    return True
