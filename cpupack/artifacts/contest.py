"""The result of each engine, and of the search for settings when no engine passes the gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cpupack.accuracy import Interval
from cpupack.artifacts.models import QuantizedModel, ScriptedModel
from cpupack.artifacts.reports import Gate, LayerFact, SaturationReport, TaskPicture, VerifyReport


@dataclass(frozen=True)
class Contender:
    """One engine's saved INT8 model with its report.

    ``golden`` holds ``input`` (as ``Samples.data``), ``output`` and ``output_fp32`` for a few samples. ``saturation``
    is None for targets that add products in 32 bits, and for dynamic quantization, which uses only 7 bits.
    ``layers`` is filled only for the winner. ``pictures`` show results of FP32 and INT8.
    """

    quantized: QuantizedModel
    scripted: ScriptedModel
    report: VerifyReport
    golden: dict[str, npt.NDArray[Any]]
    saturation: SaturationReport | None = None
    layers: tuple[LayerFact, ...] = ()
    pictures: tuple[TaskPicture, ...] = ()


@dataclass(frozen=True)
class Slower:
    """An engine that was built and timed, and then dropped: a faster engine passes every gate.

    Its outputs were not verified, and its sums were not checked. ``speedup`` is the speedup over FP32, with its 95 %
    interval; None if this host cannot time the target. ``reason`` says which engine is faster.
    """

    engine: str
    speedup: float | None
    speedup_ci95: Interval | None
    int8_bytes: int
    reason: str


@dataclass(frozen=True)
class Trial:
    """One setting that recovery built, verified and timed.

    ``settings`` holds the keys of ``[quantize]`` that differ from the recipe's. ``drop`` is the drop of top-1 accuracy,
    None without labels. ``speedup`` is the speedup over FP32, with its 95 % interval; None if this host cannot time the
    target. A setting that could not be built has ``error`` and no numbers.
    """

    label: str
    engine: str
    settings: dict[str, Any]
    seconds: float
    sqnr_db: float | None = None
    agreement: float | None = None
    drop: float | None = None
    speedup: float | None = None
    speedup_ci95: Interval | None = None
    gates: tuple[Gate, ...] = ()
    passed: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Recovery:
    """The search for settings with which all gates hold, and its result.

    ``trials`` are in the order of the search, the recipe's own settings first. ``winner`` is an index into them.
    ``pareto`` has the indices of the trials that no other trial beats in both SQNR and speed. ``toml`` is the
    ``[quantize]`` table to paste. The search ran on ``engine``, for the reason ``why``. ``stopped`` says what was not
    tried because the budget was spent.
    """

    trials: tuple[Trial, ...]
    winner: int
    pareto: tuple[int, ...]
    toml: str
    engine: str
    why: str
    budget_s: float
    seconds: float
    stopped: str | None = None
