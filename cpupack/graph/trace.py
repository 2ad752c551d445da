"""What stages ask of a graph: the shapes of its results, and until when each is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from cpupack.graph.names import scoped_name


def record_shapes(graph_module: fx.GraphModule, example: torch.Tensor) -> None:
    """Run ``example`` and note each call's output shape in ``node.meta["shape"]`` (None where it is no tensor)."""

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            return value

    with torch.inference_mode():
        Shapes(graph_module).run(example)


def first_not_finite(graph_module: fx.GraphModule, example: torch.Tensor) -> str | None:
    """Return the name of the first call whose output on ``example`` has NaN or infinity, None where none has."""

    class Search(fx.Interpreter):
        found: str | None = None

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            floats = isinstance(value, torch.Tensor) and value.is_floating_point()
            if self.found is None and n.op.startswith("call") and floats and not bool(torch.isfinite(value).all()):
                self.found = scoped_name(n)
            return value

    search = Search(graph_module)
    with torch.inference_mode():
        search.run(example.clone())
    return search.found


def last_readers(graph: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return, for each node, the values that nothing reads after it."""
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    done: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op != "output":
            done.setdefault(max([node, *node.users], key=order.__getitem__), []).append(node)
    return done
