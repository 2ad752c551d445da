"""Names of layers: the path of a module; for a function call, the path of the calling module and a name."""

from __future__ import annotations

import keyword
from collections.abc import Collection

from torch import fx, nn

from cpupack.graph.recurrent import Recurrent
from cpupack.graph.tags import NAME

_TAKEN = frozenset(["self", *dir(fx.GraphModule(nn.Module(), fx.Graph()))])


def is_plain(part: str) -> bool:
    """Whether generated code can hold this part of a module's path: fx writes Python, TorchScript much the same."""
    return part.isascii() and not keyword.iskeyword(part) and part != "Ellipsis" and not set(part) & set('"\\\n\r')


def attribute_path(name: str) -> str:
    """Return a module's path as a graph can hold it: ``class`` becomes ``class_``, ``größe`` ``gr_f6_dfe``.

    At its top, a graph has attributes of its own, such as ``graph`` and ``code``.
    """
    first, *rest = map(_plain, name.split("."))
    return ".".join([f"{first}_" if first in _TAKEN else first, *rest])


def _plain(part: str) -> str:
    if is_plain(part):
        return part
    spelled = "".join(each if is_plain(each) else f"_{ord(each):x}" for each in part)
    return spelled if is_plain(spelled) else f"{spelled}_"


def core(module: nn.Module) -> nn.Module:
    """Return the module with weights in a fused module: the first of its chain."""
    return module[0] if isinstance(module, nn.Sequential) and len(module) else module


def kind_of(module: nn.Module) -> str:
    """Return the kind of a fused module as text: ``Conv2d+ReLU``."""
    parts = list(module) if isinstance(module, nn.Sequential) and len(module) else [module]
    return "+".join(part.kind if isinstance(part, Recurrent) else type(part).__name__ for part in parts)


def calls(graph_module: fx.GraphModule, node: fx.Node, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether a node calls a module of exactly one of these types."""
    return node.op == "call_module" and type(graph_module.get_submodule(str(node.target))) in types


def is_within(name: str, modules: Collection[str]) -> bool:
    """Whether a module is in ``modules`` or inside one of them; they may have the user's names or the graph's."""
    return any(name == each or name.startswith(each + ".") for own in modules for each in {own, attribute_path(own)})


def is_named(node: fx.Node, names: Collection[str]) -> bool:
    """Whether one of ``names`` is that of a call, a module around it, or a branch that was merged into it."""
    # A convolution that was joined to a sum is called where the sum was, so its node has the name of the sum.
    own = {scoped_name(node), *([str(node.target)] if node.op == "call_module" else [])}
    if node.op.startswith("call") and any(is_within(name, names) for name in own):
        return True
    return any(is_within(path, names) for path, _ in node.meta.get("nn_module_stack", {}).values())


def scoped_name(node: fx.Node) -> str:
    """Return a node's name for people: a module's path; of a function call, its name below the module that calls it.

    ``layer1.0.conv1``, ``layer1.0.add``.
    """
    if NAME in node.meta:
        return str(node.meta[NAME])
    if node.op == "call_module":
        return str(node.target)
    scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"{scopes[-1]}.{node.name}" if scopes and scopes[-1] else node.name


def path_of(node: fx.Node) -> str:
    """Return the path of the innermost user's module that makes a call, "" for a call outside all modules."""
    scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return str(scopes[-1]) if scopes else ""
