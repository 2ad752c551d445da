"""The fused FP32 graph -> a program for the INT8 engine: which layers there are, in which order, on which buffers."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.ao.nn.intrinsic as nni
import torch.nn.functional as F  # noqa: N812 - the name every torch user reads
from torch import fx, nn

from cpupack.accuracy import sqnr_db
from cpupack.artifacts import CalibratedModel, LayerFact
from cpupack.errors import QuantizationError
from cpupack.graph.fused import ConvReLU6
from cpupack.graph.pixel_model import fold_normalization
from cpupack.graph.trace import record_shapes
from cpupack.recipe import Quantize
from cpupack.runtime.inputs import pixel_zero_point
from cpupack.runtime.preprocess import PreprocessSpec
from cpupack.stages.quantize.native.pack import (
    BLOCK,
    interleave_channels,
    pack_conv,
    pack_depthwise,
    pad_channels,
)
from cpupack.stages.quantize.native.program import Buffer, Flag, Layer, Op, Program
from cpupack.stages.quantize.native.values import Value, activation_of, is_relu, is_relu6, table_of, useful_range
from cpupack.stages.quantize.ranges import choose_range

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_ALIASES = (nn.Dropout, nn.Dropout2d, nn.Identity)
_ALIAS_CALLS = (F.dropout, F.dropout2d, "contiguous", "clone")
_FLATTENS = (torch.flatten, "flatten", torch.reshape, "view", "reshape")
_MEANS = (torch.mean, "mean")


def lower(
    calibrated: CalibratedModel, recipe: Quantize, input_shape: tuple[int, ...], preprocess: PreprocessSpec | None
) -> tuple[Program, tuple[LayerFact, ...]]:
    """Return the program of a fused graph with the ranges that the observer chooses, and what became of each layer.

    With ``preprocess`` the program takes uint8 pixels too, where the input is read by one plain convolution alone.
    Raises QuantizationError naming the first layer that the engine has no kernel for.
    """
    if not isinstance(calibrated.fused.module, fx.GraphModule):
        raise QuantizationError("the native engine takes models that torch.fx can trace")
    if len(input_shape) != 3:
        raise QuantizationError(f"the native engine takes images (channels, height, width); the input is {input_shape}")
    graph = copy.deepcopy(calibrated.fused.module)
    record_shapes(graph, torch.zeros(1, *input_shape))
    lowering = _Lowering(graph, calibrated, recipe, input_shape, preprocess)
    return lowering.run(), tuple(lowering.facts)


@dataclass(frozen=True)
class _Dense:
    """A convolution or linear layer as it is computed: FP32 weights ``(out, in / groups, kh, kw)`` and bias."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


class _Lowering:
    def __init__(
        self,
        graph: fx.GraphModule,
        calibrated: CalibratedModel,
        recipe: Quantize,
        input_shape: tuple[int, ...],
        preprocess: PreprocessSpec | None,
    ) -> None:
        self.graph, self.calibrated, self.recipe, self.preprocess = graph, calibrated, recipe, preprocess
        channels, height, width = input_shape
        self.program = Program(height, width, input_channels_float=channels)
        self.values: dict[fx.Node, Value] = {}
        self.facts: list[LayerFact] = []
        self.absorbed: set[fx.Node] = set()  # what another call's kernel does on the way
        self.result: fx.Node = next(node for node in graph.graph.nodes if node.op == "output").args[0]  # type: ignore[assignment]  # checked below

    def run(self) -> Program:
        if not isinstance(self.result, fx.Node):
            raise QuantizationError("the native engine returns one tensor; this model returns several")
        for node in self.graph.graph.nodes:
            if node.op == "output" or node in self.values or node in self.absorbed:
                continue
            if node.op == "placeholder":
                self._input(node)
            else:
                self._call(node)
        if not self.program.outputs:
            raise self._refusal(
                self.result, "as the last layer; the engine ends with a linear layer or a convolution to 1 x 1"
            )
        return self.program

    # ---- the graph ----

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _refusal(self, node: fx.Node, what: str = "") -> QuantizationError:
        module = self._module(node)
        kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        return QuantizationError(
            f"the native engine has no kernel for {node.target if module is not None else node.name} ({kind}) {what}".rstrip()
        )

    def _only_reader(self, node: fx.Node) -> fx.Node | None:
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and readers[0].op != "output" else None

    def _range(self, node: fx.Node) -> tuple[float, float]:
        stats = self.calibrated.stats.get(node.name)
        if stats is None:
            raise QuantizationError(f"no calibration data went through {node.name}")
        low, high = choose_range(stats, self.recipe.observer, 256, self.recipe.percentile)
        return low, min(high, 6.0) if is_relu6(self.graph, node) else high

    def _buffer(self, height: int, width: int, channels: int, limits: tuple[float, float]) -> int:
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        scale = (high - low) / 255.0
        if scale < torch.finfo(torch.float32).tiny:
            scale = 1.0  # always zero: any scale will do
        zero_point = min(max(round(-low / scale), 0), 255)
        return self.program.add_buffer(Buffer(height, width, channels, scale, zero_point))

    def _value(self, node: object, reader: fx.Node) -> Value:
        if not isinstance(node, fx.Node) or node not in self.values:
            raise self._refusal(reader, "with a constant operand")
        return self.values[node]

    def _read(self, number: int, halo: tuple[int, int], fill: int, reader: fx.Node) -> int:
        """Return a buffer with (at least) this halo: the same one where its border may be widened."""
        buffer = self.program.buffers[number]
        if halo == (0, 0):
            return number
        if buffer.fill is None or buffer.fill == fill:
            buffer.fill = fill
            buffer.halo = max(buffer.halo[0], halo[0]), max(buffer.halo[1], halo[1])
            return number
        copy = self.program.add_buffer(
            Buffer(buffer.height, buffer.width, buffer.channels, buffer.scale, buffer.zero_point, halo, fill)
        )
        same = np.arange(256, dtype=np.uint8)
        self._append(Layer(Op.TABLE, input=number, output=copy, constants={"table": same}))
        return copy

    def _append(self, layer: Layer, node: fx.Node | None = None, weight_sqnr_db: float | None = None) -> None:
        """Append a layer; ``node`` is the call whose result it makes, None for copies and second forms."""
        self.program.layers.append(layer)
        if node is None:
            return
        module = self._module(node)
        kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        result = self.program.buffers[layer.output] if layer.output >= 0 else None
        fact = LayerFact(
            name=str(node.target) if module is not None else node.name,
            kind=kind,
            precision="int8",
            kernel=f"cpupack::{layer.op.name.lower()}",
            scale=result.scale if result else None,
            zero_point=result.zero_point if result else None,
            weight_sqnr_db=weight_sqnr_db,
        )
        self.facts.append(fact)

    # ---- calls ----

    def _input(self, node: fx.Node) -> None:
        program = self.program
        number = self._buffer(
            program.input_height, program.input_width, program.input_channels_float, self._range(node)
        )
        buffer = program.buffers[number]
        fields = {"scale": 1.0 / buffer.scale, "output_zero_point": buffer.zero_point}
        self._append(Layer(Op.INPUT_FLOAT, Flag.ONLY_FLOAT, output=number, fields=fields))
        self.values[node] = Value(number)

    def _call(self, node: fx.Node) -> None:
        module = self._module(node)
        target = type(module) if module is not None else node.target
        if self._dense(node) is not None:
            self._convolve(node)
        elif target in _ADDS and len(node.args) == 2 and not node.kwargs:
            self._add(node)
        elif target in _PRODUCTS and len(node.args) == 2 and not node.kwargs:
            self._multiply(node)
        elif isinstance(module, _ALIASES) or target in _ALIAS_CALLS:
            self.values[node] = self._value(node.args[0], node)
        elif isinstance(module, nn.Flatten) or target in _FLATTENS:
            self._flatten(node, module)
        elif isinstance(module, nn.MaxPool2d) or target is F.max_pool2d:
            self._max_pool(node, module)
        elif isinstance(module, nn.AvgPool2d) or target is F.avg_pool2d:
            self._average_pool(node, module)
        elif isinstance(module, nn.AdaptiveAvgPool2d) or target is F.adaptive_avg_pool2d:
            self._adaptive_pool(node, module)
        elif target in _MEANS:
            self._mean(node)
        elif target in (torch.cat, torch.concat):
            self._concatenate(node)
        elif activation_of(self.graph, node) is not None:
            self._activate(node)
        else:
            raise self._refusal(node)

    def _dense(self, node: fx.Node) -> _Dense | None:
        module = self._module(node)
        if isinstance(module, nni.ConvReLU2d | nni.LinearReLU | ConvReLU6):
            module = module[0]
        if type(module) is nn.Linear:
            weight = module.weight[:, :, None, None]
            stride = padding = dilation = 1, 1
            padding, groups = (0, 0), 1
        elif type(module) is nn.Conv2d:
            if module.padding_mode != "zeros":
                return None
            weight, stride, dilation, groups = module.weight, module.stride, module.dilation, module.groups
            padding = _paddings(module)
            if padding is None:
                return None
        else:
            return None
        bias = module.bias if module.bias is not None else torch.zeros(len(weight))
        return _Dense(weight.detach(), bias.detach(), _pair(stride), _pair(padding), _pair(dilation), groups)

    def _convolve(self, node: fx.Node) -> None:
        """A convolution or linear layer with everything behind it that its kernel does on the way out."""
        dense = self._dense(node)
        assert dense is not None
        value = self._value(node.args[0], node)
        buffer = self.program.buffers[value.buffer]
        if value.flattened and (buffer.height, buffer.width) != (1, 1):
            weight = dense.weight.reshape(len(dense.weight), buffer.channels, buffer.height, buffer.width)
            dense = _Dense(weight, dense.bias, (1, 1), (0, 0), (1, 1), 1)
        elif isinstance(self._module(node), nn.Linear | nni.LinearReLU) and (buffer.height, buffer.width) != (1, 1):
            raise self._refusal(node, "on more than one position")
        height, width = _window(buffer, dense)
        depthwise = dense.groups == buffer.channels > 1
        if depthwise and len(dense.weight) != buffer.channels:
            raise self._refusal(node, f"with {len(dense.weight) // buffer.channels} outputs a channel")
        last, other = self._behind(node)
        step = node
        while step is not last:
            self.absorbed.add(step)
            step = next(iter(step.users))
        if last is self.result and not is_relu(self.graph, node) and last is node:
            if (height, width) != (1, 1):
                raise self._refusal(node, "with an image as the model's output")
            output, flags = -1, Flag.FLOAT_OUT
            self.program.outputs = len(dense.weight)
        else:
            flags = Flag(0)
            before = self._before_activation(node, last)
            output = self._buffer(height, width, len(dense.weight), self._range(last))
        fields: dict[str, float] = {}
        constants: dict[str, Any] = {}
        out_scale, out_zero = 1.0, 0
        if output >= 0:
            function = activation_of(self.graph, last) if last is not node else None
            result = self.program.buffers[output]
            out_scale, out_zero = result.scale, result.zero_point
            relu = is_relu(self.graph, last)
            if function is not None and not relu:
                limits = useful_range(function, self._range(before), result)
                inner = self.program.buffers[self._buffer(1, 1, 1, limits)]
                self.program.buffers.pop()
                constants["table"] = table_of(function, inner, result)
                flags |= Flag.TABLE
                out_scale, out_zero = inner.scale, inner.zero_point
            elif relu:
                fields["low"] = out_zero
        extra = 0.0
        if other is not None:
            flags |= Flag.RESIDUAL
            second = self.program.buffers[other.buffer]
            fields["scale2"] = second.scale / out_scale
            extra = -second.zero_point * second.scale / out_scale
        self._emit(
            node, dense, value.buffer, output, other, flags, fields, constants, (out_scale, out_zero, extra), depthwise
        )
        self.values[last] = Value(output, flattened=value.flattened or isinstance(self._module(node), nn.Linear))

    def _emit(
        self,
        node: fx.Node,
        dense: _Dense,
        source: int,
        output: int,
        other: Value | None,
        flags: Flag,
        fields: dict[str, float],
        constants: dict[str, Any],
        out: tuple[float, int, float],
        depthwise: bool,
    ) -> None:
        """Append the layer, twice where the first one may read pixels or floats."""
        program = self.program
        buffer = program.buffers[source]
        variants = [(source, dense, flags)]
        if self._reads_input(node):
            variants = [(source, dense, flags | Flag.ONLY_FLOAT)]
            if self.preprocess is not None and dense.groups == 1:
                program.input_channels_pixels = buffer.channels + 1
                pixels = Buffer(
                    buffer.height, buffer.width, buffer.channels + 1, 1.0, pixel_zero_point(self.preprocess)
                )
                number = program.add_buffer(pixels)
                self._append(Layer(Op.INPUT_PIXELS, Flag.ONLY_PIXELS, output=number))
                folded = _Dense(
                    fold_normalization(dense.weight, self.preprocess),
                    dense.bias, dense.stride, dense.padding, dense.dilation, 1,
                )  # fmt: skip
                variants.append((number, folded, flags | Flag.ONLY_PIXELS))
        for number, form, form_flags in variants:
            read = self._read(number, form.padding, program.buffers[number].zero_point, node)
            here = program.buffers[read]
            weights, weight_scales = quantize_weights(form.weight)
            sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
            out_scale, out_zero, extra = out
            scales = here.scale * weight_scales / out_scale
            biases = form.bias.double().numpy() / out_scale - here.zero_point * sums * scales + out_zero + extra
            layer_fields = {
                "kernel_h": form.weight.shape[2], "kernel_w": form.weight.shape[3],
                "stride_h": form.stride[0], "stride_w": form.stride[1],
                "pad_h": form.padding[0], "pad_w": form.padding[1],
                "dilation_h": form.dilation[0], "dilation_w": form.dilation[1],
                "channels_out": len(weights), **fields,
            }  # fmt: skip
            dilated = form.dilation != (1, 1)
            if depthwise and not flags & Flag.RESIDUAL:
                packed, several = pack_depthwise(weights[:, 0], form.stride[1], dilated=dilated)
                parts = {
                    "weights": packed,
                    "scales": interleave_channels(scales),
                    "biases": interleave_channels(biases),
                }
                op, layer_fields["runs"] = Op.DEPTHWISE, several
            else:
                try:
                    conv = pack_conv(weights, form.groups, dilated=dilated)
                except ValueError as error:
                    raise self._refusal(node, f"with {error}") from None
                parts = {
                    "weights": conv.weights,
                    "scales": pad_channels(scales, BLOCK),
                    "biases": pad_channels(biases, BLOCK),
                }
                op, layer_fields = Op.CONV, layer_fields | conv.fields()
            second = other.buffer if other is not None else -1
            layer = Layer(op, form_flags, read, second, output, layer_fields, parts | constants)
            rounded = weights * weight_scales.reshape(-1, 1, 1, 1)
            self._append(layer, None if form is not dense else node, sqnr_db(form.weight.numpy(), rounded))

    def _reads_input(self, node: fx.Node) -> bool:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op == "placeholder" and list(source.users) == [node]

    def _behind(self, node: fx.Node) -> tuple[fx.Node, Value | None]:
        """Return the last call that the kernel of ``node`` also does, and what it adds on the way."""
        last, other = node, None
        if self._module(node) is not None and isinstance(
            self._module(node), nni.ConvReLU2d | nni.LinearReLU | ConvReLU6
        ):
            return last, None
        reader = self._only_reader(node)
        if (
            reader is not None
            and reader.op == "call_function"
            and reader.target in _ADDS
            and len(reader.args) == 2
            and not reader.kwargs
        ):
            rest = [each for each in reader.args if each is not node]
            if len(rest) == 1 and isinstance(rest[0], fx.Node) and rest[0] in self.values:
                found = self.values[rest[0]]
                if self._same_size(node, found):
                    last, other = reader, found
                    reader = self._only_reader(last)
        if reader is not None and activation_of(self.graph, reader) is not None:
            last = reader
        return last, other

    def _same_size(self, conv: fx.Node, value: Value) -> bool:
        dense = self._dense(conv)
        assert dense is not None
        source, other = self.program.buffers[self.values[conv.args[0]].buffer], self.program.buffers[value.buffer]  # type: ignore[index]  # a node: it was lowered
        size = (*_window(source, dense), len(dense.weight))
        return size == (other.height, other.width, other.channels) and not value.flattened

    def _before_activation(self, node: fx.Node, last: fx.Node) -> fx.Node:
        """Return the call whose result goes into the activation ``last``."""
        before = last.args[0] if last is not node and activation_of(self.graph, last) is not None else last
        assert isinstance(before, fx.Node)
        return before

    def _add(self, node: fx.Node) -> None:
        first, second = (self._value(each, node) for each in node.args)
        a, b = self.program.buffers[first.buffer], self.program.buffers[second.buffer]
        if (a.height, a.width, a.channels) != (b.height, b.width, b.channels):
            raise self._refusal(node, "of different shapes")
        reader = self._only_reader(node)
        last = reader if reader is not None and is_relu(self.graph, reader) else node
        self.absorbed.add(node)
        output = self._buffer(a.height, a.width, a.channels, self._range(last))
        result = self.program.buffers[output]
        fields = {
            "scale": a.scale / result.scale, "scale2": b.scale / result.scale, "input_zero_point": a.zero_point,
            "input2_zero_point": b.zero_point, "output_zero_point": result.zero_point,
            "low": result.zero_point if last is not node else 0,
        }  # fmt: skip
        self._append(Layer(Op.ADD, input=first.buffer, input2=second.buffer, output=output, fields=fields), last)
        self.values[last] = Value(output)

    def _multiply(self, node: fx.Node) -> None:
        values = [self._value(each, node) for each in node.args]
        sizes = [(self.program.buffers[each.buffer].height, self.program.buffers[each.buffer].width) for each in values]
        gate = next((position for position in (0, 1) if sizes[position] == (1, 1)), None)
        if gate is None:
            raise self._refusal(node, "of two images")
        x, factor = (self.program.buffers[values[each].buffer] for each in (1 - gate, gate))
        if x.channels != factor.channels:
            raise self._refusal(node, "of different numbers of channels")
        output = self._buffer(x.height, x.width, x.channels, self._range(node))
        result = self.program.buffers[output]
        fields = {
            "scale": x.scale * factor.scale / result.scale, "input_zero_point": x.zero_point,
            "input2_zero_point": factor.zero_point, "output_zero_point": result.zero_point,
        }  # fmt: skip
        layer = Layer(Op.SCALE, input=values[1 - gate].buffer, input2=values[gate].buffer, output=output, fields=fields)
        self._append(layer, node)
        self.values[node] = Value(output)

    def _activate(self, node: fx.Node) -> None:
        function = activation_of(self.graph, node)
        assert function is not None
        value = self._value(node.args[0], node)
        source = self.program.buffers[value.buffer]
        output = self._buffer(source.height, source.width, source.channels, self._range(node))
        table = table_of(function, source, self.program.buffers[output])
        self._append(Layer(Op.TABLE, input=value.buffer, output=output, constants={"table": table}), node)
        self.values[node] = Value(output, value.flattened)

    def _flatten(self, node: fx.Node, module: nn.Module | None) -> None:
        value = self._value(node.args[0], node)
        buffer = self.program.buffers[value.buffer]
        features = buffer.height * buffer.width * buffer.channels
        shape = node.meta.get("shape")
        if shape is None or tuple(shape[1:]) != (features,):
            raise self._refusal(node, "to anything but one vector a sample")
        self.values[node] = Value(value.buffer, flattened=True)

    def _max_pool(self, node: fx.Node, module: nn.Module | None) -> None:
        kernel, stride, padding, dilation, ceil = _pooling(
            node, module, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        )
        value = self._value(node.args[0], node)
        source = self.program.buffers[value.buffer]
        height, width = self._pooled(node)
        padding = self._padding_for(
            source, (height, width), _pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation or 1)
        )
        read = self._read(value.buffer, padding[1], 0, node)
        output = self.program.add_buffer(Buffer(height, width, source.channels, source.scale, source.zero_point))
        fields = _window_fields(_pair(kernel), _pair(stride or kernel), padding[0], _pair(dilation or 1))
        self._append(Layer(Op.MAX_POOL, input=read, output=output, fields=fields), node)
        self.values[node] = Value(output)

    def _padding_for(
        self, source: Buffer, out: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
        padding: tuple[int, int], dilation: tuple[int, int],
    ) -> tuple[tuple[int, int], tuple[int, int]]:  # fmt: skip
        """Return the padding before the first pixel, and the halo that every window stays inside (ceil_mode)."""
        halo = [
            max(pad, (count - 1) * step - pad + (size - 1) * gap + 1 - length)
            for pad, count, step, size, gap, length in zip(
                padding, out, stride, kernel, dilation, (source.height, source.width), strict=True
            )
        ]
        return padding, (halo[0], halo[1])

    def _pooled(self, node: fx.Node) -> tuple[int, int]:
        shape = node.meta["shape"]
        return int(shape[2]), int(shape[3])

    def _average_pool(self, node: fx.Node, module: nn.Module | None) -> None:
        names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        kernel, stride, padding, ceil, include, divisor = _pooling(node, module, names)
        if divisor is not None or (ceil and include is not False and padding):
            raise self._refusal(node, "with its own divisor or padding beyond the image")
        self._average(node, _pair(kernel), _pair(stride or kernel), _pair(padding or 0), include is not False)

    def _adaptive_pool(self, node: fx.Node, module: nn.Module | None) -> None:
        source = self.program.buffers[self._value(node.args[0], node).buffer]
        height, width = self._pooled(node)
        if (height, width) == (1, 1):
            self._global_average(node)
        elif (height, width) == (source.height, source.width):
            self.values[node] = self._value(node.args[0], node)
        elif source.height % height == 0 and source.width % width == 0:
            window = source.height // height, source.width // width
            self._average(node, window, window, (0, 0), include=True)
        else:
            raise self._refusal(node, f"from {source.height} x {source.width} to {height} x {width}")

    def _mean(self, node: fx.Node) -> None:
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        value = self._value(node.args[0], node)
        if not isinstance(axes, list | tuple) or sorted(each % 4 for each in axes) != [2, 3] or value.flattened:  # type: ignore[operator]  # integers
            raise self._refusal(node, "over anything but height and width")
        self._global_average(node)

    def _global_average(self, node: fx.Node) -> None:
        value = self._value(node.args[0], node)
        source = self.program.buffers[value.buffer]
        output = self._buffer(1, 1, source.channels, self._range(node))
        result = self.program.buffers[output]
        fields = {
            "scale": source.scale / result.scale, "input_zero_point": source.zero_point,
            "output_zero_point": result.zero_point,
        }  # fmt: skip
        self._append(Layer(Op.GLOBAL_AVERAGE, input=value.buffer, output=output, fields=fields), node)
        self.values[node] = Value(output)

    def _average(
        self, node: fx.Node, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], include: bool
    ) -> None:
        value = self._value(node.args[0], node)
        source = self.program.buffers[value.buffer]
        output = self._buffer(*self._pooled(node), source.channels, self._range(node))
        result = self.program.buffers[output]
        fields = _window_fields(kernel, stride, padding, (1, 1)) | {
            "scale": source.scale / result.scale, "input_zero_point": source.zero_point,
            "output_zero_point": result.zero_point,
        }  # fmt: skip
        flags = Flag.INCLUDE_PAD if include else Flag(0)
        self._append(Layer(Op.AVERAGE_POOL, flags, value.buffer, output=output, fields=fields), node)
        self.values[node] = Value(output)

    def _concatenate(self, node: fx.Node) -> None:
        parts = node.args[0]
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, list | tuple) or axis not in (1, -3):
            raise self._refusal(node, "along anything but channels")
        values = [self._value(each, node) for each in parts]
        sources = [self.program.buffers[each.buffer] for each in values]
        height, width = sources[0].height, sources[0].width
        output = self._buffer(height, width, sum(each.channels for each in sources), self._range(node))
        result = self.program.buffers[output]
        offset = 0
        for value, source in zip(values, sources, strict=True):
            table = table_of(lambda x: x, source, result)
            layer = Layer(Op.TABLE, input=value.buffer, output=output, constants={"table": table})
            layer.fields["channel_offset"] = offset
            self._append(layer, node if offset == 0 else None)
            offset += source.channels
        self.values[node] = Value(output)


def quantize_weights(weight: torch.Tensor) -> tuple[Any, Any]:
    """Return int8 weights and float64 scales ``(out,)``: symmetric, one scale for each output channel."""
    values = weight.double().numpy()
    largest = np.abs(values).reshape(len(values), -1).max(axis=1)
    scales = np.where(largest > 0, largest, 1.0) / 127.0
    codes = np.rint(values / scales.reshape(-1, *[1] * (values.ndim - 1)))
    return np.clip(codes, -127, 127).astype(np.int8), scales


def _window(source: Buffer, dense: _Dense) -> tuple[int, int]:
    sizes = [
        (length + 2 * pad - gap * (size - 1) - 1) // step + 1
        for length, pad, gap, size, step in zip(
            (source.height, source.width),
            dense.padding,
            dense.dilation,
            dense.weight.shape[2:],
            dense.stride,
            strict=True,
        )
    ]
    return sizes[0], sizes[1]


def _window_fields(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> dict[str, float]:
    return {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
        "pad_h": padding[0], "pad_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
    }  # fmt: skip


def _pooling(node: fx.Node, module: nn.Module | None, names: tuple[str, ...]) -> list[Any]:
    """Return a pooling call's settings, from its module or its arguments (all in the order of ``names``)."""
    if module is not None:
        return [getattr(module, name) for name in names]
    given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    return [given.get(name) for name in names]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else (int(value or 0), int(value or 0))


def _paddings(module: nn.Conv2d) -> tuple[int, int] | None:
    if not isinstance(module.padding, str):
        return _pair(module.padding)
    if module.padding == "valid":
        return 0, 0
    total = [gap * (size - 1) for gap, size in zip(module.dilation, module.kernel_size, strict=True)]
    return None if any(each % 2 for each in total) else (total[0] // 2, total[1] // 2)
