"""Functions that are written out and become the module of their name: activations, softmax, norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch._ops import OpOverload

from cpupack.graph.tags import OTHER_TYPE
from cpupack.stages.capture.rewrites.cones import Cone, cones, is_pointwise
from cpupack.stages.capture.rewrites.tools import module_of, new_call, new_module, replace, shape

_ACTIVATIONS: tuple[tuple[nn.Module, str], ...] = (
    (nn.Identity(), "identity"), (nn.ReLU(), "relu"), (nn.ReLU6(), "relu6"), (nn.Hardswish(), "hardswish"),
    (nn.Hardsigmoid(), "hardsigmoid"), (nn.SiLU(), "silu"), (nn.Sigmoid(), "sigmoid"), (nn.Tanh(), "tanh"),
    (nn.GELU(), "gelu"), (nn.GELU("tanh"), "gelu"), (nn.Mish(), "mish"), (nn.Softplus(), "softplus"),
    (nn.Softsign(), "softsign"), (nn.LogSigmoid(), "logsigmoid"), (nn.ELU(), "elu"), (nn.SELU(), "selu"),
    (nn.Hardtanh(), "hardtanh"),
)  # fmt: skip
_POINTS = torch.cat(
    [
        torch.zeros(1, dtype=torch.float64),  # the middle of a linspace is not exactly 0
        torch.linspace(-20.0, 20.0, 4001, dtype=torch.float64),
        torch.linspace(-1.5e-2, 1.5e-2, 301, dtype=torch.float64),
    ]
)
_FAR_POINTS = torch.tensor([-1e9, -1e4, -300.0, -50.0, 50.0, 300.0, 1e4, 1e9], dtype=torch.float64)
"""A clamp at 100 is no identity. Where a function overflows here, it overflows for its author too."""
_ENDLESS = torch.tensor([-torch.inf, torch.inf, torch.nan], dtype=torch.float64)
_TOLERANCE = 1e-6
"""Of float64 values: written with constants of float32 (0.7978846), a function is off by 1e-8."""
_LARGEST_EPS = 1e-2
_GLOBAL_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_REDUCTIONS = (torch.mean, torch.sum, torch.amax)


def name_activations(graph: fx.GraphModule) -> bool:
    """Turn an activation that is written out into its module: ``x * sigmoid(x)``, ``x * relu6(x + 3) / 6``, GELU."""
    changed = False
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in reversed(list(graph.graph.nodes)):
        if node.op != "call_function" or not node.users or not is_pointwise(graph, node):
            continue
        for cone in cones(graph, node, lambda each, like=node: _same_shape(graph, each, like), order):  # type: ignore[misc]
            found = _activation(cone) if shape(cone.source) == shape(node) else None
            if found is None:
                continue
            module, word = found
            if isinstance(module, nn.Identity):
                replace(node, cone.source)
            else:
                replace(node, new_module(graph, _again(module), cone.source, node, word))
            changed = True
            break
    return changed


def _same_shape(graph: fx.GraphModule, node: fx.Node, like: fx.Node) -> bool:
    return is_pointwise(graph, node) and shape(node) == shape(like) and OTHER_TYPE not in node.meta


def _activation(cone: Cone) -> tuple[nn.Module, str] | None:
    values, far = cone.at(_POINTS.clone()), cone.at(_FAR_POINTS.clone())
    if values is None or far is None or not torch.isfinite(values).all():
        return None
    known = torch.isfinite(far)
    endless = cone.at(_ENDLESS.clone())
    return next(
        (
            each
            for each in _ACTIVATIONS
            if _keeps_infinities(each[0], endless)
            and _same(each[0](_POINTS.clone()), values)
            and _equal(each[0](_FAR_POINTS.clone())[known], far[known])
        ),
        None,
    )


def _keeps_infinities(module: nn.Module, values: torch.Tensor | None) -> bool:
    """Whether a function replaces no infinity that an activation keeps, as ``x.nan_to_num()`` does, and no NaN.

    ``torch.where(x > 0, x, 0)`` is a ReLU, although it has a zero for NaN.
    """
    if values is None:
        return False
    kept = ~torch.isfinite(module(_ENDLESS.clone()))
    replaced = kept & torch.isfinite(values)
    return not bool(replaced[:2].any() if not isinstance(module, nn.Identity) else replaced.any())


def _same(expected: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether these are one function's values at the points. One that is 0 at 0 is so exactly: a guard may be 1e-20."""
    at_zero = _POINTS == 0
    return _equal(expected, values) and torch.equal(expected[at_zero] == 0, values[at_zero] == 0)


def _equal(expected: torch.Tensor, values: torch.Tensor) -> bool:
    tolerance = _TOLERANCE * (expected.abs() + _TOLERANCE).clamp(min=1e-3)
    # clamp_min(1e-12) is no ReLU: what divides by it must not divide by zero
    zero = (expected == 0) | (values == 0)
    return bool(((expected - values).abs() <= torch.where(zero, 1e-14, tolerance)).all())


def _again(module: nn.Module) -> nn.Module:
    return nn.GELU(module.approximate) if isinstance(module, nn.GELU) else type(module)()


def name_norms(graph: fx.GraphModule) -> bool:
    """Turn a norm or a softmax that is written out from means into its module, without weights."""
    changed = False
    order = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in reversed(list(graph.graph.nodes)):
        if node.op != "call_function" or not node.users or not is_pointwise(graph, node):
            continue
        for cone in cones(graph, node, lambda each: _of_norm(graph, each), order):
            dims = _reduced(cone)
            if shape(cone.source) != shape(node) or dims is None:
                continue
            found = next((each for each in _norms(cone, dims) if _same_function(cone, *each)), None)
            if found is not None:
                module, axes, word = found
                replace(node, _put(graph, module, axes, word, cone.source, node))
                changed = True
                break
    return changed


def _of_norm(graph: fx.GraphModule, node: fx.Node) -> bool:
    return is_pointwise(graph, node) or _dims_of(graph, node) is not None


def _dims_of(graph: fx.GraphModule, node: fx.Node) -> tuple[int, ...] | None:
    """Return the dimensions that a reduction goes over, None for any other call."""
    rank = len(shape(node))
    if _is_global_pool(graph, node):
        return tuple(range(2, rank))
    if node.op != "call_function" or not (node.target in _REDUCTIONS or _is_variance(node)) or len(node.args) < 2:
        return None
    dims = node.args[1]
    if not isinstance(dims, list | tuple) or rank != len(shape(node.args[0])):
        return None
    return tuple(sorted(each % rank for each in dims if isinstance(each, int)))


def _is_global_pool(graph: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(graph, node)
    return type(module) in _GLOBAL_POOLS and all(each == 1 for each in module.output_size)  # type: ignore[union-attr]


def _is_variance(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.name in {"aten::var", "aten::std"}


def _reduced(cone: Cone) -> tuple[int, ...] | None:
    """Return the dimensions that all reductions of a cone go over, None where there is none or they differ."""
    found = {_dims_of(cone.graph, node) for node in cone.members} - {None}
    return found.pop() if len(found) == 1 else None


Axes = tuple[int, ...] | None
"""The permutation to the layout that a module works in, None for the tensor's own."""


def _norms(cone: Cone, dims: tuple[int, ...]) -> Iterator[tuple[nn.Module, Axes, str]]:
    """Yield the modules that a cone which reduces over ``dims`` may be."""
    sizes = shape(cone.source)
    rank = len(sizes)
    axes: Axes = None
    if dims != tuple(range(rank - len(dims), rank)):
        axes = (*(each for each in range(rank) if each not in dims), *dims)
    normalized = tuple(sizes[each] for each in dims)
    if len(dims) == 1:
        yield nn.Softmax(dim=dims[0] - rank), None, "softmax"
    for eps in sorted({0.0, *(each for each in cone.numbers() if 0.0 < each <= _LARGEST_EPS)}, reverse=True):
        if dims == tuple(range(1, rank)) and rank > 2:
            yield nn.GroupNorm(1, sizes[1], eps=eps), None, "group_norm"
        elif dims == tuple(range(2, rank)) and rank > 3:
            kind = nn.InstanceNorm2d if rank == 4 else nn.InstanceNorm3d
            yield kind(sizes[1], eps=eps, affine=True), None, "instance_norm"
        else:
            yield nn.LayerNorm(normalized, eps=eps), axes, "layer_norm"
        yield nn.RMSNorm(normalized, eps=eps), axes, "rms_norm"


def _same_function(cone: Cone, module: nn.Module, axes: Axes, _: str) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape(cone.source), generator=generator, dtype=torch.float64)
    for probe in (x, x * 3e-3, x + 1.5):  # so small that the epsilon counts, and far from zero mean
        values = cone.at(probe.clone())
        if values is None or not _equal(_permuted(module.double(), axes, probe), values):
            return False
    return True


def _permuted(module: nn.Module, axes: Axes, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = module(x) if axes is None else module(x.permute(axes)).permute(_inverse(axes))
    return result


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(each) for each in range(len(axes)))


def _put(graph: fx.GraphModule, module: nn.Module, axes: Axes, word: str, x: fx.Node, like: fx.Node) -> fx.Node:
    module = module.float()
    if axes is None:
        return new_module(graph, module, x, like, word)
    moved = tuple(shape(x)[each] for each in axes)
    turned = new_call(graph, torch.permute, (x, axes), like, result=moved)
    normed = new_module(graph, module, turned, like, word, moved)
    return new_call(graph, torch.permute, (normed, _inverse(axes)), like, result=shape(like))
