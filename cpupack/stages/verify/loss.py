"""What is said of a build whose INT8 outputs are far from FP32's: how far, which layers lose most, what to try."""

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
    """What one layer alone costs: the SQNR of the model's outputs when nothing else is INT8.

    ``name`` is the user's; ``skip`` is what ``[quantize] skip`` takes for it, None for a function call.
    """

    name: str
    output_sqnr_db: float
    skip: str | None


@dataclass(frozen=True)
class Loss:
    """Why a build is doubtful. ``worst_layers`` come worst first; ``advice`` is what to try, best first."""

    sqnr_db: float
    agreement: float | None
    worst_layers: tuple[LayerLoss, ...]
    advice: tuple[str, ...]

    @property
    def text(self) -> str:
        """The finding as one warning."""
        return (
            f"{self.finding}. {worst_in_words(self.worst_layers)} Try: {'; '.join(self.advice)} (docs/how-to/gates.md)"
        )

    @property
    def finding(self) -> str:
        """How far INT8 is from FP32."""
        parts = []
        if not self.sqnr_db >= LOW_SQNR_DB:
            parts.append(f"SQNR {self.sqnr_db:.1f} dB, below {LOW_SQNR_DB:g}")
        if self.agreement is not None and self.agreement < LOW_AGREEMENT:
            parts.append(f"the same class as FP32 on {self.agreement:.0%} of the samples, below {LOW_AGREEMENT:.0%}")
        return f"INT8 IS FAR FROM FP32: {' and '.join(parts)}"


def is_lossy(report: VerifyReport) -> bool:
    """Whether INT8 answers so differently from FP32 that the user must hear of it; NaN does."""
    return not report.sqnr_db >= LOW_SQNR_DB or (report.agreement is not None and report.agreement < LOW_AGREEMENT)


def worst_in_words(layers: Sequence[LayerLoss]) -> str:
    """Name the layers that lose most, each with the SQNR of the outputs where it alone is INT8."""
    if not layers:
        return "No layer loses anything alone: what runs is not what was quantized, please report it."
    named = ", ".join(f"{each.name} {each.output_sqnr_db:.1f} dB" for each in layers)
    text = f"Worst layers, each alone in INT8: {named}."
    if layers[0].output_sqnr_db > _MANY_DB:
        text += " None of them explains it alone: the loss is the sum of many layers."
    return text


def loss_of(
    report: VerifyReport,
    layers: Sequence[LayerLoss],
    *,
    random_weights: bool,
    synthetic: bool,
    calibration_samples: int,
    dynamic: bool,
) -> Loss:
    """Return what to say of a lossy build. ``layers`` come worst first; the rest are facts that advice depends on."""
    worst = tuple(layers[:LISTED])
    advice = []
    if random_weights:
        advice.append("trained weights: what random ones lose says little")
    if not dynamic:
        if synthetic:
            advice.append("calibration on real data in place of synthetic")
        elif calibration_samples < _FEW_SAMPLES:
            advice.append(f"more calibration samples than {calibration_samples}")
    if skips := list(dict.fromkeys(each.skip for each in worst if each.skip)):
        advice.append(f"[quantize] skip = [{', '.join(map(_quoted, skips))}]")
    advice.append(f"[quantize] recover = true with min_sqnr_db = {LOW_SQNR_DB:g} in [evaluation]")
    if not dynamic:
        advice.append('[quantize] equalize = true or rounding = "adaround"')
    return Loss(report.sqnr_db, report.agreement, worst, tuple(advice))


def _quoted(name: str) -> str:
    return f'"{name}"'
