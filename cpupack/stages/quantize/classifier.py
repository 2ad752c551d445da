"""The last linear layer with FP32 results, because rounding logits to 8 bits costs more than all earlier layers.

torch's static INT8 linear returns uint8. Its dynamic one returns FP32, but it measures the range of its input in every
batch, so an output would depend on the other samples. Here the dynamic operator always gets the same range: the input
is clipped to the calibrated range, and two more inputs with weight 0 hold its ends.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.ao.nn.quantized.dynamic as nnqd
from torch import fx, nn

from cpupack.graph.names import is_within


class FloatOutput(nnqd.Linear):
    """INT8 products of a Linear with float32 input and output, input rounded to ``levels`` steps of a fixed range."""

    def __init__(
        self, linear: nn.Linear, quantized_weight: torch.Tensor, scale: float, zero_point: int, levels: int
    ) -> None:
        """Take the int8 ``(out, in + 2)`` weights, whose last two columns are zero, and the input's parameters."""
        super().__init__(linear.in_features + 2, linear.out_features)  # type: ignore[no-untyped-call]  # torch has none
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        self.set_weight_bias(quantized_weight, bias)
        self.low, self.high = -zero_point * scale, (levels - 1 - zero_point) * scale
        self.reduced = levels == 128
        self.register_buffer("ends", torch.tensor([self.low, self.high]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ends = self.ends.expand(*x.shape[:-1], 2)  # type: ignore[operator]  # a buffer is a Tensor
        pinned = torch.cat([x.clamp(self.low, self.high), ends], dim=-1)
        packed = self._packed_params._packed_params
        result: torch.Tensor = torch.ops.quantized.linear_dynamic(pinned, packed, self.reduced)
        return result

    def weight(self) -> torch.Tensor:
        """Return the quantized weights ``(out, in)``."""
        packed: torch.Tensor = self._weight_bias()[0]  # type: ignore[no-untyped-call]  # as above
        return packed[:, :-2]


def find_classifiers(graph: fx.GraphModule, skip: Collection[str]) -> list[fx.Node]:
    """Return the calls of Linear modules whose results only the model's output reads."""
    return [
        node
        for node in graph.graph.nodes
        if node.op == "call_module"
        and type(graph.get_submodule(str(node.target))) is nn.Linear
        and node.users
        and all(reader.op == "output" for reader in node.users)
        and not is_within(str(node.target), skip)
    ]


def quantize_classifier(
    linear: nn.Linear, observer: nn.Module, scale: float, zero_point: int, levels: int
) -> nn.Module:
    """Return the INT8 form of ``linear``. ``observer`` chooses the scales of its weights and keeps them."""
    weight = linear.weight.detach()
    observer(weight)
    scales, zeros = observer.calculate_qparams()  # type: ignore[operator]  # a method of every observer
    wide = torch.cat([weight, torch.zeros(len(weight), 2)], dim=1)
    if scales.numel() == 1:
        quantized = torch.quantize_per_tensor(wide, float(scales), 0, torch.qint8)
    else:
        quantized = torch.quantize_per_channel(wide, scales.double(), zeros.long(), 0, torch.qint8)
    return FloatOutput(linear, quantized, scale, zero_point, levels)
