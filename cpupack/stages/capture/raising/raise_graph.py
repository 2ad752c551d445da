"""The walk over an exported graph: constants are computed, each call is raised by its handler or kept as it is."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.errors import ModelError
from cpupack.graph.tags import OTHER_FLOAT
from cpupack.model.user_code import is_library
from cpupack.stages.capture.export import Exported, depends_on_values, is_dynamic
from cpupack.stages.capture.raising import activations, arithmetic, combined, layers, pools, shapes
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

Handler = Callable[[Raiser, dict[str, Any]], Any]
_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
_HANDLERS: dict[str, Handler] = {
    **layers.HANDLERS, **activations.HANDLERS, **arithmetic.HANDLERS, **combined.HANDLERS, **pools.HANDLERS,
    **shapes.HANDLERS,
}  # fmt: skip


def raise_graph(exported: Exported) -> fx.GraphModule:
    """Return the canonical graph of an exported one, before any rewrite. Calls have numbers for names.

    Raises ModelError for batch statistics, naming the layer.
    """
    raiser = Raiser(exported)
    needed = _needed(exported.result)
    for node in exported.graph.nodes:
        if node.op == "call_function" and node in needed:
            raiser.node = node
            _raise(raiser, node)
    raiser.node = exported.result
    result = raiser.operand(exported.result)
    if exported.result in raiser.known:
        raise ModelError(
            "the model's result does not depend on its input", hint="is the input used at all? Look at its forward"
        )
    raiser.graph.output(result)
    graph = fx.GraphModule(raiser.root, raiser.graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    return graph.eval()


def refuse_numbers(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a number that is taken out of a computed tensor (``x.item()``)."""
    for node in _needed(exported.result):
        if node.target in {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default}:
            raise depends_on_values(_line(node))


def refuse_filters_by_sample(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a convolution that has a group for each sample of the batch.

    That is how filters that are mixed anew for each sample are applied. The number of groups is a plain number to
    every engine, so the saved model would work for one batch size alone.
    """
    for node in _needed(exported.result):
        if not isinstance(node.target, OpOverload) or "conv" not in node.target._schema.name:
            continue
        names = [each.name for each in node.target._schema.arguments]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        if isinstance(given.get("groups"), fx.Node):
            raise ModelError(
                f"the model cannot be captured: {_scope(node)} convolves each sample with filters of its own, in as "
                f"many groups as the batch has samples{_line(node)}",
                hint="convolve the whole batch with each of the filters that are mixed, then mix the results: the sum "
                "is the same. docs/how-to/capture-refused.md shows it",
            )


def refuse_pairs_of_samples(exported: Exported) -> None:
    """Raise ModelError, with the user's line, for a tensor that has the batch in two dimensions: pairs of samples.

    What a sample does to the others may be too little to show in three samples' answers.
    """
    needed = _needed(exported.result)
    for node in (each for each in exported.graph.nodes if each in needed):  # in order: the first one is the cause
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and sum(map(is_dynamic, value.shape)) > 1:
            raise ModelError(
                f"the model's answer to a sample depends on the other samples of its batch: {_scope(node)} makes a "
                f"tensor that has the batch in two dimensions, so samples meet each other{_line(node)}",
                hint="look for a matrix product or a comparison that takes the batch for another dimension: "
                "transpose(-1, -2) of a tensor (batch, tokens) needs a third dimension. "
                "docs/how-to/capture-refused.md says more",
            )


def _needed(result: fx.Node) -> set[fx.Node]:
    needed, pending = {result}, [result]
    while pending:
        for each in pending.pop().all_input_nodes:
            if each not in needed:
                needed.add(each)
                pending.append(each)
    return needed


def _raise(r: Raiser, node: fx.Node) -> None:
    if all(each in r.known for each in node.all_input_nodes) and not _is_random(node):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), r.known.__getitem__)
        r.known[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a function
        return
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        parts, index = r.made.get(node.args[0]), node.args[1]
        if isinstance(parts, list | tuple) and isinstance(index, int):
            r.made[node] = parts[index]() if callable(parts[index]) else parts[index]
            return
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        r.made[node] = _kept(r, node)  # a size: only calls that are kept read it
        return
    if isinstance(node.target, OpOverload):
        handler = _HANDLERS.get(node.target._schema.name.removeprefix("aten::"))
        if handler is not None and not _is_other_float(node):
            try:
                r.made[node] = handler(r, r.arguments())
            except NotRaised:
                pass  # what the handler added before it gave up is dead code
            else:
                return
    r.made[node] = _kept(r, node)


def _is_other_float(node: fx.Node) -> bool:
    """Whether a call computes in another float type than float32: the modules of the vocabulary have FP32 weights."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float32


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _kept(r: Raiser, node: fx.Node) -> fx.Node:
    """Return the call as export gave it, on the new graph's operands."""
    if any(isinstance(each.meta.get("val"), nn.Module) or each.op == "get_attr" for each in node.all_input_nodes):
        raise ModelError(
            f"the model cannot be captured: {node.target} in {_scope(node)} holds a part of the model that "
            "torch.export keeps apart",
            hint="take torch.autocast, torch.set_grad_enabled and control flow of torch out of forward",
        )
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), r.operand)
    except NotRaised as error:
        raise ModelError(
            f"internal: {node.target} in {_scope(node)} reads a result that capture does not keep",
            hint="this is a fault of cpupack, please report the model",
        ) from error
    word = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))
    # Copies that only make a tensor contiguous are gone, and a view may need one.
    target = torch.ops.aten.reshape.default if node.target in _VIEWS else node.target
    kept = r.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]  # a function
    if _is_other_float(node):
        kept.meta[OTHER_FLOAT] = True
    return r._noted(kept, word)


def _line(node: fx.Node) -> str:
    """Return the user's line that made a call, in brackets, "" where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)', node.meta.get("stack_trace") or "")
    theirs = [frame for frame in frames if not is_library(frame[0])]
    return f" ({theirs[-1][0]}:{theirs[-1][1]}: {theirs[-1][2]})" if theirs else ""


def _scope(node: fx.Node) -> str:
    scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return (scopes[-1] if scopes else "") or "the model"
