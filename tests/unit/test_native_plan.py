"""Which activations the native engine rounds in ranges from calibration: corrections simulate those alone."""

from __future__ import annotations

import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import CalibratedModel, FusedModel
from cpupack.progress import SilentProgress
from cpupack.stages.calibrate import calibrate
from cpupack.stages.correct import correct
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.native.plan import rounded_by_range
from cpupack.stages.quantize.ranges import choose_ranges
from helpers.captured import Net
from helpers.lowered import needs_kernels
from helpers.tiny_models import calibrated, recipe, run, samples, target

SHAPE = (3, 8, 8)


def patches() -> Net:
    """Return a convolution, then layers over its positions as tokens, some of whose channels are far larger."""
    torch.manual_seed(0)
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight[3] = 30.0
    return Net(
        lambda net, x: net.down(torch.tanh(net.up(net.norm(net.conv(x).flatten(2).transpose(1, 2))))).mean(1),
        conv=nn.Conv2d(3, 16, 2, stride=2),
        norm=norm,
        up=nn.Linear(16, 64),
        down=nn.Linear(64, 10),
    )


def test_values_of_tokens_have_no_range() -> None:
    _, model = calibrated(patches(), recipe(SHAPE), samples(SHAPE))
    automatic = rounded_by_range(model, recipe(SHAPE, quantize={"mode": "auto"}).quantize, SHAPE)
    static = rounded_by_range(model, recipe(SHAPE, quantize={"mode": "static"}).quantize, SHAPE)
    assert "x" in automatic
    assert not {"norm", "up", "down", "tanh"} & automatic
    assert {"x", "norm", "tanh"} <= static


@needs_kernels
def test_a_correction_sees_the_errors_that_the_engine_makes() -> None:
    """With ranges of all activations it would undo errors that there are not."""
    spec, data = recipe(SHAPE, quantize={"mode": "auto", "bias_correction": True}), samples(SHAPE, count=32)
    model, before = calibrated(patches(), spec, data)
    levels = 256

    def again(fused: FusedModel) -> CalibratedModel:
        return calibrate(fused, data, 8, SilentProgress())

    def quality(rounded: frozenset[str] | None) -> float:
        ranges = choose_ranges(before.stats, "minmax", levels, 99.99)
        kept = {name: each for name, each in ranges.items() if rounded is None or name in rounded}
        after = correct(before, data, spec.quantize, levels, lambda _: kept, again, SilentProgress())
        int8 = quantize(after, model.module, spec, target("native"))
        return accuracy.sqnr_db(run(model, data), run(int8, data))

    plain = quantize(before, model.module, spec, target("native"))
    plain_db = accuracy.sqnr_db(run(model, data), run(plain, data))
    found = quality(rounded_by_range(before, spec.quantize, SHAPE))
    assert found > plain_db - 0.5
    assert found > quality(None) - 0.5
