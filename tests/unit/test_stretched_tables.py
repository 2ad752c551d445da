"""Constants that are a table of the model, resized to the size of a map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.engine.stretched import Stretched, stretch
from cpupack.stages.quantize.native.stretches import grids_of
from helpers.open_nets import opened


@pytest.mark.parametrize(("kind", "mode"), [("linear", "bilinear"), ("cubic", "bicubic"), ("nearest", "nearest")])
def test_a_table_is_resized_as_torch_does(kind: str, mode: str) -> None:
    table = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    for rows, columns in ((5, 7), (12, 9), (3, 20)):
        image = torch.from_numpy(table).permute(2, 0, 1)[None]
        expected = F.interpolate(image, (rows, columns), mode=mode)[0].permute(1, 2, 0).numpy()
        assert np.abs(stretch(table, kind, rows, columns) - expected).max() < 1e-5


def test_positions_of_a_model_tell_what_grids_they_may_be() -> None:
    assert (14, 14) in grids_of([torch.zeros(1, 197, 8)])
    assert (1, 300) in grids_of([torch.zeros(300, 8)])
    assert (7, 9) in grids_of([torch.zeros(1, 8, 7, 9)])
    assert (7, 9) in grids_of([torch.zeros(1, 7, 9, 8)])
    assert grids_of([torch.zeros(64)]) == ()


def test_a_table_is_stored_and_not_its_sizes() -> None:
    net, sizes = opened("patches")
    (rule,) = [each for each in sizes.constants if isinstance(each, Stretched)]
    assert (rule.alone, rule.shape, rule.way) == (1, (3, 3, 16), "cubic")
    assert len(net.stored()) - len(net.lowered((16, 24)).program) < 4 * 10 * 16 + 64


@pytest.mark.parametrize(
    "damage", [{"shape": [0, 3, 16]}, {"begin": 3}, {"way": "round"}, {"alone": -1}, {"name": "places"}]
)
def test_a_damaged_table_is_refused(damage: dict[str, object]) -> None:
    _, sizes = opened("patches")
    raw = json.loads(json.dumps(sizes.to_dict()))
    raw["constants"][[each["kind"] for each in raw["constants"]].index("stretched")] |= damage
    with pytest.raises((ValueError, KeyError)):
        Sizes.from_dict(raw)
