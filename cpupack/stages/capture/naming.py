"""The user's names for the calls of a canonical graph, given once all rewrites are done.

A call that is all that is left of a module has the module's name; any other has the name of the module that makes it
and a word for what it does. No target lies below another: fx keeps modules in a tree. Where a graph cannot hold a
module's name, the call has the nearest that it can (``graph_``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from cpupack.graph.names import attribute_path
from cpupack.graph.tags import CONSTANT_NAME, NAME, WORD


def name_calls(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with the user's names: targets of modules, names of nodes, and ``meta`` for people."""
    calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
    scopes = _Scopes.of(calls)
    wanted = [(node, _wanted(node, scopes)) for node in calls]
    names = _unique([attribute_path(name) if node.op == "call_module" else name for node, name in wanted])
    root = nn.Module()
    for node, name in zip(calls, names, strict=True):
        node.meta[NAME] = name
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            _add(root, name, module)
            node.target = name
    _name_constants(graph, root)
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        copies[node] = new.node_copy(node, copies.__getitem__)
        if node.op.startswith("call"):
            copies[node]._rename(node.meta[NAME].replace(".", "_"))
    return fx.GraphModule(root, new).eval()


def scope_of(node: fx.Node) -> str:
    """Return the path of the innermost of the user's modules that makes a call, "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


@dataclass(frozen=True)
class _Scopes:
    """How many calls each scope has, and which scopes have others below them."""

    calls: Counter[str]
    outer: frozenset[str]

    @classmethod
    def of(cls, calls: list[fx.Node]) -> _Scopes:
        outer = {parent for node in calls for parent in _parents(scope_of(node))}
        return cls(Counter(map(_scope_key, calls)), frozenset(outer))


def _wanted(node: fx.Node, scopes: _Scopes) -> str:
    scope, owner = scope_of(node), node.meta.get("owner", "")
    word = node.meta.get(WORD, node.name)
    if owner and _within(owner, scope) and owner not in scopes.outer:
        return str(owner)
    if scope and scopes.calls[_scope_key(node)] == 1 and scope not in scopes.outer:
        return scope
    return f"{scope}.{word}" if scope else str(word)


def _scope_key(node: fx.Node) -> str:
    """Return the innermost scope with its call: export marks a module's second call ``layer@1``."""
    keys = list(node.meta.get("nn_module_stack", {}))
    return keys[-1] if keys else ""


def _within(owner: str, scope: str) -> bool:
    return not scope or owner == scope or owner.startswith(scope + ".")


def _unique(wanted: list[str]) -> list[str]:
    """Number names that are wanted twice, ``relu``, ``relu_1``, and move those that would lie below another's."""
    taken: set[str] = set()
    outer: set[str] = set()
    names = []
    for want in wanted:
        base = want
        while any(parent in taken for parent in _parents(base)):
            start, _, end = base.rpartition(".")
            base = f"{start}_{end}"
        name, number = base, 0
        while name in taken or name in outer:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        outer.update(_parents(name))
        names.append(name)
    return names


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _add(root: nn.Module, name: str, module: nn.Module) -> None:
    *parents, own = name.split(".")
    place = root
    for part in parents:
        if not hasattr(place, part):
            place.add_module(part, nn.Module())
        place = getattr(place, part)
    place.add_module(own, module)


def _name_constants(graph: fx.GraphModule, root: nn.Module) -> None:
    for number, node in enumerate(each for each in graph.graph.nodes if each.op == "get_attr"):
        value = getattr(graph, str(node.target))
        node.meta[NAME] = node.meta.get(CONSTANT_NAME) or f"constant_{number}"
        target = "constant_" + attribute_path(node.meta[NAME]).replace(".", "_")
        while hasattr(root, target):
            target += "_"
        root.register_buffer(target, value)
        node.target = target
