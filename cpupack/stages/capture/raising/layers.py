"""Handlers of layers with weights and of normalizations: each becomes a module with its own constant parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.errors import ModelError
from cpupack.stages.capture.raising.raiser import NotRaised, Raiser, name_of, numbers
from cpupack.stages.capture.raising.shapes import reshaped
from cpupack.stages.capture.raising.side_by_side import matrices

_CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_SAME_VALUES = ("expand", "view", "reshape", "_unsafe_view", "clone", "unsqueeze")
_BATCHED = 3
_INSTANCE_NORMS: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _parameter(value: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone().float().contiguous(), requires_grad=False)


def _convolve(r: Raiser, a: dict[str, Any]) -> fx.Node:
    weight, bias = r.tensor(a["weight"]), r.tensor(a["bias"])
    assert weight is not None
    spatial = weight.ndim - 2
    x = r.activation(a["input"])
    if len(r.shape(a["input"])) != spatial + 2:
        raise NotRaised  # an input without a batch
    stride, dilation = numbers(a["stride"], spatial), numbers(a["dilation"], spatial)
    padding = a["padding"]
    if a.get("transposed", False):
        return _transpose(r, x, weight, bias, a, spatial)
    if isinstance(padding, str):
        x, padding = _spell_out(r, x, padding, weight.shape[2:], stride, dilation)
    conv = _CONVS[spatial - 1](
        weight.shape[1] * a["groups"], weight.shape[0], tuple(weight.shape[2:]), stride, numbers(padding, spatial),
        dilation, a["groups"], bias=bias is not None, device="meta",
    )  # fmt: skip
    return _with_weights(r, conv, weight, bias, x, a["weight"], f"conv{spatial}d")


def _spell_out(
    r: Raiser, x: fx.Node, padding: str, kernel: torch.Size, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[fx.Node, tuple[int, ...]]:
    """Return the input and the padding in numbers of ``padding="same"``; an odd total pads more at the end."""
    if padding == "valid":
        return x, (0,) * len(kernel)
    total = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if all(each % 2 == 0 for each in total):
        return x, tuple(each // 2 for each in total)
    pads = [side for each in reversed(total) for side in (each // 2, each - each // 2)]
    return r.call(F.pad, x, pads, "constant", 0.0, word="pad"), (0,) * len(kernel)


def _transpose(
    r: Raiser, x: fx.Node, weight: torch.Tensor, bias: torch.Tensor | None, a: dict[str, Any], spatial: int
) -> fx.Node:
    groups = a["groups"]
    conv = _TRANSPOSED[spatial - 1](
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), numbers(a["stride"], spatial),
        numbers(a["padding"], spatial), numbers(a["output_padding"], spatial), groups, bias=bias is not None,
        dilation=numbers(a["dilation"], spatial), device="meta",
    )  # fmt: skip
    return _with_weights(r, conv, weight, bias, x, a["weight"], f"conv_transpose{spatial}d")


def _transposed(r: Raiser, a: dict[str, Any]) -> fx.Node:
    return _convolve(r, a | {"transposed": True})


def _with_weights(
    r: Raiser, module: Any, weight: torch.Tensor, bias: torch.Tensor | None, x: fx.Node, source: Any, word: str
) -> fx.Node:
    module.weight = _parameter(weight)
    module.bias = None if bias is None else _parameter(bias)
    return r.module(module, x, word=word, owner=r.weight_name(source))


def _linear(r: Raiser, a: dict[str, Any]) -> fx.Node:
    weight, bias = r.tensor(a["weight"]), r.tensor(a["bias"])
    assert weight is not None
    if not r.is_float(a["input"]):
        raise NotRaised
    if weight.ndim == 1 and bias is None:
        return _product_of_vector(r, a["input"], weight, a["weight"])
    if weight.ndim != 2:
        raise NotRaised
    return _product(r, a["input"], weight, bias, a["weight"])


def _product_of_vector(r: Raiser, x: Any, weight: torch.Tensor, source: Any) -> fx.Node:
    """A sum of the last dimension with a weight for each value, which is gone: a linear layer of one result."""
    before, after = r.shape(x), r.shape()
    if len(before) < 2:
        raise NotRaised
    return reshaped(r, _product(r, x, weight[None], None, source), (*before[:-1], 1), after, r.dynamic())


def _product(r: Raiser, x: Any, weight: torch.Tensor, bias: torch.Tensor | None, source: Any) -> fx.Node:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return _with_weights(r, linear, weight, bias, r.activation(x), source, "linear")


def _addmm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    """``beta * bias + alpha * x @ weight``: a linear layer with its weights the other way round (HF's Conv1D)."""
    weight, bias = r.tensor(a["mat2"]), r.tensor(a["self"])
    assert weight is not None
    assert bias is not None
    if bias.ndim != 1 or r.is_known(a["mat1"]):
        raise NotRaised
    return _product(r, a["mat1"], weight.t() * a["alpha"], bias * a["beta"], a["mat2"])


def _matmul(r: Raiser, a: dict[str, Any]) -> fx.Node:
    left, right = a["self"], a.get("mat2", a.get("vec", a.get("other")))
    if r.is_known(right) and not r.is_known(left):
        weight = r.tensor(right)
        assert weight is not None
        if weight.ndim == 2 and len(r.shape(left)) >= 2:
            return _product(r, left, weight.t(), None, right)
        if weight.ndim == 1 and r.is_float(left):
            return _product_of_vector(r, left, weight, right)
    if min(len(r.shape(left)), len(r.shape(right))) < 2:
        raise NotRaised
    if r.is_float(left) and not r.is_known(left) and r.shape()[:-1] == r.shape(left)[:-1]:
        matrix = _matrix_of_all(r, right)
        if matrix is not None:
            return _product(r, left, matrix.t(), None, right)
    return matrices(r, left, right)


def _matrix_of_all(r: Raiser, right: Any) -> torch.Tensor | None:
    """Return the constant matrix that a product has for each of its rows, as torch writes linear layers out:
    ``x @ weight.expand(len(x), -1, -1)``. None for other products.
    """
    found, shape = right, r.shape(right)
    while not r.is_known(found):
        source = found.args[0] if isinstance(found, fx.Node) and name_of(found) in _SAME_VALUES else None
        if not isinstance(source, fx.Node) or r.shape(source)[-2:] != shape[-2:]:
            return None
        found = source
    value = r.tensor(found)
    if value is None or len(shape) != _BATCHED or value.shape[-2:] != shape[-2:]:
        return None
    matrices_of_it = value.reshape(-1, *shape[-2:])
    if len(matrices_of_it) == 1 and shape[0] == 1 and not r.dynamic(right)[0]:
        return None  # of the only layer side by side
    return matrices_of_it[0] if bool((matrices_of_it == matrices_of_it[:1]).all()) else None


def _attention(r: Raiser, a: dict[str, Any]) -> fx.Node:
    if a["dropout_p"]:
        raise NotRaised
    operands = [r.operand(a[name]) for name in ("query", "key", "value", "attn_mask")]
    extra = {key: a[key] for key in ("scale", "enable_gqa") if a.get(key)}
    return r.call(
        F.scaled_dot_product_attention, *operands, 0.0, bool(a["is_causal"]), word="scaled_dot_product_attention",
        **extra,
    )  # fmt: skip


def _batch_norm(r: Raiser, a: dict[str, Any]) -> Any:
    mean, variance = r.tensor(a["running_mean"]), r.tensor(a["running_var"])
    if a.get("training", False) or mean is None or variance is None:
        raise _batch_statistics(r)
    shape = r.shape(a["input"])
    if len(shape) not in _BATCH_NORMS:
        raise NotRaised
    norm = _BATCH_NORMS[len(shape)](len(mean), eps=a["eps"])
    norm.running_mean, norm.running_var = mean.detach().clone().float(), variance.detach().clone().float()
    _fill(norm, r.tensor(a["weight"]), r.tensor(a["bias"]))
    return r.module(norm, r.activation(a["input"]), word="batch_norm", owner=r.weight_name(a["weight"]))


def _batch_norm_of_several(r: Raiser, a: dict[str, Any]) -> list[Any]:
    return [_batch_norm(r, a), None, None]


def _batch_statistics(r: Raiser) -> ModelError:
    scopes = [path for path, _ in r.node.meta.get("nn_module_stack", {}).values()]
    name = (scopes[-1] if scopes else "") or "the model"
    return ModelError(
        f"the batch norm {name} normalizes by the statistics of each batch, so an answer would depend on the other "
        "samples of its batch",
        hint="train it with track_running_stats=True and call eval(), or use GroupNorm or InstanceNorm",
    )


def _fill(norm: Any, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    """Set the weight and bias of a normalization, ones and zeros where there are none."""
    if weight is not None:
        norm.weight = _parameter(weight)
    if bias is not None:
        norm.bias = _parameter(bias)


def _layer_norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    norm = nn.LayerNorm(tuple(a["normalized_shape"]), eps=a["eps"])
    _fill(norm, r.tensor(a["weight"]), r.tensor(a["bias"]))
    return r.module(norm, r.activation(a["input"]), word="layer_norm", owner=r.weight_name(a["weight"]))


def _layer_norm_of_several(r: Raiser, a: dict[str, Any]) -> list[Any]:
    return [_layer_norm(r, a), None, None]


def _rms_norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    eps = torch.finfo(torch.float32).eps if a["eps"] is None else a["eps"]
    norm = nn.RMSNorm(tuple(a["normalized_shape"]), eps=eps)
    _fill(norm, r.tensor(a["weight"]), None)
    return r.module(norm, r.activation(a["input"]), word="rms_norm", owner=r.weight_name(a["weight"]))


def _group_norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    channels = r.shape(a["input"])[1]
    if len(r.shape(a["input"])) == 2:
        return _group_norm_of_rows(r, a, channels)
    norm = nn.GroupNorm(a["num_groups"], channels, eps=a["eps"])
    _fill(norm, r.tensor(a["weight"]), r.tensor(a["bias"]))
    return r.module(norm, r.activation(a["input"]), word="group_norm", owner=r.weight_name(a["weight"]))


def _group_norm_of_several(r: Raiser, a: dict[str, Any]) -> list[Any]:
    """``native_group_norm``, as ``run_decompositions()`` has it: the mean and the spread are read by nobody."""
    if len(r.shape(a["input"])) == 2:
        raise NotRaised
    return [_group_norm(r, {**a, "num_groups": a["group"]}), None, None]


def _group_norm_of_rows(r: Raiser, a: dict[str, Any], channels: int) -> fx.Node:
    """A norm of each group of a row. The rows may be all tokens of all samples, which no group norm could tell."""
    groups = a["num_groups"]
    norm = nn.LayerNorm(channels // groups, eps=a["eps"], elementwise_affine=False)
    x = r.call(torch.reshape, r.activation(a["input"]), (-1, groups, channels // groups), word="groups")
    owner = r.weight_name(a["weight"])
    x = r.call(torch.reshape, r.module(norm, x, word="group_norm", owner=owner), (-1, channels), word="groups")
    for function, name in ((torch.mul, "weight"), (torch.add, "bias")):
        value = r.tensor(a[name])
        if value is not None:
            x = r.call(function, x, r.attribute(value, f"{owner or 'group_norm'}.{name}"))
    return x


def _instance_norm(r: Raiser, a: dict[str, Any]) -> fx.Node:
    shape = r.shape(a["input"])
    if not a["use_input_stats"]:  # running statistics: a batch norm by another name
        return _batch_norm(r, a)  # type: ignore[no-any-return]  # a node, where it does not raise
    norm = _INSTANCE_NORMS[len(shape)](shape[1], eps=a["eps"], affine=True)
    _fill(norm, r.tensor(a["weight"]), r.tensor(a["bias"]))
    return r.module(norm, r.activation(a["input"]), word="instance_norm", owner=r.weight_name(a["weight"]))


def _embedding(r: Raiser, a: dict[str, Any]) -> fx.Node:
    weight = r.tensor(a["weight"])
    assert weight is not None
    table = nn.Embedding(weight.shape[0], weight.shape[1], _weight=torch.empty(weight.shape, device="meta"))
    table.weight = _parameter(weight)
    return r.module(table, r.activation(a["indices"]), word="embedding", owner=r.weight_name(a["weight"]))


_BAG_MODES: tuple[Any, ...] = (torch.sum, torch.mean, torch.amax)


def _embedding_bag(r: Raiser, a: dict[str, Any]) -> list[Any]:
    """Bags of equal sizes, ``(batch, ids)`` in: an embedding, and a sum, mean or maximum over the ids.

    What the layer was given as rows is here one list of ids, and where each bag begins in it. With offsets that count
    the samples, as DLRM has them, each bag is one id.
    """
    weight, flat, offsets = r.tensor(a["weight"]), a["indices"], a["offsets"]
    assert weight is not None
    mode, padding = a["mode"], a.get("padding_idx", -1)
    if not isinstance(flat, fx.Node) or not isinstance(offsets, fx.Node):
        raise NotRaised
    if offsets.target is torch.ops.aten.arange.default and r.shape(flat) == r.shape(offsets):
        rows, several = flat, 1
    else:
        rows, several = _rows_of_bags(r, flat, offsets)
    pads = padding is not None and padding >= 0
    if a["include_last_offset"] or (pads and _BAG_MODES[mode] is torch.amax):
        raise NotRaised  # a maximum leaves the padding out
    if pads:
        weight = weight.clone()
        weight[padding] = 0.0
    ids = r.call(torch.reshape, r.activation(rows), (-1, 1)) if rows is flat else r.activation(rows)
    found = _looked_up(r, weight, ids, r.weight_name(a["weight"]))
    if pads and _BAG_MODES[mode] is torch.mean:  # over the ids that are no padding; zeros where there are none
        ones = torch.ones(len(weight), 1)
        ones[padding] = 0.0
        count = r.call(torch.sum, _looked_up(r, ones, ids, ""), (1,), False)
        return [
            r.call(torch.div, r.call(torch.sum, found, (1,), False), r.call(torch.clamp, count, 1.0, None)),
            None, None, None,
        ]  # fmt: skip
    if a["per_sample_weights"] is not None:
        shares = a["per_sample_weights"]
        if rows is not flat and isinstance(shares, fx.Node) and shares.args:
            shares = shares.args[0]
        if mode or not isinstance(shares, fx.Node) or r.shape(shares) != r.shape(rows):
            raise NotRaised
        share = r.call(torch.reshape, r.activation(shares), (-1, several, 1))
        found = r.call(torch.mul, found, share)
    return [r.call(_BAG_MODES[mode], found, (1,), False), None, None, None]


def _rows_of_bags(r: Raiser, flat: fx.Node, offsets: fx.Node) -> tuple[fx.Node, int]:
    """Return the rows of which a list of ids is made, and how many ids each has."""
    rows = flat.args[0] if flat.args else None
    if not isinstance(rows, fx.Node) or len(r.shape(rows)) != 2 or r.shape(flat) != (math.prod(r.shape(rows)),):
        raise NotRaised
    counted = str(offsets.target).startswith("aten.arange")
    if r.dynamic(rows) != (True, False) or not counted or r.shape(offsets) != r.shape(rows)[:1]:
        raise NotRaised
    return rows, r.shape(rows)[1]


def _looked_up(r: Raiser, weight: torch.Tensor, ids: fx.Node, owner: str) -> fx.Node:
    table = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    table.weight = _parameter(weight)
    return r.module(table, ids, word="embedding_bag", owner=owner)


HANDLERS = {
    "_embedding_bag": _embedding_bag,
    "embedding_bag": _embedding_bag,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolve),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("mm", "matmul", "bmm", "mv"), _matmul),
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "native_batch_norm"), _batch_norm_of_several),
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm_of_several,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "native_group_norm": _group_norm_of_several,
    "instance_norm": _instance_norm,
    "embedding": _embedding,
}
