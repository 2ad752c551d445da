"""Dynamic quantization: INT8 weights, activations measured at run time; for linear and recurrent models."""

from __future__ import annotations

import copy

from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig, quantize_dynamic
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within
from cpupack.targets import Target

_LINEAR = (nn.Linear,)
_RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def quantize_dynamically(module: nn.Module, skip: list[str], target: Target) -> nn.Module:
    """Replace linear and recurrent modules by their dynamic INT8 forms in a copy.

    Linear weights are per channel, recurrent ones per tensor (their kernels accept only that). Raises
    QuantizationError when the model has no such module outside ``skip``. The last linear layer of a
    ``MultiheadAttention`` stays FP32: attention reads its weights itself.
    """
    del target  # the engine is set by the caller; both forms exist on every engine
    spec = {
        name: per_channel_dynamic_qconfig if isinstance(child, _LINEAR) else default_dynamic_qconfig
        for name, child in module.named_modules()
        if isinstance(child, _LINEAR + _RECURRENT)
        and not isinstance(child, NonDynamicallyQuantizableLinear)
        and not is_within(name, skip)
    }
    if not spec:
        raise QuantizationError(
            '[quantize] mode = "dynamic" quantizes Linear, LSTM and GRU modules, but the model has none to quantize',
            hint='use mode = "static" for convolutional models',
        )
    converted: nn.Module = quantize_dynamic(copy.deepcopy(module), spec)
    for child in converted.modules():
        _call_its_layers(child)
    return converted


def _call_its_layers(module: nn.Module) -> None:
    """Make torch's transformer modules call their layers. Their fast path reads the FP32 weights of linear ones."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False
