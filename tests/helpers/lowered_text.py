"""Tiny modules that take ids and a mask, through the stages of a build."""

from __future__ import annotations

import numpy as np
from torch import nn

from cpupack.artifacts import FloatModel, QuantizedModel, Samples
from cpupack.model.signature import fit_signature
from cpupack.progress import SilentProgress
from cpupack.recipe import Recipe
from cpupack.stages.calibrate import calibrate
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse
from cpupack.stages.quantize import quantize
from helpers.tiny_models import target

LENGTH, WORDS, WIDTH = 12, 60, 32


def recipe(*, bounded: bool = False, **quantize: object) -> Recipe:
    """Return a recipe of ids and a mask; a bounded one has no numbers but 0 and 1."""
    inputs = [
        {"name": "ids", "shape": [LENGTH], "dtype": "int64"},
        {"name": "mask", "shape": [LENGTH], "dtype": "int64", **({"vocabulary": 2} if bounded else {})},
    ]
    return Recipe.model_validate(
        {
            "schema": 1,
            "package": {"name": "tiny"},
            "model": {"source": "python:m.py:make", "weights": "random"},
            "input": inputs,
            "quantize": {"observer": "minmax", **quantize},
        }
    )


def texts(*lengths: int) -> Samples:
    """Return rows of ids and their mask, of sentences that end after so many tokens."""
    random = np.random.default_rng(1)
    mask = np.arange(LENGTH) < np.array(lengths)[:, None]
    ids = np.where(mask, random.integers(2, WORDS, mask.shape), 1)
    rows = np.concatenate([ids, mask], 1).astype(np.float32)
    return Samples(rows, "texts", tuple(map(str, range(len(rows)))))


def lowered(
    module: nn.Module, data: Samples | None = None, *, engine: str = "native", bounded: bool = False, **settings: object
) -> tuple[FloatModel, QuantizedModel]:
    """Return a module of ids and mask in FP32 and as one engine has it, calibrated on ``data``."""
    spec, data = recipe(bounded=bounded, **settings), data or texts(LENGTH, 5, 1, 7, LENGTH, 3)
    fitted = fit_signature(module.eval(), "test", spec, SilentProgress())
    whole = fitted.module.eval().requires_grad_(requires_grad=False)
    model = FloatModel(whole, fitted.signature, "test", True, None, 0, 0, 0)
    captured = capture(model, data, spec, SilentProgress())
    calibrated = calibrate(fuse(captured, spec, SilentProgress()), data, 4, SilentProgress())
    return model, quantize(calibrated, model.module, spec, target(engine))
