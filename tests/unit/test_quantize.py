"""The quantize stage on all four engines: close to FP32, what stays FP32, and the limits of the hardware."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack import accuracy
from cpupack.artifacts import QuantizedModel
from cpupack.errors import QuantizationError
from cpupack.quantized_engine import engine as engine_of
from cpupack.stages.quantize import check_names, quantize
from cpupack.stages.saturate import overflowing_layers
from cpupack.stages.script import count_operators, script
from helpers.tiny_models import ENGINES, SHAPE, calibrated, host_bits, quantized, recipe, run, samples, target

# Rounding to 8 bits over a range of r costs r^2 / (12 * 255^2): for a normal tensor over +-4 sigma 41 dB below it. Ten
# such roundings add up to 31 dB; 25 leaves room for other distributions, and a wrong scale or weight is far below it.
BOUND_DB = {8: 25.0, 7: 19.0}  # 6 dB a bit


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """torchvision's BasicBlock with a downsampling path."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + self.downsample(x))


def resnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Block(8, 8, 1),
        Block(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(16, 10),
    )


def sqnr(module: nn.Module, engine: str, bits: int = 8, **tables: dict) -> tuple[float, QuantizedModel]:
    model, int8 = quantized(module, engine, bits, spec=recipe(**tables))
    evaluation = samples(seed=1)
    return accuracy.sqnr_db(run(model, evaluation), run(int8, evaluation)), int8


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [7, 8])
def test_a_resnet_stays_close_to_fp32_and_nothing_stays_fp32(engine: str, bits: int) -> None:
    db, int8 = sqnr(resnet(), engine, bits)
    if bits <= host_bits(engine):  # where 8 bits saturate, nobody says how wrong they are
        assert db > BOUND_DB[bits]
    assert int8.notes == ()
    with engine_of(engine), torch.inference_mode():
        _, int8_calls, fp32_calls = count_operators(int8.module, torch.zeros(1, *SHAPE))
    assert fp32_calls == 3  # the last pool, and the ends of the range before the classifier, whose results are FP32
    assert int8_calls >= 8  # seven convolutions, a linear layer


@pytest.mark.parametrize(
    "observer", ["minmax", "moving_average", "histogram", "percentile", "mse", "tail_mse", "entropy"]
)
def test_every_observer_leaves_a_usable_model(observer: str) -> None:
    # Clipping observers may give up tails that a net of this size needs, so the bound is that of a usable model.
    assert sqnr(resnet(), "fbgemm", quantize={"observer": observer})[0] > 12.0


def exact_ranges_db(module: nn.Module, engine: str) -> float:
    """Return the SQNR on the calibration data itself with nothing clipped: rounding alone, or an operator is wrong.

    As a build for this host would quantize: what overflows even with 7 bits (tanh has all 256 codes) gets lesser
    weights.
    """
    data, spec = samples(), recipe(quantize={"observer": "minmax"})
    model, stats = calibrated(module, spec, data)
    int8 = quantize(stats, model.module, spec, target(engine))
    if host_bits(engine) < 8:
        limited = {layer.name for layer in overflowing_layers(int8, data) if layer.overflows}
        int8 = quantize(stats, model.module, spec, target(engine), limited)
    return accuracy.sqnr_db(run(model, data), run(int8, data))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 8, 3),
    "conv 1x1": lambda: nn.Conv2d(3, 8, 1),
    "conv stride, dilation": lambda: nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2),
    "conv without bias": lambda: nn.Conv2d(3, 8, 3, bias=False),
    "grouped conv": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2)),
    "depthwise conv": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)),
    "reflect padding": lambda: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    "same padding": lambda: nn.Conv2d(3, 8, 3, padding="same"),
    "transposed conv": lambda: nn.ConvTranspose2d(3, 3, 2, stride=2),
    "transposed conv, channels": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 6, 2, stride=2)),
    "transposed conv, eights": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2)),
    "transposed conv, output padding": lambda: nn.ConvTranspose2d(3, 3, 3, stride=2, output_padding=1),
    "transposed conv, batch norm": lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 2), nn.BatchNorm2d(3)),
    "batch norm, relu": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)),
    "batch norm after a pool": lambda: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(3)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)),
    "linear over the last dimension": lambda: nn.Linear(8, 5),
    "linear, batch norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU()),
    "average pool": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)),
    "sigmoid": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 1)),
    "hardsigmoid": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardsigmoid(), nn.Conv2d(4, 4, 1)),
    "hardswish": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.Conv2d(4, 4, 1)),
    "tanh": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 1)),
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Softmax(1), nn.Linear(8, 8)),
    "silu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1)),
    "gelu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 1)),
    "leaky relu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 1)),
    "elu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.Conv2d(4, 4, 1)),
    "prelu": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 4, 1)),
    "layer norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(6), nn.Conv2d(4, 4, 1)),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1)),
    "instance norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 4, 1)),
    "hardtanh": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(-0.5, 0.5), nn.Conv2d(4, 4, 1)),
    "relu6 after a pool": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(4, 4, 1)),
    "upsample": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 1)),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PixelShuffle(2), nn.Conv2d(1, 4, 1)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "qnnpack"])  # x86 is one of the first two for each layer
def test_every_layer_is_right_in_int8_or_stays_fp32(engine: str, name: str) -> None:
    assert exact_ranges_db(nn.Sequential(LAYERS[name]()), engine) > BOUND_DB[host_bits(engine)]


@pytest.mark.parametrize(("module", "shape"), [(nn.Conv1d(3, 4, 3), (3, 16)), (nn.Conv3d(3, 4, 2), (3, 4, 4, 4))])
@pytest.mark.parametrize("engine", ENGINES)
def test_other_ranks_are_right_too(engine: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    spec, data = recipe(shape), samples(shape)
    model, int8 = quantized(nn.Sequential(module), engine, spec=spec, data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > BOUND_DB[host_bits(engine)]


class LooksAtItsInput(nn.Module):
    """As torchvision's VisionTransformer: a shape is read and not used."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _ = x.shape
        result: torch.Tensor = self.net(x)
        return result


def test_what_nothing_reads_is_left_out() -> None:
    torch.manual_seed(0)
    _, looks = quantized(LooksAtItsInput())
    torch.manual_seed(0)
    _, plain = quantized(resnet())
    np.testing.assert_array_equal(run(looks, samples()), run(plain, samples()))


class Functional(nn.Module):
    def __init__(self, forward: Callable[[Functional, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self._forward(self, x))


FUNCTIONAL: dict[str, Callable[[Functional, torch.Tensor], torch.Tensor]] = {
    "add": lambda net, x: net.a(x) + net.b(x),
    "add a number": lambda net, x: net.a(x) + 0.7,
    "add with alpha": lambda net, x: torch.add(net.a(x), net.b(x), alpha=3),
    "add method": lambda net, x: net.a(x).add(net.b(x)),
    "add in place": lambda net, x: net.a(x).add_(net.b(x)),
    "subtract": lambda net, x: net.a(x) - net.b(x),
    "multiply": lambda net, x: net.a(x) * net.b(x),
    "multiply by a number": lambda net, x: net.a(x) * 3.0,
    "divide": lambda net, x: net.a(x) / (net.b(x).abs() + 1.0),
    "squeeze and excite": lambda net, x: (y := net.a(x)) * torch.sigmoid(net.b(F.adaptive_avg_pool2d(y, 1))),
    "hardsigmoid": lambda net, x: net.a(x) * F.hardsigmoid(net.b(x)),
    "hardswish": lambda net, x: F.hardswish(net.a(x)),
    "relu6": lambda net, x: F.relu6(net.a(x) + net.b(x)),
    "hardtanh": lambda net, x: F.hardtanh(net.a(x) + net.b(x), -0.3, 0.2),
    "clamp method": lambda net, x: net.a(x).clamp(-0.2, 0.4),
    "clamp in place": lambda net, x: net.a(x).clamp_(-0.2, 0.4),
    "clamp": lambda net, x: torch.clamp(net.a(x), -0.2, 0.4),
    "mean": lambda net, x: net.a(x).mean([2, 3], keepdim=True),
    "interpolate": lambda net, x: F.interpolate(net.a(x), scale_factor=2.0, mode="nearest"),
    "channel shuffle": lambda net, x: torch.cat([(y := net.a(x).chunk(3, 1))[2], y[0], y[1]], 1),
    "transpose": lambda net, x: net.a(x).transpose(2, 3),
    "pad": lambda net, x: F.pad(net.a(x), (1, 1, 1, 1)),
    "pad with a value": lambda net, x: F.pad(net.a(x), (1, 1, 1, 1), value=0.5),
    "maximum": lambda net, x: torch.maximum(net.a(x), net.b(x)),
    "relu method": lambda net, x: net.a(x).relu(),
    "concatenate": lambda net, x: torch.cat([net.a(x), net.b(x) * 10.0], 2),
    "stack": lambda net, x: torch.stack([net.a(x), net.b(x)], 1)[:, 0],
    "transposed conv": lambda net, x: F.conv_transpose2d(net.a(x), net.b.weight),
    "matmul": lambda net, x: torch.matmul(net.a(x), net.b(x)),
}


@pytest.mark.filterwarnings("ignore:All inputs of this cat operator")  # right, but slower than one range
@pytest.mark.parametrize("name", FUNCTIONAL)
@pytest.mark.parametrize("engine", ["onednn", "qnnpack"])
def test_every_function_is_right_in_int8_or_stays_fp32(engine: str, name: str) -> None:
    # A product or quotient of two roundings, then a third convolution: 5 dB less than a layer.
    assert exact_ranges_db(Functional(FUNCTIONAL[name]), engine) > 20.0


@pytest.mark.parametrize("isa_bits", [7, 8])
@pytest.mark.parametrize("engine", ["fbgemm", "x86", "onednn"])
def test_seven_bits_are_all_that_activations_use_without_vnni(engine: str, isa_bits: int) -> None:
    """VPMADDUBSW adds two products in 16 bits: 2 * 127 * 128 fits, 2 * 255 * 128 does not."""
    data = samples()
    _, int8 = quantized(resnet(), engine, isa_bits, spec=recipe(quantize={"observer": "minmax"}), data=data)
    largest = 0

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            nonlocal largest
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_quantized:
                largest = max(largest, int(value.int_repr().max()))
            return value

    with engine_of(engine), torch.inference_mode():
        Watch(int8.module).run(data.tensor(slice(None)).contiguous(memory_format=torch.channels_last))
    if isa_bits == 7:
        assert largest <= 128  # 127, and rounding may put the very largest value one step further
    else:
        assert largest > 200


def test_skipped_modules_stay_fp32_with_the_functions_in_them() -> None:
    _, int8 = quantized(resnet(), "fbgemm", spec=recipe(quantize={"skip": ["5"]}))
    modules = dict(int8.module.named_modules())
    inside = [type(module) for name, module in modules.items() if name.startswith("5.")]
    assert not any("quantized" in kind.__module__.split(".") for kind in inside)
    additions = [getattr(node.target, "__name__", str(node.target)) for node in int8.module.graph.nodes]
    # Block 4 adds in INT8 (with its ReLU), block 5 in FP32.
    assert additions.count("add_relu") == 1
    assert additions.count("add") == 1
    assert len(int8.notes) == 3
    assert all(note.startswith("5.") and note.endswith("stayed FP32: listed in skip") for note in int8.notes)


def test_a_skipped_function_stays_fp32() -> None:
    _, int8 = quantized(resnet(), "fbgemm", spec=recipe(quantize={"skip": ["5.add"]}))
    additions = [getattr(node.target, "__name__", str(node.target)) for node in int8.module.graph.nodes]
    assert (additions.count("add_relu"), additions.count("add")) == (1, 1)  # block 4's, and block 5's in FP32


@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "qnnpack"])
def test_what_only_fp32_layers_read_is_not_rounded_for_them(engine: str) -> None:
    """The pooling before a classifier in FP32: its mean of INT8 values has finer steps than INT8 has."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.ReLU()
    )

    def calls(skip: list[str]) -> list[str]:
        _, int8 = quantized(layers, engine, spec=recipe(quantize={"skip": skip}))
        nodes = [node for node in int8.module.graph.nodes if node.op != "get_attr"]
        found = [str(getattr(node.target, "__name__", node.target)) for node in nodes]
        return ["quantize" if "quantize_per_tensor" in name else name for name in found]

    assert calls(["4"])[1:-1] == ["quantize", "0", "dequantize", "2", "flatten", "4"]
    assert calls(["0"])[1:4] == ["0", "quantize", "2"]  # an INT8 layer reads it: the pooling stays INT8


@pytest.mark.parametrize("skip", ["1", "2"])
def test_skipping_a_part_of_a_fused_chain_keeps_the_whole_chain(skip: str) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    _, int8 = quantized(layers, "fbgemm", spec=recipe(quantize={"skip": [skip]}))
    assert [note.split()[0] for note in int8.notes] == ["0.0"]
    assert all(note.endswith(": listed in skip") for note in int8.notes)


def test_a_skipped_name_that_does_not_exist_is_named() -> None:
    with pytest.raises(QuantizationError, match=r"no module '4\.conv3'") as caught:
        quantized(resnet(), spec=recipe(quantize={"skip": ["4.conv3"]}))
    assert "did you mean '4.conv" in (caught.value.hint or "")
    named = recipe(quantize={"skip": ["4", "4.conv1"], "static": ["5"], "dynamic": ["5.downsample.0"]}).quantize
    check_names(resnet(), resnet(), named)
    for key in ("static", "dynamic"):
        with pytest.raises(QuantizationError, match=rf"\[quantize\] {key}: the model has no module '4.conv3'"):
            check_names(resnet(), resnet(), recipe(quantize={key: ["4.conv3"]}).quantize)


@pytest.mark.parametrize("engine", ["fbgemm", "onednn"])
def test_quantizing_changes_neither_the_model_nor_the_calibrated_one(engine: str) -> None:
    model, stats = calibrated(resnet(), recipe())
    evaluation = samples(seed=1)
    before = run(model, evaluation)
    with torch.inference_mode():
        fused_before = stats.fused.module(evaluation.tensor(slice(None)))
    code = stats.fused.module.code
    first, second = (quantize(stats, model.module, recipe(), target(engine)) for _ in range(2))
    assert np.array_equal(run(first, evaluation), run(second, evaluation))
    assert np.array_equal(run(model, evaluation), before)
    with torch.inference_mode():
        assert torch.equal(stats.fused.module(evaluation.tensor(slice(None))), fused_before)
    assert stats.fused.module.code == code
    assert torch.backends.quantized.engine != "qnnpack"


def test_a_concatenation_and_its_inputs_share_one_range() -> None:
    net = Functional(FUNCTIONAL["concatenate"])
    _, int8 = quantized(net, "fbgemm", spec=recipe(quantize={"observer": "minmax"}))
    seen = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is torch.cat:
                seen.extend([*n.all_input_nodes, value])
                seen[:-1] = [self.env[node] for node in n.all_input_nodes]
            return value

    with engine_of("fbgemm"), torch.inference_mode():
        Watch(int8.module, garbage_collect_values=False).run(samples().tensor(slice(None)))
    assert len(seen) == 3
    # torch multiplies the scale itself for a product with a number, so the last bit may differ.
    assert len({(float(f"{each.q_scale():.5g}"), each.q_zero_point()) for each in seen}) == 1


def test_nothing_in_int8_is_an_error(tmp_path: Path) -> None:
    _, int8 = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), spec=recipe(quantize={"skip": ["0"]}))
    with pytest.raises(QuantizationError, match="nothing in this model runs in INT8"):
        script(int8, SHAPE, tmp_path / "model.pt")
