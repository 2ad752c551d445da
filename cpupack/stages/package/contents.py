"""The contents of one wheel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cpupack.artifacts import FloatModel, FusedModel, Recovery, Samples, ScriptedModel, VerifyReport
from cpupack.recipe import LoadedRecipe
from cpupack.targets import Target


@dataclass(frozen=True)
class WheelContents:
    """All that goes into one wheel.

    ``calibration`` is used only for facts (origin and counts). ``golden`` has ``input``, ``output`` and
    ``output_fp32``: some inputs, and the outputs of the saved and the FP32 model at the build.
    """

    loaded: LoadedRecipe
    model: FloatModel
    fused: FusedModel
    scripted: ScriptedModel
    report: VerifyReport
    target: Target
    calibration: Samples | None
    golden: dict[str, npt.NDArray[Any]]
    notes: tuple[str, ...] = ()
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        if missing := {"input", "output", "output_fp32"} - set(self.golden):
            raise ValueError(f"golden has no {', '.join(sorted(missing))}")
