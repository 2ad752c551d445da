"""The walk over an exported graph: constants are computed, each call is raised by its handler or kept as it is."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.errors import ModelError
from cpupack.graph.needed import needed
from cpupack.graph.tags import OTHER_TYPE
from cpupack.stages.capture.export import Exported
from cpupack.stages.capture.lines import scope_of
from cpupack.stages.capture.raising import (
    activations,
    arithmetic,
    combined,
    complexes,
    distances,
    einsum,
    inverses,
    joined_batches,
    laid_out,
    layers,
    modulated,
    picks,
    places,
    pools,
    ranked,
    recurrent,
    sample_filters,
    shapes,
    spectra,
    tables,
    unpooled,
    updates,
    variances,
    written_out,
)
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser

Handler = Callable[[Raiser, dict[str, Any]], Any]
_TYPES_LIKE = {torch.ops.aten.type_as.default, torch.ops.aten.to.other}
"""What gives a tensor the type of another one, of which nothing else is read."""
_VIEWS = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}
_SPECIAL = {
    f"special_{name}": getattr(torch.ops.aten, other).default
    for name, other in (
        *((name, name) for name in ("exp2", "expm1", "log1p", "erf", "erfc", "erfinv", "sinc", "logit", "i0")),
        ("expit", "sigmoid"), ("psi", "digamma"), ("gammaln", "lgamma"),
    )
}  # fmt: skip
"""Names of ``torch.special`` for functions that have another one."""
_OPERATORS = {"__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor"}
"""Python's operators for functions of torch: of the operators torch does not say that they go value by value."""
_HANDLERS: dict[str, Handler] = {
    **layers.HANDLERS, **activations.HANDLERS, **arithmetic.HANDLERS, **combined.HANDLERS, **pools.HANDLERS,
    **complexes.HANDLERS, **einsum.HANDLERS, **recurrent.HANDLERS, **laid_out.HANDLERS, **shapes.HANDLERS,
    **spectra.HANDLERS, **variances.HANDLERS, **written_out.HANDLERS, **places.HANDLERS, **ranked.HANDLERS,
    **unpooled.HANDLERS, **distances.HANDLERS, **tables.HANDLERS, **inverses.HANDLERS,
    **{name: combined.clamp(activations.HANDLERS[name]) for name in ("clamp", "clamp_min", "clamp_max", "clip")},
    **{name: joined_batches.concatenate(shapes.HANDLERS[name]) for name in ("cat", "concat", "concatenate")},
    **{
        name: joined_batches.split(shapes.HANDLERS[name])
        for name in ("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
    },
    **{
        name: sample_filters.by_sample(layers.HANDLERS[name], transposed="transpose" in name)
        for name in layers.HANDLERS if "conv" in name
    },
    "max_pool2d_with_indices": unpooled.max_pool(
        pools.HANDLERS["max_pool2d_with_indices"], pools.HANDLERS["max_pool2d"]
    ),
    "sum": modulated.sum_of_squares(pools.HANDLERS["sum"]),
    "index_put": updates.put(written_out.HANDLERS["index_put"]),
    "slice": joined_batches.slices(shapes.HANDLERS["slice"]),
    "gather": picks.gather, "index": tables.index(places.index(picks.index(shapes.HANDLERS["index"]))),
    "max": picks.extreme(pools.HANDLERS["max"], torch.ops.aten.argmax.default),
    "min": picks.extreme(pools.HANDLERS["min"], torch.ops.aten.argmin.default),
    "abs": spectra.magnitude(arithmetic.HANDLERS["abs"]),
    "view_as_real": spectra.real(complexes.HANDLERS["view_as_real"]),
}  # fmt: skip


def raise_graph(exported: Exported) -> fx.GraphModule:
    """Return the canonical graph of an exported one, before any rewrite. Calls have numbers for names.

    Raises ModelError for batch statistics, naming the layer.
    """
    raiser = Raiser(exported)
    read = needed(exported.result)
    for node in exported.graph.nodes:
        if node.op == "call_function" and node in read:
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


def _raise(r: Raiser, node: fx.Node) -> None:
    if isinstance(node.target, OpOverload):
        target = _SPECIAL.get(node.target._opname, node.target)
        if (name := _OPERATORS.get(target._opname)) is not None:
            target = getattr(getattr(torch.ops.aten, name), target._overloadname)
        node.target = target
    if all(each in r.known for each in node.all_input_nodes) and not _is_random(node):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), r.known.__getitem__)
        r.known[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a function
        return
    if node.target in _TYPES_LIKE and node.args[0] in r.known:
        r.known[node] = r.known[node.args[0]].to(node.meta["val"].dtype)  # type: ignore[index]  # a node
        return
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        parts, index = r.made.get(node.args[0]), node.args[1]
        if isinstance(parts, list | tuple) and isinstance(index, int):
            r.made[node] = parts[index]() if callable(parts[index]) else parts[index]
            return
    if not isinstance(node.meta.get("val"), torch.Tensor | list | tuple):
        r.made[node] = _kept(r, node)  # a size: only calls that are kept read it
        return
    if node.target in spectra.FUNCTIONS:
        r.made[node] = spectra.FUNCTIONS[node.target](r, *node.args)
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


def _numbers_for_truths(target: OpOverload, args: Any, kwargs: Any) -> tuple[Any, Any, bool]:
    """Return the arguments with 0 and 1 for truth values where a number is due, and whether there were any.

    TorchScript has no form of a call with a truth value there (``torch.full(size, True)``).
    """
    due = {each.name for each in target._schema.arguments if isinstance(each.type, torch.NumberType)}
    names = [each.name for each in target._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    truths = {name for name in due if isinstance(given.get(name), bool)}
    return (
        tuple(int(value) if name in truths else value for name, value in zip(names, args, strict=False)),
        {name: int(value) if name in truths else value for name, value in kwargs.items()},
        bool(truths),
    )


def _is_other_float(node: fx.Node) -> bool:
    """Whether a call computes in another float type than float32: the modules of the vocabulary have FP32 weights."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float32


def _gives_whole_numbers(node: fx.Node) -> bool:
    """Whether a call gives whole numbers. Truth values may be part of an activation that is written out."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _kept(r: Raiser, node: fx.Node) -> fx.Node:
    """Return the call as export gave it, on the new graph's operands."""
    if any(isinstance(each.meta.get("val"), nn.Module) or each.op == "get_attr" for each in node.all_input_nodes):
        raise ModelError(
            f"the model cannot be captured: {node.target} in {scope_of(node)} holds a part of the model that "
            "torch.export keeps apart",
            hint="take torch.autocast, torch.set_grad_enabled and control flow of torch out of forward",
        )
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), r.operand)
    except NotRaised as error:
        raise ModelError(
            f"internal: {node.target} in {scope_of(node)} reads a result that capture does not keep",
            hint="this is a fault of cpupack, please report the model",
        ) from error
    word = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target)))
    # Copies that only make a tensor contiguous are gone, and a view may need one.
    target = torch.ops.aten.reshape.default if node.target in _VIEWS else node.target
    truths = False
    if isinstance(target, OpOverload):
        args, kwargs, truths = _numbers_for_truths(target, args, kwargs)
    kept = r.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]  # a function
    value = node.meta.get("val")
    if truths and isinstance(value, torch.Tensor) and value.dtype == torch.bool:
        kept = r.graph.call_function(torch.ops.aten.ne.Scalar, (r._noted(kept, word), 0))
    if _is_other_float(node) or _gives_whole_numbers(node):
        kept.meta[OTHER_TYPE] = True
    return r._noted(kept, word)
