"""Fusion of models with their own QuantStub and DeQuantStub (eager mode), for which no graph is captured.

Without a graph, chains are found by running the model once: a module follows another if it receives the same tensor
object that the other returned. Other readers of that tensor are not seen. Therefore the fuse stage compares the FP32
outputs before and after fusion.
"""

from __future__ import annotations

import copy
from collections import Counter
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.graph.fused import fold_batch_norm, normalizes, takes_relu, with_relu


def has_quant_stubs(module: nn.Module) -> bool:
    """Whether the model has its own QuantStub, so it is written for eager mode."""
    return any(type(child).__name__ == "QuantStub" for child in module.modules())


def find_eager_chains(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the fusible chains by module name, in execution order, from one run on a batch of zeros."""
    modules = dict(module.named_modules())
    follows, calls = _observe_calls(module, input_shape)
    chains, taken = [], set[str]()
    for name in follows:
        best: tuple[str, ...] = ()
        run = [name]
        while len(run) < 3 and run[-1] in follows and len(follows[run[-1]]) == 1:
            run.append(follows[run[-1]][0])
            once = all(calls[each] == 1 for each in run)
            if once and not taken & set(run) and _fusible([modules[each] for each in run]):
                best = tuple(run)
        if best:
            chains.append(best)
            taken.update(best)
    return tuple(chains)


def fuse_eager(
    module: nn.Module, input_shape: tuple[int, ...], wanted: str | list[list[str]]
) -> tuple[nn.Module, tuple[tuple[str, ...], ...]]:
    """Return a fused copy and the chains.

    Raises ModelError for a listed chain that does not exist or cannot be fused.
    """
    fused = copy.deepcopy(module)
    modules = dict(fused.named_modules())
    chains = find_eager_chains(module, input_shape) if isinstance(wanted, str) else tuple(map(tuple, wanted))
    for chain in chains:
        for name in chain:
            if name not in modules:
                near = get_close_matches(name, modules, n=1)
                raise ModelError(
                    f"[fuse] modules: [{', '.join(chain)}]: the model has no module {name!r}",
                    hint=f"did you mean {near[0]!r}?" if near else None,
                )
        members = [modules[name] for name in chain]
        if not _fusible(members):
            types = " + ".join(type(member).__name__ for member in members)
            raise ModelError(
                f"[fuse] modules: [{', '.join(chain)}] cannot be fused: {types} does not run as one operator"
            )
        fused.set_submodule(chain[0], _combine(members).eval())
        for name in chain[1:]:
            fused.set_submodule(name, nn.Identity())
    return fused, chains


def _fusible(members: list[nn.Module]) -> bool:
    match members:
        case [first, last] if type(last) is nn.ReLU:
            return takes_relu(first)
        case [first, norm]:
            return _foldable(norm, first)
        case [first, norm, last]:
            return _foldable(norm, first) and type(last) is nn.ReLU and takes_relu(first)
    return False


def _foldable(norm: nn.Module, before: nn.Module) -> bool:
    return normalizes(norm, before) and norm.running_mean is not None


def _combine(members: list[nn.Module]) -> nn.Module:
    fused = members[0]
    if normalizes(members[1], fused):
        fused = fold_batch_norm(fused, members[1])
    return with_relu(fused) if type(members[-1]) is nn.ReLU else fused


def _observe_calls(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[dict[str, list[str]], Counter[str]]:
    """Run once and return, for each leaf, the leaves that received its output tensor, and how often each was called."""
    follows: dict[str, list[str]] = {}
    calls: Counter[str] = Counter()
    producers: dict[int, tuple[str, Any]] = {}  # the tensor is kept alive so that its id is not reused

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            follows.setdefault(name, [])
            if args and id(args[0]) in producers:
                follows[producers[id(args[0])][0]].append(name)
            if isinstance(output, torch.Tensor):
                producers[id(output)] = (name, output)

        return hook

    handles = [
        child.register_forward_hook(watch(name))
        for name, child in module.named_modules()
        if not any(True for _ in child.children())
    ]
    try:
        with torch.inference_mode():
            module(torch.zeros(1, *input_shape))
    finally:
        for handle in handles:
            handle.remove()
    return follows, calls
