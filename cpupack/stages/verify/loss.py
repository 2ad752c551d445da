"""The warning about INT8 outputs that are far from FP32's: how far, which layers lose most, and what to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cpupack.artifacts import VerifyReport

LOW_SQNR_DB = 20.0
LOW_AGREEMENT = 0.9
LISTED = 3
_MANY_DB = 30.0
_FEW_SAMPLES = 100


@dataclass(frozen=True)
class LayerLoss:
    """The loss of one layer: the SQNR of the model's outputs when only this layer is INT8.

    ``name`` is the layer's name in the user's model. ``skip`` is its name for ``[quantize] skip``, None for a function
    call.
    """

    name: str
    output_sqnr_db: float
    skip: str | None


@dataclass(frozen=True)
class Loss:
    """How far INT8 is from FP32 and why. ``worst_layers`` has the worst first, ``advice`` the best first.

    ``worst_layers`` is None with random weights: which of their layers lose most says nothing about trained ones.
    ``agreement`` is a share of samples, or of the pixels of a segmentation. ``alike`` says of results that are the same
    all the same: scores of a map may differ where no box does.
    """

    sqnr_db: float
    agreement: float | None
    worst_layers: tuple[LayerLoss, ...] | None
    advice: tuple[str, ...]
    of_pixels: bool = False
    alike: str = ""

    @property
    def text(self) -> str:
        """The finding as one warning."""
        worst = "" if self.worst_layers is None else f"{worst_in_words(self.worst_layers)} "
        alike = f"What predict gives is alike all the same: {self.alike}. " if self.alike else ""
        return f"{self.finding}. {alike}{worst}Try: {'; '.join(self.advice)} (docs/how-to/gates.md)"

    @property
    def finding(self) -> str:
        """How far INT8 is from FP32, as text."""
        parts = []
        if not self.sqnr_db >= LOW_SQNR_DB:
            parts.append(f"SQNR {self.sqnr_db:.1f} dB, below {LOW_SQNR_DB:g}")
        if self.agreement is not None and self.agreement < LOW_AGREEMENT:
            what = "pixels" if self.of_pixels else "samples"
            parts.append(f"the same class as FP32 on {self.agreement:.0%} of the {what}, below {LOW_AGREEMENT:.0%}")
        return f"INT8 IS FAR FROM FP32: {' and '.join(parts)}"


def is_lossy(report: VerifyReport) -> bool:
    """Whether INT8 outputs differ so much from FP32 that the user must be warned. NaN counts as different."""
    return not report.sqnr_db >= LOW_SQNR_DB or (report.agreement is not None and report.agreement < LOW_AGREEMENT)


def worst_in_words(layers: Sequence[LayerLoss]) -> str:
    """Name the layers that lose most, each with the SQNR of the outputs when only that layer is INT8."""
    if not layers:
        return "The model has no layer whose loss can be measured alone: only its input and its results are rounded."
    named = ", ".join(f"{each.name} {each.output_sqnr_db:.1f} dB" for each in layers)
    text = f"Worst layers (SQNR when only that layer is INT8): {named}."
    if layers[0].output_sqnr_db > _MANY_DB:
        text += " No single layer explains the loss: it is the sum of many layers."
    return text


def loss_of(
    report: VerifyReport,
    layers: Sequence[LayerLoss] | None,
    *,
    synthetic: bool,
    calibration_samples: int,
    dynamic: bool,
) -> Loss:
    """Return the report on a lossy build. The advice depends on the other arguments.

    ``layers`` has the worst first; None with random weights.
    """
    worst = None if layers is None else tuple(layers[:LISTED])
    advice = []
    if worst is None:
        advice.append("trained weights (the loss of random ones says little)")
    if not dynamic:
        if synthetic:
            advice.append("calibration on real instead of synthetic data")
        elif calibration_samples < _FEW_SAMPLES:
            advice.append(f"more calibration samples than {calibration_samples}")
    if worst is not None:
        if skips := list(dict.fromkeys(each.skip for each in worst if each.skip)):
            advice.append(f"[quantize] skip = [{', '.join(map(_quoted, skips))}]")
        advice.append(f"[quantize] recover = true with min_sqnr_db = {LOW_SQNR_DB:g} in [evaluation]")
        if not dynamic:
            advice.append('[quantize] equalize = true or rounding = "adaround"')
    alike = ""
    if report.likeness is not None and report.likeness >= LOW_AGREEMENT:
        alike = f"{report.likeness_name} {report.likeness:.4f}"
    return Loss(
        report.sqnr_db, report.agreement, worst, tuple(advice), of_pixels=report.likeness is not None, alike=alike
    )


def _quoted(name: str) -> str:
    return f'"{name}"'
