"""A ranking as JSON, as a table for a terminal, and as a page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpupack.artifacts import CalibratedModel, FloatModel, Samples
from cpupack.errors import QuantizationError
from cpupack.metric import Metric
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.runtime.pages import charts
from cpupack.runtime.pages.charts import Bar
from cpupack.runtime.pages.shapes import Chart
from cpupack.runtime.plain import to_plain
from cpupack.sensitivity.rank import COUNT, LayerSensitivity, rank
from cpupack.sensitivity.rounding import Range

SCHEMA = 1
_BAR_WIDTH = 12
_LONGEST_CHART = 40
_BARS = "\N{FULL BLOCK}"


@dataclass(frozen=True)
class SensitivityReport:
    """All layers of a model, the most sensitive first, and what they were measured on.

    ``metric`` is the user's own metric, None without one. ``seconds`` is the time that the ranking took.
    """

    name: str
    version: str
    source: str
    weights: str
    random_weights: bool
    mode: str
    observer: str
    samples: int
    data: str
    calibration_samples: int
    calibration_data: str
    metric: str | None
    seconds: float
    layers: tuple[LayerSensitivity, ...]


def report_on(
    loaded: LoadedRecipe,
    model: FloatModel,
    calibrated: CalibratedModel,
    ranges: Mapping[str, Range],
    samples: Samples,
    progress: Progress,
    *,
    count: int = COUNT,
    metric: Metric | None = None,
) -> SensitivityReport:
    """Rank the layers of a calibrated model on ``count`` of ``samples``, and return the report.

    ``ranges`` and ``metric`` are those of ``rank``. Raises QuantizationError when the model has no layer to rank.
    """
    recipe = loaded.recipe
    started = time.monotonic()
    layers = rank(calibrated.fused, ranges, samples, progress, count=count, metric=metric, signature=model.signature)
    if not layers:
        raise QuantizationError(
            "the model has no layer that INT8 would round",
            hint="INT8 rounds convolutions, linear layers and additions",
        )
    return SensitivityReport(
        name=recipe.package.name,
        version=recipe.package.version,
        source=recipe.model.source,
        weights=model.weights_origin,
        random_weights=model.random_weights,
        mode=recipe.quantize.mode,
        observer=recipe.quantize.observer,
        samples=min(count, len(samples)),
        data=samples.origin,
        calibration_samples=calibrated.samples,
        calibration_data=calibrated.origin,
        metric=metric.name if metric else None,
        seconds=round(time.monotonic() - started, 3),
        layers=layers,
    )


def to_dict(report: SensitivityReport) -> dict[str, Any]:
    """Return the report for ``--json``: its fields with ``schema`` and, for each layer, its ``rank`` from 1."""
    found: dict[str, Any] = {"schema": SCHEMA, **to_plain(report)}
    found["layers"] = [{"rank": number, **layer} for number, layer in enumerate(found["layers"], start=1)]
    return found


def format_table(report: SensitivityReport) -> str:
    """Return the ranking for a terminal, 100 columns wide unless a name is longer than 30."""
    width = max([30, *(len(layer.name) for layer in report.layers)])
    lines = [heading(report), ""]
    lines.append(
        f"{'':>4} {'layer':<{width}} {'weights':>8} {'activ.':>8} {'outputs':>8} {'top-1':>7} "
        f"{loss_title(report):>8}  share of the noise"
    )
    most = max((layer.noise_share for layer in report.layers), default=0.0)
    for number, layer in enumerate(report.layers, start=1):
        same = "" if layer.agreement is None else f"{layer.agreement:.1%}"
        bar = _BARS * round(_BAR_WIDTH * layer.noise_share / most) if most > 0.0 else ""
        lines.append(
            f"{number:>4} {layer.name:<{width}} {db(layer.weight_sqnr_db):>8} {db(layer.activation_sqnr_db):>8} "
            f"{db(layer.output_sqnr_db):>8} {same:>7} {loss(layer):>8}  {layer.noise_share:>6.1%} {bar}".rstrip()
        )
    return "\n".join([*lines, "", *(f"{text}" for text in legend(report))])


def heading(report: SensitivityReport) -> str:
    """Return one line that says what was measured, and on which data."""
    return (
        f"{report.name} {report.version}: {len(report.layers)} layers, one at a time in INT8, on {report.samples} "
        f"samples of {report.data}"
    )


def legend(report: SensitivityReport) -> list[str]:
    """Return lines that say what the columns mean and how to use them."""
    lines = [
        "weights, activ.: SQNR in dB of the layer's weights and of its output, rounded to 8 bits.",
        "outputs: SQNR in dB of the model's outputs; top-1: share of samples with the same class as FP32.",
    ]
    if loss_title(report):
        lines.append(f"{loss_title(report)}: the loss with only this layer in INT8.")
    if report.random_weights:
        lines.append("The weights are random: this ranking says nothing about the trained model.")
    worst = [layer.skip for layer in report.layers if layer.skip is not None][:1]
    if worst:
        lines.append(f'To keep the first layer in FP32: [quantize] skip = ["{worst[0]}"]')
    return lines


def loss_title(report: SensitivityReport) -> str:
    """Return the heading of the loss column, empty without labels and metric."""
    if any(layer.metric_drop is not None for layer in report.layers):
        return "metric"
    return "drop" if any(layer.top1_drop is not None for layer in report.layers) else ""


def loss(layer: LayerSensitivity) -> str:
    """Return a layer's loss as text: of the metric if there is one, else of top-1 in percentage points."""
    if layer.metric_drop is not None:
        return f"{layer.metric_drop:.4g}"
    return "" if layer.top1_drop is None else f"{layer.top1_drop * 100:.2f}"


def db(value: float | None) -> str:
    """Return decibels as text: empty for None, ``exact`` for infinity."""
    if value is None:
        return ""
    return "exact" if value == math.inf else f"{value:.1f}"


def ranking_charts(layers: Sequence[LayerSensitivity]) -> list[Chart]:
    """Return a bar chart for each of the three rankings, the most sensitive layer first, 40 layers at most."""
    wanted: list[tuple[str, str, Callable[[LayerSensitivity], float | None]]] = [
        ("Model outputs with one layer in INT8", "SQNR of the outputs, dB", lambda layer: layer.output_sqnr_db),
        ("Weights", "SQNR of the int8 weights, dB", lambda layer: layer.weight_sqnr_db),
        ("Activations", "SQNR of the layer's output in 8 bits, dB", lambda layer: layer.activation_sqnr_db),
    ]
    found = []
    for title, label, value_of in wanted:
        measured = [(layer, value_of(layer)) for layer in layers]
        finite = sorted(
            ((layer, value) for layer, value in measured if value is not None and math.isfinite(value)),
            key=lambda pair: pair[1],
        )
        if finite:
            rows = [_bar(layer, value) for layer, value in finite[:_LONGEST_CHART]]
            most = f", the {_LONGEST_CHART} lowest of {len(finite)}" if len(finite) > _LONGEST_CHART else ""
            found.append(charts.bars(f"{title}{most}", rows, label))
    return found


def _bar(layer: LayerSensitivity, value: float) -> Bar:
    tip = f"{layer.name} ({layer.kind}): {value:.1f} dB, {layer.noise_share:.1%} of the noise"
    return Bar(layer.name, value, f"{value:.1f}", tip=tip)


def render_html(report: SensitivityReport) -> str:
    """Return the ranking as one HTML page without scripts that loads nothing from the network."""
    from cpupack.templates import render

    return render(
        "report/sensitivity.html.j2",
        report=report,
        charts=ranking_charts(report.layers),
        loss_title=loss_title(report),
        loss=loss,
        db=db,
        legend=legend(report),
    )
