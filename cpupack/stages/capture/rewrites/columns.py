"""Images of one column become sequences: what a window reads of them is then one run of values.

Networks of sound that are written with ``nn.Conv2d`` and kernels of ``(k, 1)`` have such images. A kernel multiplies
windows row by row: of a column that is one pixel at a time, filled up to four values, where a sequence has them all in
a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.graph.tags import WORD
from cpupack.graph.vocabulary import ACTIVATIONS, ARITHMETIC, POINTWISE
from cpupack.stages.capture.rewrites.tools import (
    constant_of,
    module_of,
    new_call,
    new_constant,
    new_module,
    shape,
)

_RANK = 4
_Maker = Callable[[Any], nn.Module]


def read_columns_as_rows(graph: fx.GraphModule) -> bool:
    """Have convolutions with kernels of ``(k, 1)`` over images of one column, and what reads them, go along a row."""
    nodes: list[fx.Node] = list(graph.graph.nodes)
    rows: dict[fx.Node, fx.Node] = {}
    converted: list[fx.Node] = []
    for node in nodes:
        module: Any = module_of(graph, node)
        begins = type(module) in {nn.Conv2d, nn.ConvTranspose2d} and module.kernel_size[0] > 1 < shape(node.args[0])[2]
        if not begins and not any(each in converted for each in node.all_input_nodes):
            continue
        made = _as_row(graph, node, rows) if _is_column(node) else None
        if made is not None:
            rows[node] = made
            converted.append(node)
    for node in converted:
        new = rows[node]
        if any(each not in converted and each is not new for each in node.users):
            back = new_call(graph, torch.reshape, (new, (-1, *shape(node)[1:])), node, result=shape(node))
            node.replace_all_uses_with(back, delete_user_cb=lambda each: each not in converted)
    return bool(converted)


def _is_column(node: object) -> bool:
    return len(shape(node)) == _RANK and shape(node)[3] == 1


def _as_row(graph: fx.GraphModule, node: fx.Node, rows: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """Return the call in the place of ``node`` that gives its result without the last dimension, None for others."""
    module: Any = module_of(graph, node)
    result = shape(node)[:3]
    if module is not None:
        source = node.args[0]
        made = _module_of_rows(module) if isinstance(source, fx.Node) and _is_column(source) else None
        if made is None:
            return None
        assert isinstance(source, fx.Node)
        return new_module(graph, made, _row_of(graph, source, node, rows), node, _word(node), result)
    if node.op != "call_function" or node.kwargs:
        return None
    arguments = _arguments_of_rows(graph, node, rows)
    return None if arguments is None else new_call(graph, node.target, arguments, node, _word(node), result)  # type: ignore[arg-type]  # a function


def _word(node: fx.Node) -> str:
    return str(node.meta.get(WORD, ""))


def _row_of(graph: fx.GraphModule, source: fx.Node, reader: fx.Node, rows: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the values of an image of one column without its last dimension."""
    if source not in rows:
        sizes = shape(source)[:3]
        rows[source] = new_call(graph, torch.reshape, (source, (-1, *sizes[1:])), reader, result=sizes)
    return rows[source]


# ---- modules ----


def _convolution(module: Any) -> nn.Module:
    kind: Any = nn.Conv1d if isinstance(module, nn.Conv2d) else nn.ConvTranspose1d
    more = {} if kind is nn.Conv1d else {"output_padding": module.output_padding[0]}
    made = kind(
        module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], module.padding[0],
        dilation=module.dilation[0], groups=module.groups, bias=False, **more,
    )  # fmt: skip
    made.weight = nn.Parameter(module.weight.detach()[..., 0].contiguous(), requires_grad=False)
    made.bias = module.bias
    return made  # type: ignore[no-any-return]  # one of two classes


def _max_pool(module: Any) -> nn.Module:
    return nn.MaxPool1d(
        module.kernel_size[0], module.stride[0], module.padding[0], dilation=_first(module.dilation),
        ceil_mode=module.ceil_mode,
    )  # fmt: skip


def _average_pool(module: Any) -> nn.Module:
    return nn.AvgPool1d(
        module.kernel_size[0], module.stride[0], module.padding[0], module.ceil_mode, module.count_include_pad
    )


def _batch_norm(module: Any) -> nn.Module:
    made = nn.BatchNorm1d(module.num_features, eps=module.eps)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(made, name, getattr(module, name))
    return made


def _first(sizes: Any) -> int:
    return int(sizes if isinstance(sizes, int) else sizes[0])


_MODULES: dict[type[nn.Module], _Maker] = {
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.BatchNorm2d: _batch_norm,
    nn.AdaptiveAvgPool2d: lambda module: nn.AdaptiveAvgPool1d(_first(module.output_size)),
    nn.AdaptiveMaxPool2d: lambda module: nn.AdaptiveMaxPool1d(_first(module.output_size)),
}


def _module_of_rows(module: Any) -> nn.Module | None:
    """Return the module that does the same without the last dimension, None where that is more than a window of 1."""
    if type(module) in ACTIVATIONS:
        return module  # type: ignore[no-any-return]  # a module
    make = _MODULES.get(type(module))
    if make is None or getattr(module, "divisor_override", None) is not None:
        return None
    for name, needed in (("kernel_size", 1), ("padding", 0), ("output_padding", 0)):
        sizes = getattr(module, name, None)
        if sizes is not None and (isinstance(sizes, int | str) or tuple(sizes)[1] != needed):
            return None
    return make(module)


# ---- functions ----


def _arguments_of_rows(graph: fx.GraphModule, node: fx.Node, rows: dict[fx.Node, fx.Node]) -> tuple[Any, ...] | None:
    """Return the arguments with which a function does the same without the last dimension."""
    arguments: Any = node.args
    if node.target is torch.cat:
        sources, axis = arguments
        if axis not in {1, 2} or not all(_is_column(each) for each in sources):
            return None
        return [_row_of(graph, each, node, rows) for each in sources], axis
    if node.target is F.pad:
        source, pads, *rest = arguments
        if not _is_column(source) or any(pads[:2]) or not any(pads[2:4]):
            return None
        return _row_of(graph, source, node, rows), list(pads[2:]), *rest
    if node.target not in {*ARITHMETIC, *POINTWISE}:
        return None
    found = [_operand(graph, each, node, rows) for each in node.args]
    return None if None in found else tuple(found)


def _operand(graph: fx.GraphModule, operand: Any, node: fx.Node, rows: dict[fx.Node, fx.Node]) -> Any:
    """Return an operand of arithmetic without the last dimension, None where it has more than one value there."""
    if not isinstance(operand, fx.Node):
        return operand
    constant = constant_of(graph, operand)
    if constant is not None:
        if constant.ndim == 0:
            return operand
        return new_constant(graph, constant[..., 0], operand, node) if constant.shape[-1] == 1 else None
    if len(shape(operand)) != _RANK or shape(operand)[3] != 1:
        return None
    return _row_of(graph, operand, node, rows)
