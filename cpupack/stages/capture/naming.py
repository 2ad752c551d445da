"""The user's names for the calls of a canonical graph, given once all rewrites are done.

A call that is all that is left of a module has the module's name; any other has the name of the module that makes it
and a word for what it does. No target lies below another: fx keeps modules in a tree.
"""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

from cpupack.graph.tags import CONSTANT_NAME, NAME, WORD


def name_calls(graph: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with the user's names: targets of modules, names of nodes, and ``meta`` for people."""
    calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
    names = _unique(calls, [_wanted(node, calls) for node in calls])
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


def _wanted(node: fx.Node, calls: list[fx.Node]) -> str:
    scope, owner = scope_of(node), node.meta.get("owner", "")
    word = node.meta.get(WORD, node.name)
    if owner and _within(owner, scope) and not _has_inside(owner, node, calls):
        return str(owner)
    alone = [each for each in calls if _scope_key(each) == _scope_key(node)] == [node]
    if scope and alone and not _has_inside(scope, node, calls):
        return scope
    return f"{scope}.{word}" if scope else str(word)


def _scope_key(node: fx.Node) -> str:
    """Return the innermost scope with its call: export marks a module's second call ``layer@1``."""
    keys = list(node.meta.get("nn_module_stack", {}))
    return keys[-1] if keys else ""


def _within(owner: str, scope: str) -> bool:
    return not scope or owner == scope or owner.startswith(scope + ".")


def _has_inside(name: str, node: fx.Node, calls: list[fx.Node]) -> bool:
    """Whether other calls come from modules below ``name``."""
    return any(each is not node and scope_of(each).startswith(name + ".") for each in calls)


def _unique(calls: list[fx.Node], wanted: list[str]) -> list[str]:
    """Number names that are wanted twice, ``relu``, ``relu_1``, and those that lie below another's."""
    taken: set[str] = set()
    prefixes: Counter[str] = Counter()
    names = []
    for node, name in zip(calls, wanted, strict=True):
        base, number = name, 0
        while name in taken or prefixes[name] or any(parent in taken for parent in _parents(name)):
            if any(parent in taken for parent in _parents(base)):
                base = f"{base.replace('.', '_')}"
                name = base
                if name not in taken and not prefixes[name]:
                    break
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        prefixes.update(_parents(name))
        names.append(name)
        del node
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
        target = "constant_" + node.meta[NAME].replace(".", "_")
        while hasattr(root, target):
            target += "_"
        root.register_buffer(target, value)
        node.target = target
