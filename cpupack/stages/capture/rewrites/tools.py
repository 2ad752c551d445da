"""What rewrites share: who reads whom, new calls in the place of old ones, shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from cpupack.graph.tags import WORD

_INHERITED = ("nn_module_stack", "stack_trace")


def module_of(graph: fx.GraphModule, node: object) -> nn.Module | None:
    """Return the module that a node calls, None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return None
    return graph.get_submodule(str(node.target))


def is_a(graph: fx.GraphModule, node: object, *types: type[nn.Module]) -> bool:
    """Whether a node calls a module of exactly one of these classes."""
    module = module_of(graph, node)
    return module is not None and type(module) in types


def constant_of(graph: fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the value of a ``get_attr``, None for anything else."""
    if isinstance(node, fx.Node) and node.op == "get_attr":
        value: torch.Tensor = getattr(graph, str(node.target))
        return value
    return None


def only_reader(node: fx.Node) -> fx.Node | None:
    """Return the one call that reads a result, None where there are several or it is the model's."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].op != "output" else None


def shape(node: object) -> tuple[int, ...]:
    """Return the shape of a node's tensor with a batch of 2, () where it is none."""
    found = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return tuple(found) if found is not None else ()


def new_module(
    graph: fx.GraphModule, module: nn.Module, source: fx.Node, like: fx.Node, word: str, result: tuple[int, ...] = ()
) -> fx.Node:
    """Add a call of a new module right before ``like``, whose place among the user's modules it takes."""
    number = 0
    while hasattr(graph, f"r{number}"):
        number += 1
    graph.add_module(f"r{number}", module.eval().requires_grad_(requires_grad=False))
    with graph.graph.inserting_before(like):
        node = graph.graph.call_module(f"r{number}", (source,))
    return _noted(node, like, word, result)


def new_call(
    graph: fx.GraphModule, function: Callable[..., Any], args: tuple[Any, ...], like: fx.Node, word: str = "",
    result: tuple[int, ...] = (),
) -> fx.Node:  # fmt: skip
    """Add a call of a function right before ``like``."""
    with graph.graph.inserting_before(like):
        node = graph.graph.call_function(function, args)
    return _noted(node, like, word or function.__name__, result)


def new_constant(graph: fx.GraphModule, value: torch.Tensor, like: fx.Node, before: fx.Node) -> fx.Node:
    """Add a constant right before ``before``, named as ``like`` is."""
    number = 0
    while hasattr(graph, f"k{number}"):
        number += 1
    graph.register_buffer(f"k{number}", value.detach().clone())
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(f"k{number}")
    node.meta = {key: each for key, each in like.meta.items() if key != "shape"}
    node.meta["shape"] = tuple(value.shape)
    return node


def replace(old: fx.Node, new: fx.Node) -> None:
    """Have all readers of ``old`` read ``new``; the old call goes."""
    old.replace_all_uses_with(new, delete_user_cb=lambda reader: reader is not new)
    if not old.users:
        old.graph.erase_node(old)


def own_copy(graph: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return a copy of the module that ``node`` calls, which it calls from now on: a rewrite may change that."""
    module = copy.deepcopy(graph.get_submodule(str(node.target)))
    graph.add_module(str(node.target), module)
    return module


def parameter(value: torch.Tensor) -> nn.Parameter:
    """Return a parameter that needs no gradient, float32."""
    return nn.Parameter(value.detach().float().contiguous(), requires_grad=False)


def _noted(node: fx.Node, like: fx.Node, word: str, result: tuple[int, ...]) -> fx.Node:
    node.meta.update({key: like.meta[key] for key in _INHERITED if key in like.meta})
    node.meta[WORD] = word
    node.meta["shape"] = result or shape(like)
    return node
