"""Checks the statistics of a calibration: unsettled ranges, outliers, channels that never change, different data.

To see how ranges grow, this module uses minimum and maximum of each batch. An observer would need the histogram of
each batch, which is not kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import numpy as np
from torch import fx

from cpupack.artifacts import ActivationFact, CalibratedModel, CalibrationReport, Samples, Seen
from cpupack.graph.names import scoped_name
from cpupack.statistics import ActivationStats

MOVED = EXCEEDED = 0.10
"""A range that grew by more than this share of its width counts as not settled."""
_MANY = 0.10
"""A single sample can stretch a few ranges. The build warns when more than this share of all ranges grew."""
_FEWEST_BATCHES = 4
_SHOWN = 0.0005
"""A growth that is less is printed as 0.0 %."""
_FAR = 10.0
_TAIL = 1e-4


def diagnose(
    calibrated: CalibratedModel,
    ranges: Mapping[str, tuple[float, float]],
    observer: str,
    seen: Mapping[str, Seen],
    evaluation: Samples | None,
    rounded: Callable[[], Collection[str] | None] = lambda: None,
) -> CalibrationReport:
    """Return a report on the statistics of a calibration, with warnings.

    ``ranges`` are those that ``observer`` chose, by name as in ``calibrated.stats``. ``seen`` describes the same
    tensors on samples of ``evaluation``. Without such data ``seen`` is empty and ``evaluation`` None. ``rounded`` is
    asked where there is something to warn of: it returns the tensors that INT8 rounds in these ranges, None for all.
    The ranges of others say nothing about INT8, so no warning is about them.
    """
    names = _names(calibrated)
    by_key = {
        key: _fact(names.get(key, key), stats, ranges[key], seen.get(key)) for key, stats in calibrated.stats.items()
    }
    if any(_is_warned_of(fact) for fact in by_key.values()) and (kept := rounded()) is not None:
        by_key = {key: dataclasses.replace(fact, rounded=key in kept) for key, fact in by_key.items()}
    facts = tuple(by_key.values())
    batches = max((len(stats.batch_min) for stats in calibrated.stats.values()), default=0)
    report = CalibrationReport(
        samples=calibrated.samples,
        batches=batches,
        data=calibrated.origin,
        observer=observer,
        evaluation_data=evaluation.origin if evaluation is not None and seen else None,
        activations=facts,
        warnings=(),
    )
    return CalibrationReport(**{**vars(report), "warnings": tuple(_warnings(report, _used(report)))})


def in_words(report: CalibrationReport) -> list[str]:
    """Return the report as lines for a build's summary."""
    lines = [f"{report.samples} samples in {report.batches} batch{'es' if report.batches != 1 else ''}"]
    used = _used(report)
    moved = [fact for fact in used if fact.moved is not None]
    if report.activations and not used:
        lines[0] += "; INT8 rounds nothing in their ranges"
    elif moved:
        worst = max(moved, key=lambda fact: fact.moved or 0.0)
        if (worst.moved or 0.0) >= _SHOWN:
            lines[0] += f"; in the last quarter ranges grew by {worst.moved:.1%} at most ({worst.name})"
        else:
            lines[0] += "; no range grew in the last quarter"
    else:
        lines[0] += f": too few to tell whether ranges settled (that takes {_FEWEST_BATCHES})"
    constant = sum(fact.constant_channels for fact in report.activations)
    channels = sum(fact.channels or 0 for fact in report.activations)
    if constant:
        lines.append(f"{constant} of {channels} channels never change")
    if report.evaluation_data is not None and used:
        worst = max(used, key=lambda fact: fact.exceeded or 0.0)
        beyond = f"exceeds them by {worst.exceeded:.1%} at most ({worst.name})" if worst.exceeded else "stays in them"
        lines.append(f"the evaluation data {beyond}")
    return lines


def _used(report: CalibrationReport) -> list[ActivationFact]:
    """Return the facts of what INT8 rounds in its range."""
    return [fact for fact in report.activations if fact.rounded]


def growth(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return how far the second range reaches beyond the first at either end, as a share of the first one's width."""
    beyond = max(before[0] - after[0], after[1] - before[1], 0.0)
    width = before[1] - before[0]
    if beyond == 0.0:
        return 0.0
    return beyond / width if width > 0.0 else float("inf")


def moved(stats: ActivationStats) -> float | None:
    """Return how much the extremes grew over the last quarter of the batches, None for fewer than four batches."""
    batches = len(stats.batch_min)
    if batches < _FEWEST_BATCHES:
        return None
    cut = batches - batches // 4
    before = float(stats.batch_min[:cut].min()), float(stats.batch_max[:cut].max())
    return growth(before, (stats.minimum, stats.maximum))


def far_percentile(stats: ActivationStats) -> float:
    """Return the magnitude that one value in 10,000 exceeds, accurate to one bin and at most the largest value."""
    edges, counts = stats.occupied()
    outer = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
    order = np.argsort(outer)
    inside = np.cumsum(counts[order])
    at = order[int(np.searchsorted(inside, (1.0 - _TAIL) * inside[-1]))]
    return min(float(outer[at]), max(abs(stats.minimum), abs(stats.maximum)))


def clipped_share(stats: ActivationStats, limits: tuple[float, float]) -> float:
    """Return the share of values outside ``limits``. A bin counts as outside when its middle is outside."""
    edges, counts = stats.occupied()
    middles = np.clip((edges[:-1] + edges[1:]) / 2.0, stats.minimum, stats.maximum)
    outside = (middles < limits[0]) | (middles > limits[1])
    return float(counts[outside].sum() / counts.sum())


def _fact(name: str, stats: ActivationStats, limits: tuple[float, float], seen: Seen | None) -> ActivationFact:
    largest, far = max(abs(stats.minimum), abs(stats.maximum)), far_percentile(stats)
    channels, constant = None, 0
    if stats.channel_min is not None and stats.channel_max is not None:
        channels = len(stats.channel_min)
        constant = int((stats.channel_min == stats.channel_max).sum())
    calibrated = stats.minimum, stats.maximum
    return ActivationFact(
        name=name,
        minimum=stats.minimum,
        maximum=stats.maximum,
        low=limits[0],
        high=limits[1],
        moved=moved(stats),
        clipped_share=clipped_share(stats, limits),
        outlier_ratio=largest / far if far > 0.0 else 1.0,
        far_percentile=far,
        channels=channels,
        constant_channels=constant,
        exceeded=None if seen is None else growth(calibrated, (seen.minimum, seen.maximum)),
        exceeding_share=None if seen is None else seen.outside_share,
    )


def _is_warned_of(fact: ActivationFact) -> bool:
    """Return whether a range is one of those that warnings count."""
    return _reach(fact) > _FAR or (fact.moved or 0.0) > MOVED or (fact.exceeded or 0.0) > EXCEEDED


def _warnings(report: CalibrationReport, facts: list[ActivationFact]) -> list[str]:
    """Return the warnings. ``facts`` are those of the ranges that INT8 rounds in."""
    found = []
    many = _MANY * len(report.activations)
    far = [fact for fact in facts if _reach(fact) > _FAR]
    grew = [fact for fact in facts if fact.moved is not None and fact.moved > MOVED]
    if len(grew) > many:
        worst = max(grew, key=lambda fact: fact.moved or 0.0)
        found.append(
            f"the calibration has not settled: {len(grew)} of {len(facts)} ranges grew by more than {MOVED:.0%} in the "
            f"last quarter of its {report.batches} batches, {worst.name} most ({worst.moved:.0%}); set "
            f"[calibration] samples to more than {report.samples}"
        )
    beyond = [fact for fact in facts if fact.exceeded is not None and fact.exceeded > EXCEEDED]
    if len(beyond) > many:
        worst = max(beyond, key=lambda fact: fact.exceeded or 0.0)
        found.append(
            f"the evaluation data ({report.evaluation_data}) is not like the calibration data: it exceeds {len(beyond)}"
            f" of {len(facts)} ranges by more than {EXCEEDED:.0%}, {worst.name} most ({worst.exceeded:.0%}); "
            "calibrate on data like the data that the model will serve, or on more samples"
        )
    if far:
        worst = max(far, key=_reach)
        found.append(
            f"outliers take most of the INT8 range of {_listed(far)}: the largest value of {worst.name} is "
            f"{worst.outlier_ratio:.0f} times the value that 99.99 % stay below; [quantize] observer = "
            f'"percentile" or "mse" clips them, and [quantize] skip keeps such a layer in FP32'
        )
    dead = [fact for fact in report.activations if fact.channels and fact.constant_channels > fact.channels / 2]
    # The first step of a loop reads states of zeros. Its other calls have the same name with a number.
    changing = {fact.name for fact in report.activations} - {fact.name for fact in dead}
    dead = [fact for fact in dead if f"{fact.name}_1" not in changing]
    if dead:
        found.append(
            f"more than half of the channels never change on the calibration data in {_listed(dead)}: either the model "
            "does not use them, or the data does not activate them; check [preprocess] and the weights"
        )
    return found


def _reach(fact: ActivationFact) -> float:
    """Return how many times larger the chosen range is than the magnitude that 99.99 % of the values stay below."""
    return max(abs(fact.low), abs(fact.high)) / fact.far_percentile if fact.far_percentile > 0.0 else 1.0


def _listed(facts: list[ActivationFact]) -> str:
    names = list(dict.fromkeys(fact.name for fact in facts))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _names(calibrated: CalibratedModel) -> dict[str, str]:
    module = calibrated.fused.module
    if not isinstance(module, fx.GraphModule):
        return {}
    return {node.name: scoped_name(node) for node in module.graph.nodes}
