"""The ranking of layers against what it is defined as: numpy by hand, whole models rounded in one place."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import CalibratedModel, FloatModel, FusedModel, Samples
from cpupack.cli import main
from cpupack.metric import Metric
from cpupack.progress import SilentProgress
from cpupack.runtime.signature import INPUT, OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.sensitivity import LayerSensitivity, rank
from cpupack.sensitivity.ranking import format_table, render_html, report_on, to_dict
from cpupack.sensitivity.rounding import Noise, round_activation, round_weight
from cpupack.stages.quantize.ranges import choose_ranges
from helpers.tiny_models import Recorder, calibrated, recipe, samples

QUIET = SilentProgress()


class Residual(nn.Module):
    """Everything that could disturb the runs of a model's rest: in-place operators, a sum, a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2)
        self.right = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = self.left(x)
        y += self.right(x)
        result: torch.Tensor = self.fc(self.relu(y).mean((2, 3)))
        return result


class Chain(nn.Module):
    """Convolutions in a row; ``bad`` of them has one channel whose output is ``factor`` times the others'."""

    def __init__(self, bad: int | None, factor: float = 1000.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(3 if n == 0 else 8, 8, 3, padding=1) for n in range(4))
        self.fc = nn.Linear(8, 5)
        if bad is not None:
            with torch.no_grad():
                self.convs[bad].weight[0] *= factor
                self.convs[bad + 1].weight[:, 0] /= factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def ranges_of(found: CalibratedModel) -> dict[str, tuple[float, float]]:
    return choose_ranges(found.stats, "minmax", 256)


def layers_of(module: nn.Module, data: Samples | None = None) -> dict[str, LayerSensitivity]:
    torch.manual_seed(0)
    _, found = calibrated(module, recipe(), data)
    return {layer.name: layer for layer in rank(found.fused, ranges_of(found), data or samples(), QUIET)}


def decibels(reference: np.ndarray, actual: np.ndarray) -> float:
    noise = reference.astype(np.float64) - actual
    return 10.0 * math.log10(np.square(reference.astype(np.float64)).sum() / np.square(noise).sum())


def test_the_sqnr_of_weights_is_that_of_rounding_each_channel_to_int8() -> None:
    torch.manual_seed(3)
    module = Residual()
    weight = module.left.weight.detach().numpy().astype(np.float64).copy()
    scale = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127.0
    expected = decibels(weight, np.clip(np.rint(weight / scale), -127, 127) * scale)
    found = layers_of(module)
    assert found["left"].weight_sqnr_db == pytest.approx(expected, abs=0.01)
    assert found["add"].weight_sqnr_db is None


def test_the_sqnr_of_an_activation_is_that_of_its_output_in_its_range() -> None:
    module = Residual()
    data = samples()
    found = layers_of(module, data)
    with torch.inference_mode():
        before = module.relu(module.norm(module.first(data.tensor(slice(None)))))
        right, hidden = module.right(before).numpy(), -module.left(before).numpy()
    # of x in relu(x + y), what lies below -y does not count
    output = np.maximum(right, hidden)
    low, high = min(float(output.min()), 0.0), float(output.max())
    scale = (high - low) / 255
    zero = round(-low / scale)
    rounded = np.maximum((np.clip(np.rint(right / scale) + zero, 0, 255) - zero) * scale, hidden)
    assert found["right"].activation_sqnr_db == pytest.approx(decibels(output, rounded), abs=0.05)


def test_only_the_layer_itself_is_rounded() -> None:
    """Each layer's figures are those of the whole model with that one module rounded, from input to output."""
    module = Residual()
    data = samples()
    _, stats = calibrated(module, recipe(), data)
    ranges = ranges_of(stats)
    names = {str(node.target): node for node in stats.fused.module.graph.nodes if node.op == "call_module"}
    found = {layer.name: layer for layer in rank(stats.fused, ranges, data, QUIET, batch_size=5)}
    batch = data.tensor(slice(None))
    with torch.inference_mode():
        reference = stats.fused.module(batch.clone()).numpy()
        for name in ("first", "left", "right", "fc"):
            graph = copy.deepcopy(stats.fused.module)
            child = graph.get_submodule(name)
            inner = child[0] if isinstance(child, nn.Sequential) else child
            inner.weight.data = round_weight(inner.weight.data, 0)
            source, own = ranges[names[name].args[0].name], ranges[names[name].name]
            child.register_forward_pre_hook(lambda _, args, to=source: (round_activation(args[0], to, 256),))
            child.register_forward_hook(lambda _, __, out, to=own: round_activation(out, to, 256))
            output = graph(batch.clone()).numpy()
            assert found[name].output_sqnr_db == pytest.approx(decibels(reference, output), abs=0.05), name


def test_one_bad_layer_ranks_first() -> None:
    """The layer whose output has one huge channel: its range is that channel's, and the others get no steps."""
    for bad in (0, 1, 2):
        _, found = calibrated(Chain(bad), recipe())
        first, second, *_ = rank(found.fused, ranges_of(found), samples(), QUIET)
        # What reads the bad output rounds the same tensor, so it comes first or second.
        assert {first.name, second.name} == {f"convs.{bad}", f"convs.{bad + 1}"}
        assert first.output_sqnr_db < 40.0 < min(layer.output_sqnr_db for layer in layers_of(Chain(None)).values())
    shares = [layer.noise_share for layer in layers_of(Chain(1)).values()]
    assert sum(shares) == pytest.approx(1.0)
    assert sum(sorted(shares)[-2:]) > 0.9


class TwoHeads(nn.Module):
    """Two outputs side by side, as the engine gives them: large values, and small ones that a bad layer makes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large, self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.large.bias += 1000.0
            self.first.weight[0] *= 1000.0
            self.second.weight[:, 0] /= 1000.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.large(x), self.second(torch.relu(self.first(x)))], 1)


def test_of_several_outputs_the_worst_counts() -> None:
    """The small values are a millionth of both outputs as one, which a bad layer of theirs hardly changes."""
    signature = Signature((TensorSpec(INPUT, (8,)),), (OutputSpec("large", (4,)), OutputSpec("small", (4,))))
    data = samples((8,))
    _, found = calibrated(TwoHeads(), recipe((8,)), data)
    ranked = {each.name: each for each in rank(found.fused, ranges_of(found), data, QUIET, signature=signature)}
    as_one = {each.name: each for each in rank(found.fused, ranges_of(found), data, QUIET)}
    assert ranked["first"].output_sqnr_db < 40.0 < 60.0 < as_one["first"].output_sqnr_db
    # What rounds the large values alone is the same noise beside nearly the same signal.
    assert ranked["large"].output_sqnr_db == pytest.approx(as_one["large"].output_sqnr_db, abs=0.1)


def test_a_sum_and_the_relu_behind_it_are_one_layer() -> None:
    found = layers_of(Residual())
    assert found["add"].kind == "add+ReLU"
    assert found["add"].skip is None
    assert found["first"].kind == "Conv2d+ReLU"
    assert {layer.skip for layer in found.values()} == {"first", "left", "right", "fc", None}


def test_labels_and_a_metric_tell_what_is_lost() -> None:
    torch.manual_seed(0)
    module = Chain(1, factor=1e5)
    data = samples(count=64)
    with torch.no_grad():
        module.fc.bias -= module(data.tensor(slice(None))).mean(0)  # so that the samples differ in class
    model, found = calibrated(module, recipe(), data)
    with torch.inference_mode():
        outputs = model.module(data.tensor(slice(None))).numpy()
    # Labels that FP32 has right everywhere: what a layer loses is what it disagrees on.
    labelled = dataclasses.replace(data, labels=outputs.argmax(axis=1), targets=outputs)
    metric = Metric("m", "min", lambda actual, wanted: float(np.abs(actual - wanted).max()))
    ranking = rank(found.fused, ranges_of(found), labelled, QUIET, count=64, metric=metric)
    assert ranking[0].top1_drop is not None
    assert ranking[0].top1_drop > 0.0
    for layer in ranking:
        assert layer.agreement is not None
        assert layer.top1_drop == pytest.approx(1.0 - layer.agreement)
        assert layer.metric_drop is not None
        assert layer.metric_drop > 0.0  # FP32 has no error, and less is better
    assert ranking[0].metric_drop > ranking[-1].metric_drop


def test_the_ranking_leaves_the_model_as_it_was() -> None:
    module = Residual()
    _, found = calibrated(module, recipe())
    batch = samples(seed=5).tensor(slice(None))
    with torch.inference_mode():
        before = found.fused.module(batch.clone())
        rank(found.fused, ranges_of(found), samples(), QUIET)
        assert torch.equal(found.fused.module(batch.clone()), before)


class Stubbed(nn.Module):
    """A model with its own stubs, which is quantized in eager mode: it has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(144, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(self.quant(x)))
        if x.sum() > 1e9:  # what no graph can hold
            x = x * 0.0
        result: torch.Tensor = self.dequant(self.fc(x.flatten(1)))
        return result


def test_a_model_without_a_graph_is_ranked_by_its_modules() -> None:
    model, found = calibrated(Stubbed(), recipe())
    assert found.fused.style == "eager"
    ranges = ranges_of(found)
    ranking = {layer.name: layer for layer in rank(found.fused, ranges, samples(), QUIET)}
    assert ranking.keys() == {"conv", "fc"}
    batch = samples().tensor(slice(None))
    with torch.inference_mode():
        reference = model.module(batch)
        hidden = found.fused.module.conv(round_activation(batch, ranges["quant"], 256))
        hidden = round_activation(hidden, ranges["conv"], 256)
        inner = found.fused.module.conv[0]
        kept = inner.weight.data
        inner.weight.data = round_weight(kept, 0)
        hidden = round_activation(
            found.fused.module.conv(round_activation(batch, ranges["quant"], 256)), ranges["conv"], 256
        )
        inner.weight.data = kept
        output = model.module.fc(hidden.flatten(1))
    assert ranking["conv"].output_sqnr_db == pytest.approx(decibels(reference.numpy(), output.numpy()), abs=0.05)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.lstm(x)[0][:, -1])
        return result


def test_dynamic_quantization_rounds_weights_and_inputs() -> None:
    torch.manual_seed(0)
    module = Recurrent().eval()
    with torch.no_grad():
        module.lstm.weight_ih_l0[0] *= 300.0  # one scale for the whole tensor: the other rows get no steps
    data = samples((5, 6))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ranking = rank(FusedModel(module, "dynamic", (), 0.0, 0.0), {}, data, QUIET)
    assert [layer.name for layer in ranking] == ["lstm", "fc"]
    assert ranking[0].activation_sqnr_db is None
    assert ranking[0].weight_sqnr_db is not None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_noise_sums_over_batches() -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((6, 7)).astype(np.float32)
    actual = (reference + random.standard_normal((6, 7)) / 100).astype(np.float32)
    noise = Noise()
    for rows in (slice(0, 2), slice(2, 6)):
        noise.add(torch.from_numpy(reference[rows]), torch.from_numpy(actual[rows]))
    assert noise.sqnr_db == pytest.approx(accuracy.sqnr_db(reference, actual), abs=1e-4)
    assert Noise().sqnr_db == math.inf


def test_an_activation_that_was_always_zero_is_left_alone() -> None:
    assert torch.equal(round_activation(torch.zeros(3), (0.0, 0.0), 256), torch.zeros(3))


def test_the_report_says_everything_in_every_form(tmp_path: Path) -> None:
    from helpers.tiny_models import loaded

    model, found = calibrated(Residual(), recipe())
    spec = loaded(tmp_path, calibration={"source": "synthetic"})
    progress = Recorder()
    report = report_on(spec, FloatModel(**vars(model)), found, ranges_of(found), samples(), progress, count=7)
    assert report.samples == 7
    plain = json.loads(json.dumps(to_dict(report), allow_nan=False))
    assert [layer["rank"] for layer in plain["layers"]] == [1, 2, 3, 4, 5]
    table, page = format_table(report), render_html(report)
    for layer in report.layers:
        assert layer.name in table
        assert layer.name in page
        assert f"{layer.output_sqnr_db:.1f}" in table
    assert "random" in table
    assert page.count("<svg") == 3
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_command_ranks_a_recipes_layers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    (tmp_path / "r.toml").write_text(
        'schema = 1\n[package]\nname = "tiny"\n[model]\nsource = "python:m.py:make"\nweights = "random"\n'
        'input_shape = [3, 8, 8]\n[calibration]\nsource = "synthetic"\nsamples = 16\n'
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["sensitivity", "r.toml", "--samples", "8", "--json", "--html", "page.html", "--quiet"])
    assert left.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert {layer["name"] for layer in said["layers"]} == {"0", "3"}
    assert said["samples"] == 8
    assert "<svg" in (tmp_path / "page.html").read_text()
    with pytest.raises(SystemExit) as left:
        main(["sensitivity", "r.toml", "--html", "gone/page.html"])
    assert left.value.code == 2
