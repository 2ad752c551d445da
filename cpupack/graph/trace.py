"""Symbolic tracing of a user's module, and the removal of what does nothing in inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.model.user_code import describe_failure

_NOOP_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)  # the base of every dropout module
_NOOP_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


def trace(module: nn.Module) -> fx.GraphModule:
    """Trace ``module`` symbolically into a graph module that shares its parameters.

    Raises ModelError that names the user's line which depends on tensor values.
    """
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(module)
    except Exception as error:
        raise ModelError(
            f"the model cannot be traced: {describe_failure(error)}",
            hint="make that line independent of tensor values, or give the model its own QuantStub and DeQuantStub "
            '(eager mode), or use [quantize] mode = "dynamic"',
        ) from error
    return fx.GraphModule(tracer.root, graph)


def remove_inference_noops(graph_module: fx.GraphModule) -> None:
    """Drop identities, dropouts and stochastic depth, in place: in eval mode each returns its input.

    FX quantization knows no rule for some of them and would put a dequantize and a quantize around each.
    """
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    for node in list(graph_module.graph.nodes):
        if _is_noop(node, modules):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()


def record_shapes(graph_module: fx.GraphModule, example: torch.Tensor) -> None:
    """Run ``example`` and note each call's output shape in ``node.meta["shape"]`` (None where it is no tensor)."""

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta["shape"] = tuple(value.shape) if isinstance(value, torch.Tensor) else None
            return value

    with torch.inference_mode():
        Shapes(graph_module).run(example)


def last_readers(graph: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """Return, for each node, the values that nothing reads after it."""
    order = {node: number for number, node in enumerate(graph.graph.nodes)}
    done: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op != "output":
            done.setdefault(max([node, *node.users], key=order.__getitem__), []).append(node)
    return done


def _is_noop(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _NOOP_MODULES)
    if node.op != "call_function" or _training(node):
        return False
    # torchvision.ops.stochastic_depth is wrapped as a leaf; torchvision may be absent, so it is known by its name.
    return node.target in _NOOP_FUNCTIONS or getattr(node.target, "__name__", "") == "stochastic_depth"


def _training(node: fx.Node) -> bool:
    """Whether a dropout-like call is asked to drop: its ``training`` argument, which torch defaults to True."""
    position = 3 if getattr(node.target, "__name__", "") == "stochastic_depth" else 2
    value: Any = node.kwargs.get("training", node.args[position] if len(node.args) > position else True)
    return bool(value)
