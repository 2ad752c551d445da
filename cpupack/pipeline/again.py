"""Captures a model that was built for one length or size for another one."""

from __future__ import annotations

import torch

from cpupack.artifacts import CalibratedModel, FloatModel, FusedModel, Samples
from cpupack.progress import SilentProgress
from cpupack.recipe import Recipe
from cpupack.stages.capture import capture
from cpupack.stages.fuse import fuse


def capture_again(model: FloatModel, samples: Samples, recipe: Recipe, corrected: CalibratedModel) -> FusedModel:
    """Capture and fuse a model on samples of another shape, with the weights that the build has ``corrected``."""
    silent = SilentProgress()
    fused = fuse(capture(model, samples, recipe, silent), recipe, silent)
    graph, whole = fused.canonical, corrected.fused.canonical
    assert graph is not None
    assert whole is not None  # the native engine runs captured models alone
    known = dict(whole.named_parameters())
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if name in known and known[name].shape == parameter.shape:
                parameter.copy_(known[name])
    return fused
