"""The nouns between the stages: each stage takes some of these and returns the next.

recipe -> FloatModel -> FusedModel -> CalibratedModel -> QuantizedModel -> ScriptedModel -> VerifyReport
       -> StagedProject -> TunePlan -> BuiltWheel
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cpupack.metric import Metric
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.statistics import ActivationStats
from cpupack.targets import Target

FloatArray = npt.NDArray[np.float32]
Interval = tuple[float, float]
"""Lower and upper end."""


@dataclass(frozen=True)
class Samples:
    """Inputs held in memory: pixels as uint8 (normalized batch by batch), anything else as float32.

    ``data`` is uint8 ``(n, height, width, channels)`` when ``preprocess`` is set, else float32 ``(n, *input_shape)``.
    ``labels`` is int64 ``(n,)`` or None. ``targets`` ``(n, ...)`` of any dtype is what a user's metric compares the
    outputs with, None where there is no metric. ``names`` says where each sample came from. ``origin`` is the recipe's
    words.
    """

    data: npt.NDArray[Any]
    origin: str
    names: tuple[str, ...]
    preprocess: PreprocessSpec | None = None
    labels: npt.NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    synthetic: bool = False
    targets: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        wanted = np.uint8 if self.preprocess else np.float32
        if self.data.dtype != wanted:
            raise TypeError(f"samples are {self.data.dtype}, not {np.dtype(wanted)}")
        parts = (self.names, self.labels, self.targets)
        if any(part is not None and len(part) != len(self.data) for part in parts):
            raise ValueError("data, names, labels and targets have different lengths")

    def __len__(self) -> int:
        return len(self.data)

    def spread(self, count: int) -> Samples:
        """Return ``count`` samples spread evenly over all of them (class folders come class by class), or all."""
        if count >= len(self):
            return self
        rows = np.linspace(0, len(self) - 1, count).round().astype(np.int64)
        return replace(
            self,
            data=self.data[rows],
            names=tuple(self.names[row] for row in rows),
            labels=None if self.labels is None else self.labels[rows],
            targets=None if self.targets is None else self.targets[rows],
        )

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield float32 model inputs ``(<=batch_size, *input_shape)``, normalized, in order."""
        for start in range(0, len(self.data), batch_size):
            yield self.tensor(slice(start, start + batch_size))

    def tensor(self, rows: slice) -> torch.Tensor:
        """Return the model input for ``rows`` as float32."""
        chunk = self.data[rows]
        return torch.from_numpy(normalize(chunk, self.preprocess) if self.preprocess else np.ascontiguousarray(chunk))


@dataclass(frozen=True)
class FloatModel:
    """The FP32 model in eval mode, with what loading its weights found.

    ``input_shape`` has no batch dimension. ``weights_origin`` says which weights were loaded; ``random_weights`` is
    true when they were not trained. ``labels`` are class names or None.
    """

    module: torch.nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weights_origin: str
    random_weights: bool
    weights_sha256: str | None
    parameters: int
    macs: int
    fp32_bytes: int
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class FusedModel:
    """The FP32 model with its chains fused.

    ``style`` is ``fx`` (``module`` is a torch.fx GraphModule), or ``eager`` for a model with its own quant stubs that
    FX cannot trace, or ``dynamic`` (``module`` untouched). ``chains`` holds the fused names. ``max_abs_diff`` is the
    largest difference of FP32 outputs before and after.
    """

    module: torch.nn.Module
    style: str
    chains: tuple[tuple[str, ...], ...]
    max_abs_diff: float
    max_abs_output: float


@dataclass(frozen=True)
class CalibratedModel:
    """The fused FP32 model with the statistics of its activations, the same for every engine.

    ``stats`` is keyed by the traced graph's node names (style ``fx``) or by module names (style ``eager``); empty for
    ``dynamic``. ``origin`` says what the data was, ``samples`` how many were run.
    """

    fused: FusedModel
    stats: dict[str, ActivationStats]
    samples: int
    origin: str


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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ``activations`` as one dict each."""
        return asdict(self)


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
class QuantizedModel:
    """An INT8 module for one target. ``notes`` names what stayed FP32 and why, ``float_reasons`` by module name.

    ``module`` takes float32 inputs; a ``PixelModel`` (``pixel_input``) takes uint8 pixels with a mask channel as well.
    ``layers`` is filled by an engine that runs the whole network as one operator, whose module has no layers to see.
    ``sums`` are the 16-bit sums of weights that were chosen to fit, whatever the input.
    """

    module: torch.nn.Module
    target: Target
    notes: tuple[str, ...] = ()
    pixel_input: bool = False
    float_reasons: dict[str, str] = field(default_factory=dict)
    layers: tuple[LayerFact, ...] = ()
    sums: tuple[LayerSaturation, ...] = ()


@dataclass(frozen=True)
class ScriptedModel:
    """A saved, frozen TorchScript file for one target, with the counts of its operators."""

    path: Path
    target: Target
    size_bytes: int
    int8_operators: int
    fp32_operators: int
    operators: dict[str, int] = field(default_factory=dict)
    pixel_input: bool = False


@dataclass(frozen=True)
class Gate:
    """One bound of ``[evaluation]`` and whether it held.

    ``ci95`` is the 95 % interval of ``measured``, None where there is none. ``proven`` says that the interval's worse
    end holds the bound too, so that the samples show it; where not, ``note`` says so in words. ``confident`` gates are
    judged by that end, all others by ``measured``.
    """

    name: str
    bound: float
    measured: float
    passed: bool
    proven: bool = False
    ci95: Interval | None = None
    confident: bool = False
    note: str = ""


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


@dataclass(frozen=True)
class Reference:
    """The FP32 model's outputs ``(n, *output_shape)`` on the samples that INT8 is compared on.

    ``metric`` is the user's own measure, None where the recipe names none.
    """

    samples: Samples
    outputs: FloatArray
    metric: Metric | None = None


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

    @property
    def text(self) -> str:
        """The finding in one sentence."""
        if not self.samples:
            return (
                "safe without VNNI: weights are such that every 16-bit sum fits whatever the input; "
                f"{self.activation_bits}-bit activations"
            )
        text = f"safe without VNNI: no 16-bit sum overflows on {self.samples} samples ({self.origin})"
        if always := sum(each.bound <= 2**15 - 1 for each in self.layers):
            text += f", in {always} of {len(self.layers)} layers whatever the input"
        text += f"; {self.activation_bits}-bit activations"
        if self.refused and self.activation_bits == 7:
            count = len({each.name for each in self.refused if each.activation_bits == 8})
            text += f", 8 bits are not safe in {count} layer{'s' if count != 1 else ''}"
        if self.limited:
            text += f", 7-bit weights in {', '.join(self.limited)}"
        return text


@dataclass(frozen=True)
class Contender:
    """One engine's saved INT8 model with its report.

    ``golden`` holds ``input`` (as ``Samples.data``), ``output`` and ``output_fp32`` for a few samples. ``saturation``
    is None for targets that add products in 32 bits, and for dynamic quantization, which never uses the eighth bit.
    ``layers`` is filled for the winner alone.
    """

    quantized: QuantizedModel
    scripted: ScriptedModel
    report: VerifyReport
    golden: dict[str, npt.NDArray[Any]]
    saturation: SaturationReport | None = None
    layers: tuple[LayerFact, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One setting that recovery built, verified and timed.

    ``settings`` holds the keys of ``[quantize]`` that differ from the recipe's. ``drop`` is the fall of top-1 accuracy,
    None without labels; ``speedup`` is over FP32 with its 95 % interval, None where this host cannot time the target. A
    setting that could not be built has ``error`` and no numbers.
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
    """The search for settings with which all gates hold, and what it found.

    ``trials`` are in the order they were made, the recipe's own setting first; ``winner`` is an index into them, and
    ``pareto`` holds the indices of those that no other beats in both SQNR and speed. ``toml`` is the ``[quantize]``
    table to paste. ``engine`` was searched on, for the reason ``why``. ``stopped`` says what the budget left untried.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the search as JSON can say it; infinite SQNR (outputs equal to FP32's) becomes None."""
        trials = []
        for number, trial in enumerate(self.trials):
            trials.append({**dataclasses.asdict(trial), "pareto": number in self.pareto})
        whole = {**dataclasses.asdict(self), "trials": trials, "pareto": list(self.pareto)}
        finite: dict[str, Any] = _finite(whole)
        return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class StagedProject:
    """The runner as an ordinary Python project on disk, before the wheel is built.

    ``root`` holds pyproject.toml, ``package_dir`` is ``root/src/IMPORT_NAME``.
    """

    root: Path
    package_dir: Path
    import_name: str
    distribution: str
    version: str
    platform_tag: str


@dataclass(frozen=True)
class TunePlan:
    """The chosen setting and everything that was measured to choose it.

    ``rows`` are the bench results the choice was made from, one dict per measurement. ``tuned`` is false when nothing
    was measured (``--no-tune``, or a target that this host cannot run); the runner then plans from the host alone.
    """

    tuned: bool
    objective: str
    threads: int | None = None
    instances: int | None = None
    batch_size: int | None = None
    max_latency_ms: float | None = None
    reason: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    searched_s: float = 0.0


@dataclass(frozen=True)
class BuiltWheel:
    """A finished wheel in the output directory."""

    path: Path
    sha256: str
    size_bytes: int
    distribution: str
    version: str
    platform_tag: str
