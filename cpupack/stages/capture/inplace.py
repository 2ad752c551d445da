"""In-place calls of an exported graph made pure: every later reader sees the new value, through views too.

``torch.vmap`` leaves marks in the graph, between which tensors lack the dimension that it goes over. torch writes such
calls out with that dimension, as it writes out updates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from cpupack.errors import ModelError
from cpupack.stages.capture.lines import line_of

_MAPS = "torch._functorch.predispatch"
_FRESH = frozenset(
    f"aten.{name}"
    for name in (
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul",
        "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "max_pool1d", "max_pool2d", "max_pool3d",
        "avg_pool1d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
        "relu6", "silu", "selu", "mish", "softmax", "log_softmax", "scaled_dot_product_attention",
    )
)  # fmt: skip
"""Composite operators that always write a tensor of their own."""


def make_functional(program: ExportedProgram) -> ExportedProgram:
    """Return the same program without in-place calls.

    An update of a tensor that no view shares is renamed here, which takes no time; torch's own way is right for all
    others, and takes longer than the export.
    """
    _drop_dropouts(program.graph)
    _drop_releases(program.graph)
    updates = [node for node in program.graph.nodes if _works_in_place(node)]
    mapped = [node for node in program.graph.nodes if getattr(node.target, "__module__", None) == _MAPS]
    pure = [_pure_form(node) for node in updates]
    if not updates and not mapped:
        return program
    if not mapped and all(form is not None and _owns(node.args[0]) for node, form in zip(updates, pure, strict=True)):
        for node, form in zip(updates, pure, strict=True):
            _rename(node, form)
        program.graph.lint()
        return program
    _spell_out_unbinds(program.graph)
    try:
        with torch.no_grad():
            decomposed: ExportedProgram = program.run_decompositions({})
    except Exception as error:
        raise (_map_refusal(mapped, error) if mapped else _update_refusal(updates, error)) from error
    if left := [node for node in decomposed.graph.nodes if getattr(node.target, "__module__", None) == _MAPS]:
        raise _map_refusal(left, None)
    return decomposed


def _map_refusal(mapped: list[fx.Node], error: Exception | None) -> ModelError:
    where = next((line for line in map(line_of, mapped) if line), "")
    why = "" if error is None else f": {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ModelError(
        f"the model cannot be captured: torch cannot write out torch.vmap{where}{why}",
        hint="write the function for tensors with a leading dimension of samples, and call it without torch.vmap. "
        "docs/how-to/capture-refused.md says what to change in a model that cannot be captured",
    )


def _update_refusal(updates: list[fx.Node], error: Exception) -> ModelError:
    """Return the error for updates that torch cannot write out; it does not say which of them it is about."""
    where = next((line for line in map(line_of, updates) if line), "")
    kinds = ", ".join(sorted({getattr(each.target, "_opname", "") for each in updates}))
    return ModelError(
        f"the model cannot be captured: torch cannot write out calls in place ({kinds}){where}: "
        f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
        hint="write what these calls compute without changing a tensor: y = torch.relu(x) in place of x.relu_(). "
        "docs/how-to/capture-refused.md says what to change in a model that cannot be captured",
    )


def _drop_releases(graph: fx.Graph) -> None:
    """Drop ``x.set_()`` of tensors that nothing reads afterwards, in place: reversible networks free memory so."""
    order = {each: place for place, each in enumerate(graph.nodes)}
    for node in [each for each in graph.nodes if each.target is torch.ops.aten.set_.default]:
        (tensor,) = node.args
        readers = [*tensor.users, *node.users]
        if all(each is node or order[each] < order[node] for each in readers):
            graph.erase_node(node)


def _drop_dropouts(graph: fx.Graph) -> None:
    """Drop dropouts that do nothing, in place: what they return is their operand itself."""
    for node in list(graph.nodes):
        if node.op == "call_function" and "dropout" in str(node.target) and list(node.args[2:3]) == [False]:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _spell_out_unbinds(graph: fx.Graph) -> None:
    """Turn ``unbind`` into selections, in place: torch fixes the batch where it replays an update of its results."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.unbind.int:
            continue
        source, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        for part in list(node.users):
            with graph.inserting_before(part):
                chosen = graph.call_function(torch.ops.aten.select.int, (source, dim, part.args[1]))
            chosen.meta = dict(part.meta)
            part.replace_all_uses_with(chosen)
            graph.erase_node(part)
        graph.erase_node(node)
    graph.lint()


def _works_in_place(node: fx.Node) -> bool:
    target = node.target
    return node.op == "call_function" and isinstance(target, OpOverload) and target._schema.is_mutable


def _pure_form(node: fx.Node) -> Any:
    """Return the operator that computes what ``node`` writes, None where it has no such twin or writes elsewhere."""
    target = node.target
    assert isinstance(target, OpOverload)
    arguments = target._schema.arguments
    written = [each for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    namespace, _, name = target._schema.name.partition("::")
    if len(written) != 1 or (written[0] is not arguments[0] and written[0].name != arguments[0].name):
        return None
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _owns(value: object) -> bool:
    """Whether a tensor is one of its own that no other result shares, so that an update is a new value."""
    if not isinstance(value, fx.Node) or (
        not _is_fresh(value) and not (value.op == "placeholder" and value.name == _first_input(value.graph))
    ):
        return False
    return all(_is_fresh(reader) or reader.op == "output" or not _reads_tensor(reader) for reader in value.users)


def _first_input(graph: fx.Graph) -> str:
    names = [str(node.name) for node in graph.nodes if node.op == "placeholder"]
    return names[-1]  # constants come before


def _reads_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor | tuple | list)


def _is_fresh(node: fx.Node) -> bool:
    """Whether a call's result shares memory with none of its operands; in-place calls count, they are renamed."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return False
    if target._schema.is_mutable:
        return _pure_form(node) is not None
    if any(each.alias_info is not None for each in target._schema.returns):
        return False
    composite = target._can_decompose() if hasattr(target, "_can_decompose") else True
    return not composite or str(target).rpartition(".")[0] in _FRESH


def _rename(node: fx.Node, form: Any) -> None:
    """Make an update pure, in place: whoever reads the tensor later reads the result."""
    tensor = node.args[0]
    assert isinstance(tensor, fx.Node)
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    node.target = form
    for reader in list(tensor.users):
        if order[reader] > order[node]:
            reader.replace_input_with(tensor, node)
