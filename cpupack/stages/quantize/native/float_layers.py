"""Layers with weights and pools in FP32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from cpupack.graph.names import core
from cpupack.graph.vocabulary import BATCH_NORMS
from cpupack.stages.quantize.native import float_videos
from cpupack.stages.quantize.native.bridges import as_floats
from cpupack.stages.quantize.native.builder import Builder
from cpupack.stages.quantize.native.calls import pair, shape_of, triple
from cpupack.stages.quantize.native.filters import bias_of, floats_of
from cpupack.stages.quantize.native.float_functions import of_module
from cpupack.stages.quantize.native.float_resampling import average
from cpupack.stages.quantize.native.transforms import layer_of
from cpupack.stages.quantize.native.walks import Fixed, Function, Instruction, View, Windows, dense_steps

MOST_TAPS = 4096
"""``MOST_TAPS`` of kernels/engine/validate_floats.c."""
Array = npt.NDArray[np.float32]


def with_weights(b: Builder, node: fx.Node) -> View:
    """Lower a convolution, a linear layer or a BatchNorm with its weights in FP32, and what was fused after it."""
    module = b.calls.module(node)
    assert module is not None
    layer: Any = core(module)
    source = node.all_input_nodes[0]
    if isinstance(layer, nn.Linear):
        found = _linear(b, node, layer)
    elif isinstance(layer, BATCH_NORMS):
        found = _batch_norm(b, node, layer)
    elif isinstance(layer, nn.Conv3d):
        found = float_videos.convolution(b, node, layer)
    elif isinstance(layer, nn.ConvTranspose3d):
        found = float_videos.transposed(b, node, layer)
    else:
        found = _convolution(b, node, source, layer)
    for each in list(module)[1:] if isinstance(module, nn.Sequential) else []:
        code = of_module(each)
        if code is None:
            raise b.calls.refusal(node, f"with {type(each).__name__}")
        b.floats.map(found, found, None, code)
    return found


def _linear(b: Builder, node: fx.Node, layer: nn.Linear) -> View:
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    one = len(view.shape) == 1
    rows = View(view.buffer, (1, *view.shape), (0, *view.steps), view.first) if one else view
    found = _product(b, rows, layer.weight.detach(), layer)
    return View(found.buffer, found.shape[1:], found.steps[1:], found.first) if one else found


def _batch_norm(b: Builder, node: fx.Node, layer: Any) -> View:
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node))
    if layer.running_mean is None or layer.running_var is None:
        raise b.calls.refusal(node, "without running statistics")
    factor = torch.rsqrt(layer.running_var.double() + layer.eps) * layer.weight.detach().double()
    term = layer.bias.detach().double() - layer.running_mean.double() * factor
    shape = (-1, *[1] * (len(view.shape) - 1))
    out = b.floats.map(
        b.floats.like(view), view, Fixed(factor.float().reshape(shape)), [Instruction(Function.MULTIPLY)]
    )
    return b.floats.map(out, out, Fixed(term.float().reshape(shape)), [Instruction(Function.ADD)])


def _convolution(b: Builder, node: fx.Node, source: fx.Node, layer: Any) -> View:
    view = _image(b, node, source)
    weight = layer.weight.detach()
    weight = weight[:, :, None] if weight.ndim == 3 else weight
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d)
    if isinstance(layer, nn.Conv1d) and view.shape[0] == 1 and not any(triple(layer.padding, 1, 0)):
        return _frames(b, view, shape_of(node)[-1], layer)
    inputs, groups = view.shape[0], layer.groups
    if math.prod(weight.shape[2:]) > MOST_TAPS + 4 * math.prod(view.shape[1:]):
        raise b.calls.refusal(node, "of so many taps")
    height, width = shape_of(node)[-2:] if len(shape_of(node)) == 4 else (1, shape_of(node)[-1])
    fields: dict[str, float] = {"runs": groups}
    for name, setting, other in (
        ("stride", layer.stride, 1), ("pad", layer.padding, 0), ("dilation", layer.dilation, 1)
    ):  # fmt: skip
        fields[f"{name}_h"], fields[f"{name}_w"] = triple(setting, layer.weight.ndim - 2, other)[1:]
    fields["kernel_h"], fields["kernel_w"] = weight.shape[2:]
    if transposed:
        outputs, kind = weight.shape[1] * groups, Windows.TRANSPOSED
        split = weight.reshape(groups, inputs // groups, weight.shape[1], *weight.shape[2:]).permute(0, 3, 4, 1, 2)
    elif groups == inputs == len(weight):
        outputs, kind, split = len(weight), Windows.DEPTHWISE, weight[:, 0].permute(1, 2, 0)
    else:
        outputs, kind = len(weight), Windows.DENSE
        split = weight.reshape(groups, outputs // groups, *weight.shape[1:]).permute(0, 3, 4, 2, 1)
    constants = {"scales": floats_of(split), "biases": floats_of(bias_of(layer))}
    found = b.floats.windows(view, (outputs, height, width), kind, fields, constants)
    return _as_given(found, node)


def _frames(b: Builder, view: View, count: int, layer: nn.Conv1d) -> View:
    """Lower a convolution of one signal, such as a short-time Fourier transform, as a product of matrices.

    The rows are its windows where they lie: windows that overlap are not copied.
    """
    step = view.steps[2]
    steps = int(layer.stride[0]) * step, int(layer.dilation[0]) * step
    rows = View(view.buffer, (count, layer.kernel_size[0]), steps, view.first)
    return _product(b, rows, layer.weight.detach()[:, 0], layer).permuted((1, 0))


def _product(b: Builder, rows: View, weight: torch.Tensor, layer: nn.Linear | nn.Conv1d) -> View:
    """Append the product of rows with a layer's weights ``(outputs, inputs)``."""
    found = layer_of(b.floats, rows, weight) if layer.bias is None else None
    if found is not None:
        return found
    return b.floats.multiply(rows, Fixed(weight.t().contiguous()), bias=floats_of(bias_of(layer)))


def max_pool(b: Builder, node: fx.Node) -> View:
    """Lower ``nn.MaxPool1d`` and ``2d``."""
    module: Any = b.calls.module(node)
    if module.return_indices:
        raise b.calls.refusal(node, "with indices")
    return _pool(b, node, Windows.MAXIMUM, module.dilation, {})


def max_pool_of_volumes(b: Builder, node: fx.Node) -> View:
    """Lower ``nn.MaxPool3d``, dimension by dimension: each time over the rows, or the columns, of one image."""
    module: Any = b.calls.module(node)
    if module.return_indices:
        raise b.calls.refusal(node, "with indices")
    settings = [
        triple(each, 3, other)
        for each, other in (
            (module.kernel_size, 1), (module.stride or module.kernel_size, 1), (module.padding, 0), (module.dilation, 1)
        )
    ]  # fmt: skip
    view = b.floats.view(as_floats(b, node.all_input_nodes[0], node)).permuted((1, 2, 3, 0))
    for axis in (2, 0, 1):  # the middle one last: it needs a copy
        kernel, stride, pad, dilation = (each[axis] for each in settings)
        if kernel == stride == 1:
            continue
        order = (1, 0, 2, 3) if axis == 1 else (0, 1, 2, 3)
        view = b.floats.side_by_side(view.permuted(order))
        frames, height, width, channels = view.shape
        length = shape_of(node)[2 + axis]
        rows, columns = (frames * height, width) if axis == 2 else (frames, height * width)
        image = View(view.buffer, (channels, rows, columns), (1, columns * channels, channels), view.first)
        along, across = "wh" if axis == 2 else "hw"
        fields: dict[str, float] = {f"kernel_{across}": 1, f"stride_{across}": 1, f"pad_{across}": 0}
        fields |= {f"kernel_{along}": kernel, f"stride_{along}": stride, f"pad_{along}": pad}
        fields |= {f"dilation_{along}": dilation, f"dilation_{across}": 1}
        size = (channels, rows, length) if axis == 2 else (channels, length, columns)
        found = b.floats.windows(image, size, Windows.MAXIMUM, fields, {})
        shape = (frames, height, length, channels) if axis == 2 else (length, height, width, channels)
        view = View(found.buffer, shape, dense_steps(shape), found.first).permuted(order)
    return view.permuted((3, 0, 1, 2))


def average_pool(b: Builder, node: fx.Node) -> View:
    """Lower ``nn.AvgPool1d`` and ``2d``; windows that end beyond the padding are products with their weights."""
    module: Any = b.calls.module(node)
    fields = _settings(node, module, 1)
    lengths = _image(b, node, node.all_input_nodes[0]).shape[1:]
    sizes = shape_of(node)[-2:] if len(shape_of(node)) == 4 else (1, shape_of(node)[-1])
    names = zip(lengths, sizes, "hw", strict=True)
    if any(
        (size - 1) * fields[f"stride_{of}"] - fields[f"pad_{of}"] + fields[f"kernel_{of}"]
        > length + fields[f"pad_{of}"]
        for length, size, of in names
    ):
        return average(b, node)
    count = fields["kernel_h"] * fields["kernel_w"]
    divisor = getattr(module, "divisor_override", None) or (count if module.count_include_pad else 0)
    return _pool(b, node, Windows.AVERAGE, 1, {"scale": 1.0 / divisor if divisor else 0.0})


def _pool(b: Builder, node: fx.Node, kind: Windows, dilation: Any, more: dict[str, float]) -> View:
    view = _image(b, node, node.all_input_nodes[0])
    height, width = shape_of(node)[-2:] if len(shape_of(node)) == 4 else (1, shape_of(node)[-1])
    fields = _settings(node, b.calls.module(node), dilation) | more
    return _as_given(b.floats.windows(view, (view.shape[0], height, width), kind, fields, {}), node)


def _settings(node: fx.Node, module: Any, dilation: Any) -> dict[str, float]:
    fields: dict[str, float] = {}
    sequence = len(shape_of(node)) == 3
    for name, setting, other in (
        ("kernel", module.kernel_size, 1), ("stride", module.stride or module.kernel_size, 1),
        ("pad", module.padding, 0), ("dilation", dilation, 1),
    ):  # fmt: skip
        height, width = pair(setting)
        fields[f"{name}_h"], fields[f"{name}_w"] = other if sequence else height, width
    return fields


def _image(b: Builder, node: fx.Node, source: fx.Node) -> View:
    """Return an operand as ``(channels, height, width)``: a sequence is an image of one row."""
    view = b.floats.channels_last(as_floats(b, source, node))
    if len(view.shape) == 2:
        return View(view.buffer, (view.shape[0], 1, view.shape[1]), (view.steps[0], 0, view.steps[1]), view.first)
    if len(view.shape) != 3:
        raise b.calls.refusal(node, "of three dimensions")
    return view


def _as_given(found: View, node: fx.Node) -> View:
    if len(shape_of(node)) == 4:
        return found
    return View(found.buffer, (found.shape[0], found.shape[2]), (found.steps[0], found.steps[2]), found.first)
