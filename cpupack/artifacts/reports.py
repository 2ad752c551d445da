"""What the build found out: about the calibration, each layer, the 16-bit sums, and INT8 beside FP32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cpupack.accuracy import Interval


@dataclass(frozen=True)
class Seen:
    """A calibrated tensor on other samples: its extremes, and the share of values (0 to 1) beyond the calibrated."""

    minimum: float
    maximum: float
    outside_share: float


@dataclass(frozen=True)
class ActivationFact:
    """What calibration tells about one tensor, named as in the FP32 model.

    ``minimum`` and ``maximum`` were seen, ``low`` to ``high`` is the range that the observer chose for 8 bits.
    ``moved`` is how far the extremes grew over the last quarter of the batches, by their width before (None for fewer
    than four batches). ``clipped_share`` of the values (0 to 1) lie outside the chosen range. ``far_percentile`` is the
    magnitude that one value in 10,000 exceeds, ``outlier_ratio`` the largest by it. ``channels`` is None for what has
    no weights; ``constant_channels`` of them never change. ``exceeded`` is how far the evaluation data reaches beyond
    the extremes, by their width, and ``exceeding_share`` the share of its values that do; None without such data.
    """

    name: str
    minimum: float
    maximum: float
    low: float
    high: float
    moved: float | None
    clipped_share: float
    outlier_ratio: float
    far_percentile: float
    channels: int | None
    constant_channels: int
    exceeded: float | None
    exceeding_share: float | None


@dataclass(frozen=True)
class CalibrationReport:
    """What a calibration tells about itself. ``data`` says what it was run on, ``warnings`` what to do about it.

    ``evaluation_data`` is None where there is no other data to compare with.
    """

    samples: int
    batches: int
    data: str
    observer: str
    evaluation_data: str | None
    activations: tuple[ActivationFact, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class LayerFact:
    """What became of one layer. ``name`` is its path in the FP32 model, of a function call with the caller's path.

    ``precision`` is ``int8`` or ``fp32``, ``kernel`` the operators that run it. ``scale`` and ``zero_point`` are its
    output's, None where it has no such. ``weight_sqnr_db`` compares its weights with the FP32 ones (None without INT8
    weights), ``output_sqnr_db`` its output with FP32's on a few samples, the error of all layers before it included
    (None where the FP32 model has no such value). ``reason`` says why it stayed FP32.
    """

    name: str
    kind: str
    precision: str
    kernel: str
    scale: float | None = None
    zero_point: int | None = None
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class LayerSaturation:
    """What the 16-bit sums of one layer come to on a CPU without VNNI, with so many bits of activations.

    ``bound`` is the largest magnitude that any uint8 activations give; at most 32767 is safe for any input. Of
    ``pairs`` of weights whose products such a CPU may add, ``overflows`` overflow on the samples; ``largest`` is the
    largest magnitude among those, None where none does. ``decision`` says it in words.
    """

    name: str
    activation_bits: int
    pairs: int
    bound: int
    overflows: int
    largest: int | None
    decision: str


@dataclass(frozen=True)
class SaturationReport:
    """Why a model is safe on ``isa``, which adds pairs of products in 16 bits.

    ``layers`` are those of the model as it is, on ``samples`` samples of ``origin``; none are needed where weights were
    chosen so that every sum fits. ``limited`` names layers whose weights are within -64..64. ``refused`` are the layers
    for which more activation bits were given up.
    """

    isa: str
    activation_bits: int
    samples: int
    origin: str
    layers: tuple[LayerSaturation, ...]
    limited: tuple[str, ...] = ()
    refused: tuple[LayerSaturation, ...] = ()


@dataclass(frozen=True)
class Gate:
    """One bound of ``[evaluation]`` and whether it held.

    ``ci95`` is the 95 % interval of ``measured``, None where there is none. ``proven`` says that the interval's worse
    end holds the bound too, so that the samples show it; where not, ``note`` says so in words. ``confident`` gates are
    judged by that end, all others by ``measured``. ``default`` gates are not of the recipe.
    """

    name: str
    bound: float
    measured: float
    passed: bool
    proven: bool = False
    ci95: Interval | None = None
    confident: bool = False
    note: str = ""
    default: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """What the saved model does, against FP32 and against the quantized module it came from.

    ``sqnr_db`` and ``cosine`` compare the outputs, ``agreement`` the argmax (None where the output is not
    ``(classes,)``); top-1/top-5 are fractions, None without labels; their drop is FP32's less INT8's. ``metric``
    names the user's own, ``metric_drop`` is how much worse INT8 is, whatever its goal. ``speedup`` is the median of
    interleaved FP32/INT8 time ratios at the same batch and threads, None when this host cannot time the target.
    ``*_ci95`` are 95 % intervals (``accuracy.py`` names the methods); those of ``metric`` are measured for
    ``confident`` gates alone. ``data`` says what was compared on.
    """

    data: str
    samples: int
    equal_to_quantized: bool
    sqnr_db: float
    cosine: float
    agreement: float | None
    labelled_samples: int = 0
    top1_fp32: float | None = None
    top1_int8: float | None = None
    top5_fp32: float | None = None
    top5_int8: float | None = None
    speedup: float | None = None
    speed_rows: tuple[dict[str, Any], ...] = ()
    gates: tuple[Gate, ...] = ()
    sqnr_db_ci95: Interval | None = None
    agreement_ci95: Interval | None = None
    top1_fp32_ci95: Interval | None = None
    top1_int8_ci95: Interval | None = None
    top5_fp32_ci95: Interval | None = None
    top5_int8_ci95: Interval | None = None
    top1_drop_ci95: Interval | None = None
    top1_lost: int | None = None
    """Labelled samples that FP32 has right and INT8 wrong; ``top1_won`` are the reverse."""
    top1_won: int | None = None
    speedup_ci95: Interval | None = None
    metric: str | None = None
    metric_goal: str | None = None
    metric_fp32: float | None = None
    metric_int8: float | None = None
    metric_int8_ci95: Interval | None = None
    metric_drop: float | None = None
    metric_drop_ci95: Interval | None = None

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)
