"""The tiny model of ``tiny_wheel`` on the native engine: a wheel that needs no torch."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch

from cpupack.runtime.engine import library
from cpupack.runtime.images.inputs import model_input
from cpupack.stages.package import WheelContents
from cpupack.stages.quantize import quantize
from cpupack.stages.script import script
from cpupack.targets import Target
from helpers.tiny_models import calibrated
from helpers.tiny_wheel import INPUT_SHAPE, TinyWheel

TARGET = Target("x86_64", library.ENGINE, "avx2", 8, conv_add=False, platform_tag="manylinux_2_28_x86_64")


def native_contents(tiny: TinyWheel, directory: Path, *, images: bool = True) -> WheelContents:
    """Return what goes into a wheel of the native engine. The saved model is written into ``directory``."""
    contents = tiny.contents(images=images)
    data, spec = contents.calibration, contents.loaded.recipe
    assert data is not None
    model, stats = calibrated(copy.deepcopy(tiny.module), spec, data)
    int8 = quantize(stats, model.module, spec, TARGET)
    library.load()
    batch = model_input(data.data, data.preprocess, pixel_input=int8.pixel_input)
    with torch.inference_mode():
        outputs: np.ndarray = int8.module(torch.from_numpy(batch)).numpy()
    return dataclasses.replace(
        contents,
        scripted=script(int8, INPUT_SHAPE, directory / "native.pt"),
        target=TARGET,
        golden={**contents.golden, "output": outputs},
    )
