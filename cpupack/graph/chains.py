"""Chains of calls that run as one operator: found on the canonical graph, fused in place.

A chain is found from which call reads which output, never from names. torchvision's BasicBlock calls one ``relu``
module after bn1 and again after the addition. ``torch.ao.quantization.fuse_modules`` uses names and would drop the
second call.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.graph.fused import (
    CONVS,
    NORMS,
    TRANSPOSED_CONVS,
    ConvReLU6,
    fold_batch_norm,
    normalizes,
    takes_relu,
    with_relu,
)
from cpupack.graph.names import path_of, scoped_name
from cpupack.graph.proposals import steady_proposals

_TINY = 1e-30
_OLD_NAME = re.compile(r"(relu6?|hardtanh)_?(_\d+)?")
"""Names in older recipes, from before capture, for activations that are called as functions."""
_PATTERNS = frozenset(
    {
        ("conv", "bn"),
        ("conv", "relu"),
        ("conv", "relu6"),
        ("conv", "bn", "relu"),
        ("conv", "bn", "relu6"),
        ("conv_transpose", "bn"),
        ("linear", "relu"),
        ("linear", "bn"),
        ("linear", "bn", "relu"),
        ("bn", "relu"),
    }
)


@dataclass(frozen=True)
class Chain:
    """Consecutive calls: each reads only the one before it, and nothing else reads that one."""

    nodes: tuple[fx.Node, ...]
    kinds: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The calls' names, see ``scoped_name``."""
        return tuple(scoped_name(node) for node in self.nodes)


def _is_called(node: fx.Node, name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a recipe may use ``name`` for ``node``: its name, its module's path, or its name from before capture."""
    if name in {scoped_name(node), path_of(node)}:
        return True
    return _OLD_NAME.fullmatch(name) is not None and _kind(node, modules) in {"relu", "relu6"}


def find_chains(graph_module: fx.GraphModule) -> list[Chain]:
    """Return the longest fusible chain that starts at each call, in execution order."""
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    calls = _call_counts(graph_module)
    chains, taken = [], set[fx.Node]()
    for node in graph_module.graph.nodes:
        if node in taken:
            continue
        best: Chain | None = None
        for nodes in _runs(node):
            kinds = tuple(_kind(each, modules) for each in nodes)
            if kinds in _PATTERNS and _refusal(nodes, kinds, modules, calls) is None:
                best = Chain(nodes, kinds)
        if best is not None:
            chains.append(best)
            taken.update(best.nodes)
    return chains


def resolve_chains(graph_module: fx.GraphModule, listed: list[list[str]]) -> list[Chain]:
    """Return the chains that a recipe lists, in its order. Raises ModelError saying which name is wrong and why."""
    chains = [_resolve(graph_module, names) for names in listed]
    uses = Counter(node for chain in chains for node in chain.nodes)
    for node, count in uses.items():
        if count > 1:
            raise ModelError(f"[fuse] modules: {scoped_name(node)!r} is in two chains", hint="list each call once")
    return chains


def _resolve(graph_module: fx.GraphModule, names: list[str]) -> Chain:
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    listed = f"[fuse] modules: [{', '.join(names)}]"
    calls = [node for node in graph_module.graph.nodes if node.op != "output"]
    known = {name: node for node in reversed(calls) for name in (path_of(node), scoped_name(node)) if name}
    for number, name in enumerate(names):
        if name not in known and not (number and _OLD_NAME.fullmatch(name)):
            near = get_close_matches(name, known, n=1)
            raise ModelError(
                f"{listed}: the captured model has no call of {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else "`cpupack fusions RECIPE` lists what can be fused",
            )
    nodes = [known[names[0]]]
    for name in names[1:]:
        readers = list(nodes[-1].users)
        if len(readers) != 1 or not _is_called(readers[0], name, modules):
            read_by = ", ".join(repr(scoped_name(reader)) for reader in readers) or "nothing"
            raise ModelError(
                f"{listed} cannot be fused: the output of {scoped_name(nodes[-1])!r} is read by {read_by}, "
                f"so {name!r} is not its only reader",
                hint="`cpupack fusions RECIPE` lists what can be fused",
            )
        nodes.append(readers[0])
    kinds = tuple(_kind(node, modules) for node in nodes)
    reason = (
        _refusal(tuple(nodes), kinds, modules, _call_counts(graph_module))
        if kinds in _PATTERNS
        else " + ".join(_type_name(node, modules) for node in nodes) + " does not run as one operator"
    )
    if reason is not None:
        raise ModelError(
            f"{listed} cannot be fused: {reason}",
            hint="fusible chains are " + ", ".join("-".join(pattern) for pattern in sorted(_PATTERNS)),
        )
    return Chain(tuple(nodes), kinds)


def fuse_chain(graph_module: fx.GraphModule, chain: Chain) -> None:
    """Replace a chain's calls by one, in place. It has the first one's name. FP32 results stay the same."""
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    first, last = chain.nodes[0], chain.nodes[-1]
    fused = modules[str(first.target)]
    for node, kind in zip(chain.nodes[1:], chain.kinds[1:], strict=True):
        match kind:
            case "bn":
                fused = fold_batch_norm(fused, modules[str(node.target)])
            case "relu":
                fused = with_relu(fused)
            case "relu6":
                fused = ConvReLU6(fused, nn.ReLU6())
    graph_module.add_submodule(str(first.target), fused.eval())
    last.replace_all_uses_with(first)
    for node in reversed(chain.nodes[1:]):
        graph_module.graph.erase_node(node)


def _runs(node: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Return the runs of two and three calls that start at ``node`` and in which each output has one reader."""
    runs, run = [], [node]
    while len(run) < 3 and len(run[-1].users) == 1:
        run.append(next(iter(run[-1].users)))
        runs.append(tuple(run))
    return runs


def _call_counts(graph_module: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")


def _kind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        module = modules[str(node.target)]
        for kinds, name in ((CONVS, "conv"), (TRANSPOSED_CONVS, "conv_transpose"), (NORMS, "bn")):
            if type(module) in kinds:
                return name
        return {nn.Linear: "linear", nn.ReLU: "relu", nn.ReLU6: "relu6"}.get(type(module), "other")
    return "other"


def _type_name(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    return type(modules[str(node.target)]).__name__ if node.op == "call_module" else str(node.target)


def _refusal(
    nodes: tuple[fx.Node, ...], kinds: tuple[str, ...], modules: Mapping[str, nn.Module], calls: Counter[str]
) -> str | None:
    """Return why calls whose kinds form a pattern still cannot be fused, None when they can."""
    for node, kind in zip(nodes, kinds, strict=True):
        # An activation has no state, so its module may be called from many places. A module with weights may not.
        if kind not in {"relu", "relu6"} and calls[str(node.target)] > 1:
            return f"{scoped_name(node)!r} is called {calls[str(node.target)]} times"
        if kind == "bn":
            module = modules[str(node.target)]
            if module.running_mean is None:
                return f"{scoped_name(node)!r} keeps no running statistics, so its scale changes with every batch"
    first = modules[str(nodes[0].target)]
    if kinds[0] == "bn":
        return None if takes_relu(first) else f"{type(first).__name__} has no quantized form with a ReLU"
    if kinds[1] == "bn":
        norm = modules[str(nodes[1].target)]
        if not normalizes(norm, first):
            return f"{type(norm).__name__} does not normalize the output channels of {type(first).__name__}"
    return None


def residual_summands(graph_module: fx.GraphModule) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Return, for each addition that only a ReLU reads, its summands that nothing else reads."""
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    found = {}
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target is not torch.add or len(node.users) != 1:
            continue
        if _kind(next(iter(node.users)), modules) != "relu" or len(node.all_input_nodes) != 2:
            continue
        summands = tuple(
            each
            for each in node.all_input_nodes
            if list(each.users) == [node] and each.op not in {"placeholder", "get_attr"}
        )
        if summands:
            found[node] = summands
    return found


def largest_difference(
    before: nn.Module, after: nn.Module, example: torch.Tensor, places: Sequence[slice] = ()
) -> tuple[float, float]:
    """Return the largest absolute difference of two modules' outputs on a batch and the largest absolute output.

    Where the outputs are rows of several, at ``places``, these are those of the one that differs most for its size.
    """
    with torch.inference_mode(), steady_proposals():
        expected, actual = before(example.clone()), after(example.clone())
    if expected.shape != actual.shape:
        return math.inf, float(expected.abs().max())
    pairs = [(expected[:, each], actual[:, each]) for each in places] or [(expected, actual)]
    found = [(float((one - other).abs().max()), float(one.abs().max())) for one, other in pairs]
    # NaN is the worst: it is found among the outputs in whatever order.
    return max(found, key=lambda pair: math.inf if not pair[0] <= math.inf else pair[0] / max(pair[1], _TINY))
