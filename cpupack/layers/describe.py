"""Compares an INT8 model with its FP32 model and returns one fact for each layer."""

from __future__ import annotations

import statistics
import warnings

import torch
from torch import fx, nn

from cpupack.artifacts import CalibratedModel, LayerFact, QuantizedModel, Samples
from cpupack.graph.native_model import MixedModel, NativeModel
from cpupack.graph.pixel_model import PixelModel
from cpupack.layers.facts import DYNAMIC, FOLLOWS, Setting
from cpupack.layers.graphs import GraphLayers
from cpupack.layers.modules import module_layers
from cpupack.layers.native import native_layers
from cpupack.layout import batch_channels_last
from cpupack.quantized_engine import engine
from cpupack.runtime.images.inputs import model_input

SAMPLES = 4
_LISTED = 6
BY_ROWS = "cpupack::linear"
"""How the kernel of a linear layer begins that gives each row of activations a scale."""


def describe_layers(
    quantized: QuantizedModel, calibrated: CalibratedModel, skip: list[str], samples: Samples
) -> tuple[LayerFact, ...]:
    """Run both models on a few samples and return a fact for every layer, in the order of execution.

    ``quantized`` was made from ``calibrated``. ``skip`` is that of the recipe. An engine that runs the whole network as
    one operator lists its layers itself (``QuantizedModel.layers``). For it only the error of each layer is measured.
    """
    some = samples.spread(SAMPLES)
    if isinstance(quantized.module, NativeModel | MixedModel):
        return native_layers(quantized.module, quantized.layers, calibrated, some)
    setting = Setting(quantized.target.engine, calibrated.fused.style, tuple(skip), quantized.float_reasons)
    batch = batch_channels_last(some.tensor(slice(None)))
    module, floats = quantized.module, calibrated.fused.module
    with torch.inference_mode(), engine(quantized.target.engine), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*deprecated")
        if not isinstance(floats, fx.GraphModule):
            return module_layers(module, floats, batch, setting)
        layers = GraphLayers(floats, batch, setting)
        if not isinstance(module, PixelModel):
            layers.walk(_graph(module), batch)
            return layers.facts()
        if some.preprocess is None:  # data of the model's own floats
            stem = layers.float_stem(module, batch)
        else:
            pixels = torch.from_numpy(model_input(some.data, some.preprocess, pixel_input=True))
            stem = layers.pixel_stem(module, batch_channels_last(pixels), some.preprocess)
        layers.walk(_graph(module.body), stem)
        return layers.facts()


def float_notes(layers: tuple[LayerFact, ...]) -> tuple[str, ...]:
    """Return a line for each reason why layers stayed FP32, without layers that only follow another or cannot be INT8.

    ``inspect --layers`` has those that the line does not name.
    """
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if layer.precision == "fp32" and not layer.reason.startswith((FOLLOWS, DYNAMIC)):
            by_reason.setdefault(layer.reason, []).append(f"{layer.name} ({layer.kind})")
    return tuple(f"{_listed(names)} stayed FP32: {reason}" for reason, names in by_reason.items())


def form_notes(layers: tuple[LayerFact, ...]) -> tuple[str, ...]:
    """Return a line on how the activations of measured linear layers become codes, and what each form would lose."""
    measured = [each for each in layers if each.rows_sqnr_db is not None and each.range_sqnr_db is not None]
    by_rows = [each for each in measured if each.kernel.startswith(BY_ROWS)]
    ranged = [each for each in measured if each not in by_rows]
    if not by_rows:
        return ()  # nothing is out of the ordinary
    named = f"; {_listed([each.name for each in ranged])}: one range from calibration" if ranged else ""
    share = f"{len(by_rows)} of {len(measured)} linear layers give each row of activations a scale of its own"
    so, otherwise = _middle(by_rows, "rows_sqnr_db"), _middle(by_rows, "range_sqnr_db")
    return (f"{share}: their results have {so} dB so, and {otherwise} dB with one range (medians){named}",)


def _middle(layers: list[LayerFact], form: str) -> str:
    return f"{statistics.median(getattr(each, form) for each in layers):.1f}"


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _graph(module: nn.Module) -> fx.GraphModule:
    assert isinstance(module, fx.GraphModule)
    return module
