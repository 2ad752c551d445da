"""What the operators of TorchScript do that are not torch's own: numbers, lists, dicts, texts, and facts of tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

DTYPES: tuple[torch.dtype, ...] = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32,
    torch.bfloat16,
)  # fmt: skip # in the order of their numbers
LAYOUTS = (torch.strided, torch.sparse_coo)
FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)


def _append(values: list[Any], each: Any) -> list[Any]:
    values.append(each)
    return values


def _set(values: Any, key: Any, each: Any) -> Any:
    values[key] = each
    return values


def _slice(values: Any, start: Any, end: Any, step: Any) -> Any:
    return values[slice(start, end, step)]


def _tensor(values: Any, dtype: int | None = None, *_: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=None if dtype is None else DTYPES[dtype])


def _least(first: Any, *second: Any) -> Any:
    return torch.sym_min(first, *second) if second else min(first)


def _most(first: Any, *second: Any) -> Any:
    return torch.sym_max(first, *second) if second else max(first)


def _to_zero(first: Any, second: Any) -> Any:
    return first // second if (first < 0) == (second < 0) else -(-first // second)


def _convolution_mode(x: Any, weight: Any, bias: Any, stride: Any, padding: str, dilation: Any, groups: int) -> Any:
    call = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[weight.dim()]
    return call(x, weight, bias, stride, padding, dilation, groups)


TRACED: Mapping[str, Callable[..., Any]] = {
    "_convolution": lambda *values: torch.ops.aten.convolution.default(*values[:9]),
    "_convolution_mode": _convolution_mode,
}
"""Operators that tracing writes in place of public ones."""
NUMBERS: Mapping[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
    "floordiv": operator.floordiv, "floor_divide": operator.floordiv, "remainder": operator.mod, "pow": operator.pow,
    "neg": operator.neg, "abs": abs, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift, "__not__": operator.not_, "__is__": operator.is_,
    "__isnot__": operator.is_not, "sqrt": math.sqrt, "log": math.log, "exp": math.exp, "ceil": math.ceil,
    "floor": math.floor, "round": round, "sin": math.sin, "cos": math.cos, "divmod": divmod,
    "Int": torch.sym_int, "Float": torch.sym_float, "Bool": bool, "IntImplicit": torch.sym_int,
    "FloatImplicit": torch.sym_float, "ScalarImplicit": lambda number: number, "__round_to_zero_floordiv": _to_zero,
}  # fmt: skip
"""Operators of numbers, also of those of which TorchScript makes tensors: sizes in a traced program."""
PLAIN: Mapping[str, Callable[..., Any]] = {
    **NUMBERS,
    "__range_length": lambda low, high, step: len(range(low, high, step)),
    "__derive_index": lambda index, low, step: low + index * step,
    "all": all, "any": any, "sum": sum, "len": len, "__contains__": operator.contains, "__getitem__": operator.getitem,
    "append": _append, "extend": lambda values, others: values.extend(others),
    "remove": lambda values, one: values.remove(one),
    "insert": lambda values, at, one: values.insert(at, one), "pop": lambda values, *at: values.pop(*at),
    "clear": lambda values: values.clear(), "copy": lambda values: values.copy(), "list": list, "dict": dict,
    "_set_item": _set, "Delete": operator.delitem, "get": lambda values, *key: values.get(*key), "slice": _slice,
    "keys": lambda values: list(values.keys()), "values": lambda values: list(values.values()),
    "items": lambda values: list(values.items()), "reverse": lambda values: values.reverse(), "sorted": sorted,
    "sort": lambda values, reverse=False: values.sort(reverse=reverse), "index": lambda values, one: values.index(one),
    "count": lambda values, one: values.count(one), "format": lambda text, *values: text.format(*values), "str": str,
    "upper": str.upper, "lower": str.lower, "startswith": lambda text, start, *_: text.startswith(start),
    "endswith": lambda text, end, *_: text.endswith(end), "warn": lambda *_: None, "tensor": _tensor,
    "as_tensor": _tensor, "is_grad_enabled": lambda: True, "is_autocast_enabled": lambda *_: False,
    "is_scripting": lambda: False, "_is_tracing": lambda: False, "is_tracing": lambda: False,
}  # fmt: skip
"""Operators of numbers, lists, dicts and texts. With gradients on, transformers take their layers, no fused kernel."""
OF_TENSORS: Mapping[str, Callable[..., Any]] = {
    "size": lambda tensor, dim=None: list(tensor.shape) if dim is None else tensor.shape[dim],
    "dim": lambda tensor: tensor.dim(), "numel": lambda tensor: tensor.numel(), "len": lambda tensor: tensor.shape[0],
    "is_floating_point": lambda tensor: tensor.is_floating_point(), "is_complex": lambda tensor: tensor.is_complex(),
    "Int": int, "Float": float, "Bool": bool, "IntImplicit": int, "FloatImplicit": float,
    "ScalarImplicit": lambda tensor: tensor.item(),
}  # fmt: skip
"""Facts of a tensor, as Python gives them: sizes may be symbols of an export."""
_SAME = ("unchecked_cast", "unchecked_unwrap_optional", "data", "annotate", "NumToTensor")
_NO = ("is_cuda", "is_nested", "is_sparse", "is_quantized", "is_meta", "is_mkldnn", "is_xpu", "is_mps", "is_ipu")
PRIM: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(_NO, lambda tensor: False),
    "dtype": lambda tensor: DTYPES.index(tensor.dtype), "device": lambda tensor: torch.device("cpu"),
    "layout": lambda tensor: 0, "requires_grad": lambda tensor: True, "type": lambda device: "cpu",
    **dict.fromkeys(_SAME, lambda value: value),
    "index": lambda device: None, "Uninitialized": lambda: None,
    "TupleIndex": operator.getitem, "TupleConstruct": lambda *each: each, "ListConstruct": lambda *each: list(each),
    "DictConstruct": lambda *each: dict(zip(each[::2], each[1::2], strict=True)),
    "rangelist": lambda count: list(range(count)), "min": _least, "max": _most, "abs": abs, "Print": lambda *each: None,
}  # fmt: skip
"""Operators of the namespace prim with at most one result."""
