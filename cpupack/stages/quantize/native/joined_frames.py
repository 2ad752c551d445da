"""Calls of frames that a network has in its batch, by the channels of all frames one after another.

``(batch * frames, channels, ...)`` has the statistics of a norm for each frame. With the batch in front that is
``(batch, frames, channels, ...)``, of which the first two dimensions of a sample are joined: the groups of a frame are
channels beside each other there, so a norm with as many more groups gives the same values. What goes channel by
channel, such as an interpolation, gives the same values as it is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.stages.quantize.native.rearrangement import Rearrangement, put_between

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def join_frames(graph: fx.GraphModule, node: fx.Node, frames: int) -> fx.Node | None:
    """Have a call read the channels of all frames, in place; return what gives its result, None for another call."""
    if node.op == "call_module":
        wide = _of_frames(graph.get_submodule(str(node.target)), frames)
        if wide is None:
            return None
        node.target = f"{node.name}_of_frames"
        graph.add_submodule(node.target, wide.eval())
    elif node.target is not F.interpolate or len(node.all_input_nodes) != 1:
        return None
    names = [f"{node.name}_{word}" for word in ("joined", "apart")]
    graph.add_submodule(names[0], Rearrangement((torch.flatten, (1, 2))))
    graph.add_submodule(names[1], Rearrangement((torch.unflatten, (1, (frames, -1)))))
    return put_between(graph, node, *names)[1]


def _of_frames(module: Any, frames: int) -> nn.Module | None:
    """Return a norm, or an activation with a slope for each channel, of the channels of all frames."""
    wide: Any
    if type(module) is nn.GroupNorm:
        wide = nn.GroupNorm(module.num_groups * frames, module.num_channels * frames, module.eps, module.affine)
    elif type(module) in _INSTANCE_NORMS and not module.track_running_stats:
        wide = type(module)(module.num_features * frames, module.eps, affine=module.affine)
    elif type(module) is nn.PReLU and module.num_parameters > 1:
        wide = nn.PReLU(module.num_parameters * frames)
    else:
        return None
    for name, held in module.named_parameters():
        setattr(wide, name, nn.Parameter(held.detach().repeat(frames), requires_grad=False))
    found: nn.Module = wide
    return found
