"""Each correction against its definition: all roundings tried, the same FP32 function, a mean error of zero."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import fx, nn

from cpupack import accuracy
from cpupack.artifacts import CalibratedModel, FusedModel
from cpupack.errors import QuantizationError
from cpupack.graph.weight_grid import round_to_grid, weight_scales
from cpupack.progress import SilentProgress
from cpupack.recipe import Recipe
from cpupack.stages.calibrate import calibrate
from cpupack.stages.correct import correct
from cpupack.stages.correct.equalize import equalize, find_pairs
from cpupack.stages.correct.layers import find_layers
from cpupack.stages.correct.rounding import can_reconstruct, input_moments, reconstruct, reconstruct_rounding
from cpupack.stages.quantize import quantize
from cpupack.stages.quantize.ranges import choose_ranges
from helpers.tiny_models import calibrated, host_bits, recipe, run, samples, target

GENERATOR = torch.Generator()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR.manual_seed(seed))


def corrected(
    module: nn.Module, spec: Recipe, *, bits: int = 8, pixels: bool = False
) -> tuple[nn.Module, CalibratedModel, CalibratedModel]:
    """Return the FP32 model, its calibrated form, and that with the corrections of ``spec`` for ``bits``."""
    data = samples(tuple(spec.model.input_shape), count=64)
    model, before = calibrated(module, spec, data)

    def recalibrate(fused: FusedModel) -> CalibratedModel:
        return calibrate(fused, data, 16, SilentProgress())

    after = correct(
        before,
        data,
        spec.quantize,
        2**bits,
        lambda each: choose_ranges(each.stats, spec.quantize.observer, 2**bits),
        recalibrate,
        SilentProgress(),
        pixels=pixels,
    )
    return model.module, before, after


# --- rounding


def correlated(rows: int, inputs: int, seed: int) -> torch.Tensor:
    """Return what layers read: positive and far from independent."""
    return torch.relu(
        randn(rows, 2, seed=seed) @ randn(2, inputs, seed=seed + 1) + 0.3 * randn(rows, inputs, seed=seed + 2)
    )


def test_rounding_is_close_to_the_best_of_all_roundings() -> None:
    """Eight inputs have 256 roundings: all are tried, for the outputs of twenty layers."""
    found, nearest, best = [], [], []
    for seed in range(20):
        inputs = correlated(200, 8, seed)
        weight = randn(1, 3, 8, seed=seed + 50)
        scales = weight.abs().amax(dim=2, keepdim=True) / 127
        moments = (inputs.T @ inputs / len(inputs))[None]

        def losses(
            rounded: torch.Tensor,
            inputs: torch.Tensor = inputs,
            weight: torch.Tensor = weight,
            by: torch.Tensor = scales,
        ) -> torch.Tensor:
            return (inputs @ ((rounded - weight)[0] / by[0]).T).square().mean(dim=0)

        lower = torch.floor(weight / scales)
        ups = itertools.product((0.0, 1.0), repeat=8)
        every = torch.stack([losses((lower + torch.tensor(up)) * scales) for up in ups])
        found.append(losses(reconstruct_rounding(weight, moments, scales)))
        nearest.append(losses(torch.round(weight / scales) * scales))
        best.append(every.amin(dim=0))
    found, nearest, best = torch.cat(found), torch.cat(nearest), torch.cat(best)
    assert (found >= best * (1 - 1e-4)).all()
    assert (found <= nearest * 1.02).all()  # the damping of the moments is all they may differ by
    assert found.sum() < 0.7 * nearest.sum()
    # more than half of what there is to win
    assert (nearest - found).sum() > 0.6 * (nearest - best).sum()


def test_rounded_weights_are_next_to_what_they_were_and_keep_their_scale() -> None:
    weight = randn(2, 6, 40)
    scales = weight.abs().amax(dim=2, keepdim=True) / 127
    rows = torch.stack([correlated(300, 40, 1), correlated(300, 40, 2)])
    rounded = reconstruct_rounding(weight, torch.bmm(rows.transpose(1, 2), rows), scales)
    assert ((rounded - weight).abs() <= scales * (1 + 1e-4)).all()
    assert torch.allclose(rounded.abs().amax(dim=2, keepdim=True) / 127, scales, rtol=1e-6)
    codes = rounded / scales
    assert torch.allclose(codes, codes.round(), atol=1e-3)


def test_independent_inputs_leave_every_weight_at_its_nearest() -> None:
    weight = randn(1, 4, 30)
    scales = weight.abs().amax(dim=2, keepdim=True) / 127
    assert torch.equal(reconstruct_rounding(weight, torch.eye(30)[None], scales), torch.round(weight / scales) * scales)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 5), (64, 12)),
    "linear of tokens": (lambda: nn.Linear(12, 5), (8, 7, 12)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (8, 4, 9, 9)),
    "padding of the edge": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="replicate"), (8, 4, 5, 5)),
    "same padding": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), (8, 4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (8, 4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (8, 6, 8, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (8, 4, 20)),
}


def layer(name: str, seed: int) -> nn.Module:
    """Return a layer whose weights no other test changes."""
    torch.manual_seed(seed)
    return LAYERS[name][0]()


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_of_what_the_layer_multiplies(name: str) -> None:
    """e^T H e is the mean squared change of the outputs for any change e of the weights."""
    module = layer(name, seed=0)
    assert can_reconstruct(module)
    inputs = randn(*LAYERS[name][1])
    changed = copy.deepcopy(module)
    change = randn(*module.weight.shape, seed=3) * 0.1
    changed.weight.data += change
    with torch.no_grad():
        difference = changed(inputs) - module(inputs)
        axis = difference.ndim - 1 if isinstance(module, nn.Linear) else 1
        measured = difference.movedim(axis, 0).flatten(1).square().mean(dim=1)
        moments = input_moments(module, inputs, centred=False)
    groups = len(moments)
    rows = change.reshape(groups, change.shape[0] // groups, -1)
    expected = torch.einsum("goi,gij,goj->go", rows, moments, rows).reshape(-1)
    assert torch.allclose(measured, expected, rtol=1e-3)


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_output_changes_less_than_with_nearest_weights(name: str, axis: int | None) -> None:
    """On average over weights: where they lie between two steps decides how much there is to win for one layer."""
    inputs = torch.relu(randn(*LAYERS[name][1])) + 0.5
    ratios = []
    for seed in range(10):
        module = layer(name, seed)
        with torch.no_grad():
            expected = module(inputs)
            errors = []
            for weight in (reconstruct(module, inputs, axis, centred=False), round_to_grid(module.weight, axis)):
                other = copy.deepcopy(module)
                other.weight.data = weight
                errors.append(float((other(inputs) - expected).square().mean()))
        ratios.append(errors[0] / errors[1])
    assert np.mean(ratios) < 0.8  # of one layer between 0.2 and 1; of ten at most 0.7 for depthwise, 0.6 for others


# --- equalization


def chain() -> nn.Sequential:
    """Convolutions in a row: plain, depthwise, grouped, ReLU and pooling between; one channel dwarfs the others."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 1, groups=2),
        nn.Conv2d(12, 6, 1),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
    )
    with torch.no_grad():
        net[0].weight[2] *= 100.0
        net[0].bias[2] *= 100.0
        net[2].weight[2] /= 100.0
    return net


def pairs_of(graph: nn.Module) -> list[tuple[str, str]]:
    assert isinstance(graph, fx.GraphModule)
    pairs = find_pairs(graph, find_layers(graph, (), per_channel=True))
    return [(str(first.node.target), str(second.node.target)) for first, second in pairs]


def test_layers_are_paired_through_what_takes_a_scale_out() -> None:
    _, before = calibrated(chain(), recipe())
    # behind "6" is a ReLU6, which ends at 6 whatever the scale
    assert pairs_of(before.fused.module) == [("0", "2"), ("2", "5"), ("5", "6")]


def test_an_equalized_model_is_the_same_function() -> None:
    model, before, after = corrected(chain(), recipe(quantize={"equalize": True}))
    x = samples(count=8, seed=5).tensor(slice(None))
    with torch.inference_mode():
        expected, actual = model(x), after.fused.module(x)
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after.fused.module.get_submodule("0.0").weight, model[0].weight)
    assert after.stats.keys() == before.stats.keys()
    assert after.stats["_0"].maximum != before.stats["_0"].maximum


def test_equalized_layers_have_the_same_ranges_on_both_sides() -> None:
    """The fixed point of section 4.1: r1 = r2 for every channel, or the geometric mean of both before."""
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)
    graph = fx.symbolic_trace(nn.Sequential(first, nn.ReLU(), second))
    before = first.weight.detach().abs().amax(dim=(1, 2, 3)), second.weight.detach().abs().amax(dim=(0, 2, 3))
    pairs = find_pairs(graph, find_layers(graph, (), per_channel=True))
    with torch.no_grad():
        equalize(pairs)
    module = dict(graph.named_modules())
    after = module["0"].weight.abs().amax(dim=(1, 2, 3)), module["2"].weight.abs().amax(dim=(0, 2, 3))
    assert torch.allclose(after[0], after[1], rtol=1e-3)
    assert torch.allclose(after[0], torch.sqrt(before[0] * before[1]), rtol=1e-3)


def test_a_channel_that_is_read_elsewhere_is_left_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x) + self.c(x)

    assert pairs_of(fx.symbolic_trace(Two())) == []
    flattened = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    assert pairs_of(fx.symbolic_trace(flattened)) == []
    twice = nn.Conv2d(3, 3, 1)
    assert pairs_of(fx.symbolic_trace(nn.Sequential(twice, twice))) == []


def test_equalizing_mends_one_channel_that_dwarfs_the_others() -> None:
    data = samples(count=64)
    found = {}
    for equalizing in (False, True):
        spec = recipe(quantize={"equalize": equalizing, "observer": "minmax"})
        model, _, after = corrected(chain(), spec)
        int8 = quantize(after, model, spec, target("fbgemm"))
        with torch.inference_mode():
            reference = model(data.tensor(slice(None))).numpy()
        found[equalizing] = accuracy.sqnr_db(reference, run(int8, data))
    assert found[True] > found[False] + 6.0


# --- bias


@pytest.mark.parametrize("kind", ["plain", "grouped", "linear", "no bias"])
def test_the_mean_error_of_a_corrected_layer_is_zero(kind: str) -> None:
    """Of the layer as INT8 computes it: rounded weights on rounded inputs, per output channel."""
    layer = {
        "plain": nn.Conv2d(3, 6, 3),
        "grouped": nn.Conv2d(3, 6, 3, groups=3),
        "linear": nn.Linear(8, 6),
        "no bias": nn.Conv2d(3, 6, 3, bias=False),
    }[kind]
    spec = recipe(quantize={"bias_correction": True, "observer": "minmax", "weights": "per_tensor"})
    model, before, after = corrected(nn.Sequential(layer), spec)
    x = samples(count=64).spread(32).tensor(slice(None))
    low, high = choose_ranges(before.stats, "minmax", 256)["input_1"]
    scale = (high - low) / 255
    rounded = torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)
    with torch.inference_mode():
        expected = model(x)

        def mean_error(each: CalibratedModel) -> torch.Tensor:
            module = copy.deepcopy(each.fused.module.get_submodule("0"))
            module.weight.data = round_to_grid(module.weight, None)
            axis = 3 if kind == "linear" else 1
            return (module(rounded) - expected).movedim(axis, 0).flatten(1).mean(dim=1)

        assert mean_error(before).abs().max() > 1e-4
        assert mean_error(after).abs().max() < 1e-6
    assert torch.equal(after.fused.module.get_submodule("0").weight, before.fused.module.get_submodule("0").weight)


def test_later_layers_are_corrected_for_what_the_earlier_ones_left() -> None:
    """The errors of the first layer reach the second; the whole model's mean output is right in the end."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))
    data = samples(count=64).spread(32)
    errors = []
    for bias in (False, True):
        spec = recipe(quantize={"bias_correction": bias, "observer": "minmax", "weights": "per_tensor"})
        model, _, after = corrected(copy.deepcopy(net), spec, bits=host_bits("fbgemm"))
        int8 = quantize(after, model, spec, target("fbgemm"))
        with torch.inference_mode():
            reference = model(data.tensor(slice(None))).numpy()
        errors.append(np.abs((run(int8, data) - reference).mean(axis=(0, 2, 3))).mean())
    assert errors[1] < 0.5 * errors[0]


# --- the stage


def test_nothing_asked_for_changes_nothing() -> None:
    _, before, after = corrected(chain(), recipe())
    assert after is before


@pytest.mark.parametrize("settings", [{"bias_correction": True}, {"rounding": "adaround"}, {"equalize": True}])
def test_the_calibrated_model_is_not_changed(settings: dict[str, object]) -> None:
    spec = recipe(quantize=settings)
    _, before = calibrated(chain(), spec)
    kept = copy.deepcopy(before.fused.module.state_dict())
    _, again, after = corrected(chain(), spec)
    state = again.fused.module.state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in kept)
    assert any(not torch.equal(value, after.fused.module.state_dict().get(name, value)) for name, value in kept.items())


def test_skipped_layers_and_a_pixel_models_first_layer_stay_as_they_are() -> None:
    spec = recipe(quantize={"bias_correction": True, "rounding": "adaround", "skip": ["5"]})
    _, before, after = corrected(chain(), spec, pixels=True)
    first, second = before.fused.module.state_dict(), after.fused.module.state_dict()
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert changed == {"2", "6", "8"}


def test_reconstructed_weights_reach_the_engines_as_they_are() -> None:
    spec = recipe(quantize={"rounding": "adaround"})
    model, _, after = corrected(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)), spec)
    int8 = quantize(after, model, spec, target("fbgemm"))
    for name in ("0", "1"):
        weight = after.fused.module.get_submodule(name).weight
        packed = int8.module.get_submodule(name).weight()
        assert torch.equal(packed.int_repr().float(), torch.round(weight / weight_scales(weight, 0)))
        assert torch.allclose(packed.dequantize(), weight, rtol=1e-5)


def test_adaround_brings_the_whole_model_closer_to_fp32() -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    data = samples(count=64, seed=9)
    found = {}
    for rounding in ("nearest", "adaround"):
        spec = recipe(quantize={"rounding": rounding, "weights": "per_tensor"})
        model, _, after = corrected(copy.deepcopy(net), spec)
        # activations as they are: what is compared is the rounding of weights
        graph = copy.deepcopy(after.fused.module)
        for child in graph.modules():
            if isinstance(child, nn.Conv2d):
                child.weight.data = round_to_grid(child.weight, None)
        with torch.inference_mode():
            x = data.tensor(slice(None))
            found[rounding] = accuracy.sqnr_db(model(x).numpy(), graph(x).numpy())
    assert found["adaround"] > found["nearest"] + 0.5


def test_a_model_without_a_graph_cannot_be_equalized_or_rounded() -> None:
    class Stubs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv = torch.ao.quantization.QuantStub(), nn.Conv2d(3, 4, 3)
            self.dequant = torch.ao.quantization.DeQuantStub()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.conv(self.quant(x if x.sum() < 1e9 else -x)))

    for settings in ({"equalize": True}, {"rounding": "adaround"}):
        with pytest.raises(QuantizationError, match=r"needs a captured graph"):
            corrected(Stubs(), recipe(quantize=settings))
    _, before, after = corrected(Stubs(), recipe(quantize={"bias_correction": True}))
    assert after is before
