"""What calibration tells about itself, on data with one fault each, against the definition in numpy."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from cpupack.artifacts import ActivationFact, CalibratedModel, CalibrationReport, Samples
from cpupack.diagnostics import clipped_share, diagnose, far_percentile, growth, in_words, moved
from cpupack.progress import SilentProgress
from cpupack.runtime.plain import to_plain
from cpupack.stages.calibrate import observe
from cpupack.stages.quantize.ranges import choose_ranges
from cpupack.statistics import ActivationStats, StatsCollector
from helpers.tiny_models import SHAPE, Recorder, calibrated, recipe, samples

QUIET = SilentProgress()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.relu(self.norm(self.conv(x))).mean((2, 3)))
        return result


def collected(*batches: np.ndarray, channel_axis: int | None = None) -> ActivationStats:
    collector = StatsCollector(channel_axis)
    for batch in batches:
        assert collector.add(torch.from_numpy(batch))
    return collector.finish()


def report_on(found: CalibratedModel, evaluation: Samples | None = None, observer: str = "minmax") -> CalibrationReport:
    seen = observe(found, evaluation, 4, QUIET)[0] if evaluation is not None else {}
    return diagnose(found, choose_ranges(found.stats, observer, 256), observer, seen, evaluation)


def fact(report: CalibrationReport, name: str) -> ActivationFact:
    (found,) = [each for each in report.activations if each.name == name]
    return found


def scaled(data: Samples, factors: np.ndarray) -> Samples:
    return dataclasses.replace(data, data=data.data * factors.astype(np.float32).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("axis", [-3, -1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_extremes_of_channels_are_numpys(axis: int, layout: torch.memory_format) -> None:
    random = np.random.default_rng(0)
    batches = [random.standard_normal((count, 5, 6, 7)).astype(np.float32) for count in (3, 4, 1)]
    collector = StatsCollector(axis)
    for batch in batches:
        assert collector.add(torch.from_numpy(batch).contiguous(memory_format=layout))
    stats = collector.finish()
    everything = np.concatenate(batches)
    others = tuple(number for number in range(4) if number != axis % 4)
    assert stats.channel_min is not None
    assert stats.channel_max is not None
    np.testing.assert_array_equal(stats.channel_min, everything.min(axis=others))
    np.testing.assert_array_equal(stats.channel_max, everything.max(axis=others))
    assert (stats.minimum, stats.maximum) == (everything.min(), everything.max())


def test_ordinary_data_gives_no_warning() -> None:
    _, found = calibrated(Two(), recipe(), samples(count=400))
    report = report_on(found, samples(count=32, seed=1))
    assert report.warnings == ()
    assert fact(report, "conv").channels == 8
    assert fact(report, "fc").channels == 4
    assert fact(report, "x").channels is None
    assert (report.samples, report.batches) == (400, 100)


def test_a_range_that_moves_at_the_end_is_found() -> None:
    factors = np.ones(32)
    factors[24:] = 2.0  # the last two of eight batches of four
    _, found = calibrated(Two(), recipe(), scaled(samples(count=32), factors))
    report = report_on(found)
    values = scaled(samples(count=32), factors).data
    first, width = values[:24], values[:24].max() - values[:24].min()
    expected = max(values.max() - first.max(), first.min() - values.min()) / width
    assert fact(report, "x").moved == pytest.approx(expected)
    (warning,) = report.warnings
    assert "not settled" in warning
    assert "more than 32" in warning


def test_three_batches_cannot_tell_whether_ranges_settled() -> None:
    _, found = calibrated(Two(), recipe(), samples(count=12))
    report = report_on(found)
    assert {each.moved for each in report.activations} == {None}
    assert "too few" in in_words(report)[0]


def test_moved_counts_the_last_quarter_alone() -> None:
    grows_early = [np.float32([-1.0, size]) for size in (1.0, 8.0, 8.0, 8.0)]
    grows_late = [np.float32([-1.0, size]) for size in (1.0, 1.0, 1.0, 2.0)]
    assert moved(collected(*grows_early)) == 0.0
    assert moved(collected(*grows_late)) == pytest.approx(1.0 / 2.0)  # from [-1, 1] to [-1, 2]
    assert growth((-1.0, 1.0), (-0.5, 0.5)) == 0.0
    assert growth((0.0, 0.0), (0.0, 1.0)) == float("inf")


def test_the_first_step_of_a_loop_is_no_dead_layer() -> None:
    """It reads a state of zeros, so what it gives never changes. A layer that always does so is named."""

    class Loop(torch.nn.Module):
        def __init__(self, steps: int) -> None:
            super().__init__()
            self.own, self.state, self.steps = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), steps

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x.new_zeros(len(x), 4)
            for step in range(self.steps):
                h = torch.tanh(self.own(x) + self.state(h)) * (step + 1)
            return h

    for steps, warned in ((3, False), (1, True)):
        data = samples((3,), count=64)
        _, found = calibrated(Loop(steps), recipe((3,)), data)
        assert any("never change" in each for each in report_on(found).warnings) == warned


def test_a_dead_and_a_constant_channel_are_found() -> None:
    module = Two()
    with torch.no_grad():
        module.norm.running_mean.zero_()
    _, found = calibrated(module, recipe())
    graph_conv = found.fused.module.conv[0]
    assert fact(report_on(found), "conv").constant_channels == 0
    graph_conv.bias.data[:3] = -1e3  # ReLU leaves nothing of these
    graph_conv.weight.data[3], graph_conv.bias.data[3] = 0.0, 2.0  # always 2
    again = dataclasses.replace(found, stats=_stats_again(found))
    report = report_on(again)
    assert fact(report, "conv").constant_channels == 4
    assert "4 of 12 channels never change" in in_words(report)
    assert report.warnings == ()  # half of them; trained models have dead channels
    graph_conv.bias.data[4] = -1e3
    (warning,) = report_on(dataclasses.replace(found, stats=_stats_again(found))).warnings
    assert "conv" in warning
    assert "never change" in warning


def _stats_again(found: CalibratedModel) -> dict[str, ActivationStats]:
    from cpupack.stages.calibrate import calibrate

    return calibrate(found.fused, samples(), 4, QUIET).stats


def test_outliers_are_found_where_the_range_covers_them() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((32, *SHAPE)).astype(np.float32)
    values[5, 0, 0, 0] = 300.0
    data = Samples(values, "spiky", tuple(map(str, range(32))))
    _, found = calibrated(Two(), recipe(), data)
    spiky = fact(report_on(found), "x")
    # 6144 values: one in 10,000 is none of them, so ask for more data
    assert spiky.outlier_ratio == pytest.approx(1.0)
    many = random.standard_normal(200_000).astype(np.float32)
    many[0] = 300.0
    stats = collected(many)
    exact = np.quantile(np.abs(many), 0.9999)
    assert far_percentile(stats) == pytest.approx(exact, abs=stats.bin_width)
    _, found = calibrated(Two(), recipe(), _large(many))
    for observer, warned in (("minmax", True), ("percentile", False)):
        report = report_on(found, observer=observer)
        assert fact(report, "x").outlier_ratio > 10.0
        assert any("outliers" in warning and "x" in warning for warning in report.warnings) == warned


def _large(values: np.ndarray) -> Samples:
    count = values.size // 192
    return Samples(values[: count * 192].reshape(count, *SHAPE), "spiky", tuple(map(str, range(count))))


def test_the_clipped_share_is_what_lies_outside() -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    stats = collected(values)
    expected = np.mean((values < -1.0) | (values > 2.0))
    assert clipped_share(stats, (-1.0, 2.0)) == pytest.approx(expected, abs=5e-4)
    assert clipped_share(stats, (stats.minimum, stats.maximum)) == 0.0


def test_evaluation_data_beyond_the_calibration_is_found() -> None:
    calibration = samples(count=400)
    _, found = calibrated(Two(), recipe(), calibration)
    evaluation = scaled(samples(count=16, seed=1), np.full(16, 3.0))
    report = report_on(found, evaluation)
    low, high = calibration.data.min(), calibration.data.max()
    beyond = max(low - evaluation.data.min(), evaluation.data.max() - high) / (high - low)
    assert fact(report, "x").exceeded == pytest.approx(beyond)
    outside = np.mean((evaluation.data < low) | (evaluation.data > high))
    assert fact(report, "x").exceeding_share == pytest.approx(outside)
    (warning,) = report.warnings
    assert "not like the calibration data" in warning
    assert "exceeds them" in in_words(report)[-1]


def test_observing_leaves_no_hooks_behind() -> None:
    from test_sensitivity import Stubbed

    _, found = calibrated(Stubbed(), recipe())
    observe(found, samples(seed=2), 4, QUIET)
    assert not any(child._forward_hooks for child in found.fused.module.modules())


def test_the_report_is_plain_json() -> None:
    _, found = calibrated(Two(), recipe(), samples(count=32))
    report = report_on(found, samples(count=8, seed=1))
    plain = json.loads(json.dumps(to_plain(report), allow_nan=False))
    assert {"samples", "batches", "data", "observer", "evaluation_data", "activations", "warnings"} == plain.keys()
    assert plain["activations"][0]["name"] == "x"
    assert plain["activations"][0] == dataclasses.asdict(report.activations[0])


def test_a_build_warns_of_what_its_calibration_tells() -> None:
    from cpupack.pipeline.prepare import diagnosed

    _, found = calibrated(Two(), recipe(), samples(count=400))
    progress = Recorder()
    report, _ = diagnosed(found, scaled(samples(seed=1), np.full(16, 9.0)), recipe(), progress)
    assert report is not None
    assert progress.warnings == list(report.warnings) != []
    assert diagnosed(dataclasses.replace(found, stats={}), None, recipe(), progress) == (None, {})


@pytest.mark.parametrize(("skip", "warned"), [([], True), (["0"], False)])
def test_ranges_that_int8_does_not_use_are_no_matter(skip: list[str], *, warned: bool) -> None:
    """Data that grow in the end and are exceeded later: of a layer in FP32 before a norm that says nothing."""
    from cpupack.pipeline.prepare import diagnosed

    spec = recipe((16,), quantize={"skip": skip}, target={"x86_64": {"engine": "native"}})
    values = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    values[48:] *= 5
    data = Samples(values, "rising", tuple(map(str, range(64))))
    torch.manual_seed(0)
    _, found = calibrated(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8)), spec, data)
    progress = Recorder()
    diagnosed(found, dataclasses.replace(data, data=20 * values), spec, progress)
    said = " ".join(progress.warnings)
    assert ("the calibration has not settled" in said) is warned
    assert ("is not like the calibration data" in said) is warned


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.lstm(x)[0]
        return result


def test_a_recurrent_layer_has_no_range_that_could_settle() -> None:
    """It rounds each step with a scale of its own."""
    from cpupack.pipeline.prepare import diagnosed

    spec = recipe((6, 16), target={"x86_64": {"engine": "native"}})
    values = np.random.default_rng(0).standard_normal((64, 6, 16)).astype(np.float32)
    values[48:] *= 5
    _, found = calibrated(Recurrent(), spec, Samples(values, "rising", tuple(map(str, range(64)))))
    progress = Recorder()
    report, _ = diagnosed(found, None, spec, progress)
    assert report is not None
    assert progress.warnings == []
    assert in_words(report)[0] == "64 samples in 16 batches; INT8 rounds nothing in their ranges"


@pytest.mark.parametrize(("engine", "warned"), [("native", False), ("fbgemm", True)])
def test_outliers_are_warned_of_where_a_range_is_rounded(engine: str, *, warned: bool) -> None:
    """The native engine has a range for each token, so one that is far larger than all others costs them nothing."""
    spec = recipe((6, 16), target={"x86_64": {"engine": engine}})
    values = np.random.default_rng(0).standard_normal((1000, 6, 16)).astype(np.float32)
    values[5, 2, 3] = 1000.0
    data = Samples(values, "tokens", tuple(map(str, range(1000))))
    torch.manual_seed(0)
    _, found = calibrated(nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 8)), spec, data)
    from cpupack.pipeline.prepare import diagnosed

    progress = Recorder()
    diagnosed(found, None, spec, progress)
    assert any("outliers take most" in each for each in progress.warnings) is warned
