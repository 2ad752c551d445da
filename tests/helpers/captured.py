"""What the tests of capture share: a net captured, checked against the user's on other data, and told by its calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import fx, nn

from cpupack.artifacts import CapturedModel
from cpupack.graph.names import scoped_name
from cpupack.stages.capture import capture
from helpers.tiny_models import SHAPE, Recorder, float_model, recipe, samples


class Net(nn.Module):
    """Named children and a forward that calls them: ``Net(lambda net, x: net.conv(x), conv=nn.Conv2d(...))``."""

    def __init__(self, forward: Callable[[Net, torch.Tensor], torch.Tensor], **children: object) -> None:
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            if isinstance(child, torch.Tensor) and not isinstance(child, nn.Parameter):
                self.register_buffer(name, child)
            else:
                setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


def captured(
    module: nn.Module, shape: tuple[int, ...] = SHAPE, rewrites: tuple[str, ...] | None = None
) -> fx.GraphModule:
    """Capture and check, on data that the stage does not use, that the outputs are the same up to rounding.

    ``rewrites`` are those that must have changed something, by name.
    """
    model = float_model(module, shape)
    progress = Recorder()
    found: CapturedModel = capture(model, samples(shape, 4), recipe(shape), progress)
    graph = found.module
    assert isinstance(graph, fx.GraphModule)
    for count in (1, 5):
        batch = samples(shape, count, seed=7).tensor(slice(None))
        with torch.inference_mode():
            torch.testing.assert_close(graph(batch.clone()), model.module(batch.clone()), rtol=1e-4, atol=2e-5)
    if rewrites is not None:
        used = progress.notes[-1].partition("rewrites: ")[2].split(", ")
        assert set(rewrites) <= set(used), used
    return graph


def kinds(graph: fx.GraphModule) -> list[str]:
    """Return the calls by class of module or name of function, in order; reads of constants left out."""
    return [kind(graph, node) for node in graph.graph.nodes if node.op.startswith("call")]


def kind(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))).__name__
    return str(node.target) if isinstance(node.target, str) else node.target.__name__


def names(graph: fx.GraphModule) -> list[str]:
    """Return the calls' names for people, in order."""
    return [scoped_name(node) for node in graph.graph.nodes if node.op.startswith("call")]


def module(graph: fx.GraphModule, name: str) -> nn.Module:
    return graph.get_submodule(name)


def random(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))
