"""The stage: chooses the method (FX, eager, dynamic, native), sets the engine, and names the layers that stay FP32."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import torch
from torch import nn

from cpupack.artifacts import CalibratedModel, QuantizedModel
from cpupack.errors import QuantizationError
from cpupack.graph.names import is_within
from cpupack.graph.pixel_model import PixelModel
from cpupack.layout import weights_channels_last
from cpupack.model.two_stages import gives_proposals
from cpupack.model.user_code import describe_failure
from cpupack.quantized_engine import engine
from cpupack.recipe import Quantize, Recipe
from cpupack.stages.quantize import reasons
from cpupack.stages.quantize.dynamic import quantize_dynamically
from cpupack.stages.quantize.in_float import InFloat
from cpupack.stages.quantize.native.lower import lower
from cpupack.stages.quantize.static import check_names, quantize_eager, quantize_fx, transposes_wrongly
from cpupack.targets import Target

_WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def quantize(
    calibrated: CalibratedModel,
    original: nn.Module,
    recipe: Recipe,
    target: Target,
    limited: Collection[str] = (),
) -> QuantizedModel:
    """Convert a calibrated model to INT8 for one target.

    ``original`` is the FP32 model as loaded, whose module names ``skip`` uses. ``limited`` names modules whose weights
    get 7 bits (static quantization). Raises QuantizationError when a skipped
    name does not exist or torch cannot convert the model for this engine.
    """
    spec = recipe.quantize
    check_names(original, calibrated.fused.module, spec, calibrated.fused.chains)
    spec = spec.model_copy(update={"skip": [*spec.skip, *_chains_skipped(calibrated, spec.skip)]})
    example = torch.zeros(1, *_sample_shape(calibrated, recipe))
    known: dict[str, str] = {}
    if target.record.quantizer == "native":
        return _quantize_natively(calibrated, recipe, spec, target)
    if gives_proposals(original):
        raise QuantizationError(
            f"{target.engine} has no operator for what lies between the two stages of a detector, and a wheel that "
            "runs on torch brings none",
            hint='set engine = "native" (or "auto") in [target.x86_64] or [target.aarch64]',
        )
    with engine(target.engine), warnings.catch_warnings():
        # torch.ao.quantization is deprecated. Only this package uses it to build wheels.
        warnings.filterwarnings("ignore", message="(?s).*deprecated")
        try:
            match calibrated.fused.style:
                case "fx":
                    module, known = quantize_fx(calibrated, spec, target, example, recipe.engine_preprocess, limited)
                case "eager":
                    module = quantize_eager(calibrated, spec, target, limited)
                case _:
                    module = quantize_dynamically(calibrated.fused.module, spec.skip, target)
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
            AssertionError,
            AttributeError,
            TypeError,
        ) as error:
            # torch.ao raises any of these for a model that it has no rule for
            raise QuantizationError(
                f"torch cannot quantize this model for {target.engine}: {describe_failure(error)}",
                hint="keep the part that the message names in FP32 with [quantize] skip, or choose another engine",
            ) from error
    module = weights_channels_last(module.eval())
    kept = {_name(path): child for path, child in module.named_modules() if type(child) in _WEIGHTED or _hidden(child)}
    why = {name: _reason(name, child, spec.skip, target) for name, child in kept.items()}
    notes = [
        f"{name} ({type(child).__name__}) stayed FP32{': ' if why[name] else ''}{why[name]}"
        for name, child in kept.items()
        if not _hidden(child)
    ]
    return QuantizedModel(
        module,
        target,
        tuple(notes),
        pixel_input=isinstance(module, PixelModel),
        float_reasons=known | {name: reason for name, reason in why.items() if reason},
    )


def _quantize_natively(calibrated: CalibratedModel, recipe: Recipe, spec: Quantize, target: Target) -> QuantizedModel:
    """Lower the model to programs of the native engine, with the layers that ``skip`` names in FP32."""
    model, layers, sums = lower(
        calibrated, spec, _sample_shape(calibrated, recipe), recipe.engine_preprocess,
        fitting=target.fits_weights,
        words=target.cpu == "x86_64",  # NEON multiplies float32 values as fast
    )  # fmt: skip
    return QuantizedModel(model, target, pixel_input=model.pixel_input, layers=layers, sums=sums)


def _sample_shape(calibrated: CalibratedModel, recipe: Recipe) -> tuple[int, ...]:
    """Return the shape of a sample as the model takes it: with ``stream`` it has states that the recipe does not."""
    return calibrated.fused.sample_shape or recipe.engine_input_shape


def _name(path: str) -> str:
    """Return a module's path without the part of a ``PixelModel`` that it is in."""
    for part in ("body.", "float_stem.", "pixel_stem."):
        if path.startswith(part):
            return path.removeprefix(part)
    return path


def _hidden(module: nn.Module) -> bool:
    """Whether a call was kept FP32 because its INT8 form is wrong. The hidden modules are inside it."""
    return isinstance(module, InFloat)


def _chains_skipped(calibrated: CalibratedModel, skip: list[str]) -> list[str]:
    """Return the fused modules that contain a skipped module. A chain is one call, so all of it stays FP32."""
    return [chain[0] for chain in calibrated.fused.chains if any(is_within(name, skip) for name in chain)]


def _reason(name: str, module: nn.Module, skip: list[str], target: Target) -> str:
    if is_within(name, skip):
        return reasons.SKIPPED
    if isinstance(module, InFloat):
        return module.reason
    return reasons.wrong_on(target.engine) if transposes_wrongly(target.engine, module) else ""
