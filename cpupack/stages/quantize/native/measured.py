"""Measures what the two forms of a linear layer lose: a scale for each row of activations, or one range for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from cpupack.artifacts import CalibratedModel
from cpupack.graph.names import core
from cpupack.graph.row_grid import round_rows
from cpupack.graph.weight_grid import round_to_grid
from cpupack.recipe import Quantize
from cpupack.sensitivity.rounding import round_activation
from cpupack.stages.quantize.native.calls import Calls
from cpupack.stages.quantize.ranges import choose_range

_LEVELS = 256
_LEAST = 1e-3
"""A row with a smaller share of the mean squared result counts as if it had this: an error of next to nothing."""


@dataclass(frozen=True)
class Forms:
    """What is left of a linear layer's results on calibration data, as SQNR in dB: the mean over rows counts."""

    rows_db: float
    range_db: float


def forms_of(calls: Calls, calibrated: CalibratedModel, recipe: Quantize) -> dict[str, Forms]:
    """Return the losses of the linear layers whose rows calibration has kept, by the names of the calls.

    Layers that read the same tensor (queries, keys and values) are measured as one, because they share its codes.
    """
    readers: dict[int, list[fx.Node]] = {}
    for node in calls.graph.graph.nodes:
        if node.name in calibrated.rows and calls.module(node) is not None:
            readers.setdefault(id(calibrated.rows[node.name]), []).append(node)
    found: dict[str, Forms] = {}
    for nodes in readers.values():
        forms = _measured(calls, calibrated, recipe, nodes)
        if forms is not None:
            found |= {node.name: forms for node in nodes}
    return found


def _measured(calls: Calls, calibrated: CalibratedModel, recipe: Quantize, nodes: list[fx.Node]) -> Forms | None:
    first = nodes[0]
    rows = calibrated.rows[first.name]
    stats = calibrated.stats.get(calls.observed(first.all_input_nodes[0], calibrated.stats).name)
    if stats is None or not (np.isfinite(stats.minimum) and np.isfinite(stats.maximum)):
        return None
    layers: list[Any] = [core(calls.module(node)) for node in nodes]  # type: ignore[arg-type]  # checked by the caller
    weight = torch.cat([each.weight.detach().float() for each in layers])
    if weight.shape[1] != rows.shape[1]:
        return None
    channels = 0 if recipe.weights == "per_channel" else None
    divisors = divisors_of(calibrated, recipe).get(first.name, torch.ones(()))
    limits = choose_range(stats, recipe.observer, _LEVELS, recipe.percentile)
    wanted = rows @ weight.T
    power = wanted.square().sum(1)
    if not 0.0 < float(power.mean()) < math.inf:
        return None
    power = power.clamp(min=_LEAST * float(power.mean()))

    def left(values: torch.Tensor, weights: torch.Tensor) -> float:
        error = (values @ round_to_grid(weights, channels).T - wanted).square().sum(1) / power
        return -10.0 * math.log10(max(float(error.mean()), 1e-30))

    by_rows = left(round_rows(rows / divisors), weight * divisors)
    return Forms(by_rows, left(round_activation(rows, limits, _LEVELS), weight))


def divisors_of(calibrated: CalibratedModel, recipe: Quantize) -> Mapping[str, torch.Tensor]:
    """Return the divisors that the recipe allows."""
    # AdaRound has rounded the weights as they are: multiplied ones would lie between the points of their grid.
    return calibrated.divisors if recipe.smooth and recipe.rounding == "nearest" else {}
