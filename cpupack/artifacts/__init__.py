"""The data that stages exchange: each stage takes some of these and returns the next.

recipe -> FloatModel -> CapturedModel -> FusedModel -> CalibratedModel -> QuantizedModel -> ScriptedModel
       -> VerifyReport -> StagedProject -> TunePlan -> BuiltWheel

All are frozen dataclasses. They do not print or make JSON: ``build_facts.py`` and ``summary.py`` do.
"""

from cpupack.artifacts.contest import Contender, Recovery, Slower, Trial
from cpupack.artifacts.models import (
    CalibratedModel,
    CapturedModel,
    FloatModel,
    FusedModel,
    QuantizedModel,
    RecurrentSqnr,
    Reference,
    Samples,
    ScriptedModel,
)
from cpupack.artifacts.reports import (
    ActivationFact,
    CalibrationReport,
    Gate,
    LayerFact,
    LayerSaturation,
    OutputFact,
    SaturationReport,
    Seen,
    TaskPicture,
    VerifyReport,
)
from cpupack.artifacts.wheel import BuiltWheel, StagedProject, TunePlan

__all__ = [
    "ActivationFact",
    "BuiltWheel",
    "CalibratedModel",
    "CalibrationReport",
    "CapturedModel",
    "Contender",
    "FloatModel",
    "FusedModel",
    "Gate",
    "LayerFact",
    "LayerSaturation",
    "OutputFact",
    "QuantizedModel",
    "Recovery",
    "RecurrentSqnr",
    "Reference",
    "Samples",
    "SaturationReport",
    "ScriptedModel",
    "Seen",
    "Slower",
    "StagedProject",
    "TaskPicture",
    "Trial",
    "TunePlan",
    "VerifyReport",
]
