"""Functions for facts about layers, shared by graphs, modules and the native engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from cpupack.graph.names import core, is_within
from cpupack.sensitivity.rounding import Noise

FOLLOWS = "works on the FP32 output of"
DYNAMIC = "dynamic quantization takes linear and recurrent layers only"


@dataclass(frozen=True)
class Setting:
    """Decides why a layer stayed FP32. ``reasons`` are those of the quantize stage, by module name.

    ``style`` is that of ``FusedModel``.
    """

    engine: str
    style: str
    skip: tuple[str, ...]
    reasons: Mapping[str, str]

    def reason(self, name: str, kind: str, *, target: str = "", after: str = "") -> str:
        """Return why a layer is FP32.

        ``target`` is its name in the INT8 model, if different. ``after`` is the layer whose FP32 output it reads.
        """
        if is_within(name, self.skip):
            return "listed in skip"
        for known in (target or name, f"{name}.0"):  # the second is the convolution in a fused chain
            if known in self.reasons:
                return self.reasons[known]
        if after:
            return f"{FOLLOWS} {after}"
        if self.style == "dynamic":
            return DYNAMIC
        outside = ", or it is not between QuantStub and DeQuantStub" if self.style == "eager" else ""
        return f"torch has no INT8 form of {kind} here ({self.engine}){outside}"


class Counts(Protocol):
    """How often each operator ran, separately for INT8 and FP32."""

    int8: Counter[str]
    fp32: Counter[str]


def kernel_of(counter: Counts) -> tuple[str, str] | None:
    """Return (precision, operators) of the counted calls, None if nothing computed. Any INT8 operator makes it INT8."""
    if counter.int8:
        return "int8", " + ".join(counter.int8)
    if counter.fp32:
        return "fp32", " + ".join(counter.fp32)
    return None


def qparams(value: Any) -> tuple[float | None, int | None]:
    """Return scale and zero point of an output that is a tensor with one scale, else None for both."""
    if isinstance(value, torch.Tensor) and value.is_quantized and value.qscheme() == torch.per_tensor_affine:
        return float(value.q_scale()), int(value.q_zero_point())
    return None, None


def output_sqnr_db(reference: Any, actual: Any) -> float | None:
    """Return the SQNR of an output against FP32's, None if the two cannot be compared."""
    reference, actual = _tensor(reference), _tensor(actual)
    if reference is None or actual is None or reference.shape != actual.shape:
        return None
    return _sqnr_db(reference, actual.dequantize() if actual.is_quantized else actual)


def weight_sqnr_db(module: nn.Module, reference: torch.Tensor | None) -> float | None:
    """Return the SQNR of a quantized module's weights against FP32 ones, None for a module without INT8 weights."""
    weight = getattr(module, "weight", None)
    if reference is None or not callable(weight):
        return None
    actual = weight()
    return _sqnr_db(reference, actual.dequantize()) if actual.shape == reference.shape else None


def float_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the FP32 weights of a module, or of the first module in its chain."""
    weight = getattr(core(module), "weight", None)
    return weight.detach() if isinstance(weight, torch.Tensor) else None


def _tensor(value: Any) -> torch.Tensor | None:
    """Return an output (for a recurrent layer its first part) if it is a tensor of numbers that INT8 can hold."""
    if isinstance(value, tuple) and value:
        value = value[0]
    if isinstance(value, torch.Tensor) and (value.is_quantized or value.is_floating_point()):
        return value
    return None


def _sqnr_db(reference: torch.Tensor, actual: torch.Tensor) -> float:
    noise = Noise()
    noise.add(reference, actual)
    return noise.sqnr_db
