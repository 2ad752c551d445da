"""The findings of a build: about the calibration, each layer, the 16-bit sums, and INT8 compared with FP32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cpupack.accuracy import Interval
from cpupack.meaning import Meaning


@dataclass(frozen=True)
class Seen:
    """A calibrated tensor on other samples: its extremes, and the share of values (0 to 1) beyond calibration's."""

    minimum: float
    maximum: float
    outside_share: float


@dataclass(frozen=True)
class ActivationFact:
    """Findings of the calibration about one tensor, which has the name from the FP32 model.

    ``minimum`` and ``maximum`` were seen; ``low`` to ``high`` is the range that the observer chose for 8 bits.
    ``moved`` is the growth of the extremes over the last quarter of the batches, as a share of their width before it
    (None for fewer than four batches). ``clipped_share`` (0 to 1) of the values lie outside the chosen range.
    ``far_percentile`` is the magnitude that one value in 10,000 exceeds. ``outlier_ratio`` is the largest magnitude
    divided by it. ``channels`` is None for a layer without weights; ``constant_channels`` of them never change.
    ``exceeded`` is how far the evaluation data reaches beyond the extremes, as a share of their width.
    ``exceeding_share`` is the share of the evaluation data's values beyond them. Both are None without such data.
    ``rounded`` is false where INT8 is known to round nothing in this range: in FP32, or with a scale for each row.
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
    rounded: bool = True


@dataclass(frozen=True)
class CalibrationReport:
    """The report on a calibration. ``data`` names the samples, ``warnings`` say what is wrong and what to do.

    ``evaluation_data`` is None if there is no other data to compare with.
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
    """How one layer runs. ``name`` is its path in the FP32 model, or for a function call the caller's path and a name.

    ``precision`` is ``int8`` or ``fp32``, ``kernel`` the operators that run it. ``scale`` and ``zero_point`` belong to
    its output, None if the output has none. ``weight_sqnr_db`` compares its weights with the FP32 weights (None without
    INT8 weights). ``output_sqnr_db`` compares its output with FP32's on a few samples, including the errors of all
    layers before it (None if the FP32 model has no such value). ``reason`` says why it stayed FP32. ``time_share`` (0
    to 1) is its share of the time of an inference on the host of the build, None where that was not measured.
    ``rows_sqnr_db`` and ``range_sqnr_db`` compare the results of a linear layer with FP32's on calibration data, where
    each row of activations has a scale of its own, and where all have one range (None where that was not measured).
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
    time_share: float | None = None
    rows_sqnr_db: float | None = None
    range_sqnr_db: float | None = None


@dataclass(frozen=True)
class LayerSaturation:
    """The 16-bit sums of one layer on a CPU without VNNI, with ``activation_bits`` bits of activations.

    ``bound`` is the largest magnitude that any uint8 activations can give; at most 32767 is safe for any input. Such a
    CPU may add the products of ``pairs`` pairs of weights, and ``overflows`` of these pairs overflow on the samples.
    ``largest`` is the largest magnitude among them, None if none overflows. ``decision`` is the result in words.
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

    ``layers`` are those of the final model, checked on ``samples`` samples of ``origin``. No samples are needed if the
    weights were chosen so that every sum fits. ``limited`` names layers whose weights are within -64..64. ``refused``
    are the layers that overflowed with more activation bits.
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

    ``ci95`` is the 95 % interval of ``measured``, None if there is none. ``proven`` says that the worse end of the
    interval holds the bound too, so the samples prove it. If they do not, ``note`` says so in words. ``confident``
    gates are judged by that end, all others by ``measured``. ``default`` gates are not set in the recipe. ``output`` is
    the output that was measured, where the model has several and the gate judges the worst.
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
    output: str = ""


@dataclass(frozen=True)
class OutputFact:
    """One output of the saved INT8 model compared with FP32's, before softmax, sigmoid or argmax."""

    name: str
    sqnr_db: float
    sqnr_db_ci95: Interval | None
    cosine: float


@dataclass(frozen=True)
class TaskPicture:
    """One sample's result before and after INT8: JPEGs in base64, drawn over the image that ``name`` says."""

    name: str
    fp32: str
    int8: str


@dataclass(frozen=True)
class VerifyReport:
    """The saved INT8 model compared with FP32, and its speed.

    ``sqnr_db`` and ``cosine`` are those of the worst of the ``outputs``; ``worst_output`` is the one with that SQNR,
    None if there is only one. ``agreement`` compares the argmax (None if not exactly one output is ``(classes,)``).
    Top-1 and top-5 are fractions, None without labels; their drop is FP32's minus INT8's. ``metric``
    names the user's own metric. ``metric_drop`` is how much worse INT8 is, for either goal. ``speedup`` is the median
    of interleaved FP32/INT8 time ratios at the same batch and threads, None when this host cannot time the target.
    ``*_ci95`` are 95 % intervals (``accuracy.py`` names the methods); those of ``metric`` are computed only for
    ``confident`` gates. ``meaning`` compares embeddings, None for
    other tasks. ``data`` names the samples.
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
    """Number of labelled samples that FP32 gets right and INT8 wrong. ``top1_won`` is the reverse."""
    top1_won: int | None = None
    speedup_ci95: Interval | None = None
    metric: str | None = None
    metric_goal: str | None = None
    metric_fp32: float | None = None
    metric_int8: float | None = None
    metric_int8_ci95: Interval | None = None
    metric_drop: float | None = None
    metric_drop_ci95: Interval | None = None
    outputs: tuple[OutputFact, ...] = ()
    worst_output: str | None = None
    meaning: Meaning | None = None
    likeness: float | None = None
    """How alike the results are in the terms of the task, 1 for equal; ``likeness_name`` says what that is."""
    likeness_name: str | None = None
    decisions: float | None = None
    """Share of yes-or-no decisions that are FP32's, the mean of its yes and its no; None without decisions."""
    alike_ci95: Mapping[str, Interval] = field(default_factory=dict)
    """Intervals of gates on embeddings, likeness and decisions, by name, computed only for ``confident`` gates."""

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)
