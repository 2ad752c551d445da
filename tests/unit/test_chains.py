"""Fusion on captured graphs: which chains are found, that a list is honoured exactly, and that FP32 stays the same."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.artifacts import FusedModel
from cpupack.errors import ModelError
from cpupack.progress import SilentProgress
from helpers.tiny_models import SHAPE, Recorder, chains_of, float_model, fuse_model, quantized, recipe

FLAT = (6,)


class Net(nn.Module):
    """Named children, and a forward that calls them."""

    def __init__(self, forward: Callable[[Net, torch.Tensor], torch.Tensor], **children: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


class Block(nn.Module):
    """torchvision's BasicBlock: one ReLU module after bn1 and again after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + x)


def conv(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, 3, padding=1)


def fused(module: nn.Module, shape: tuple[int, ...] = SHAPE, modules: str | list[list[str]] = "auto") -> FusedModel:
    """Fuse and check, on data that the stage does not use, that the FP32 outputs are the same up to rounding."""
    model = float_model(module, shape)
    result = fuse_model(model, recipe(shape, fuse={"modules": modules}), SilentProgress())
    batch = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(result.module(batch), model.module(batch), rtol=1e-4, atol=1e-5)
    return result


def calls(result: FusedModel) -> list[str]:
    """Return the modules and functions that the fused graph still calls."""
    modules = dict(result.module.named_modules())
    nodes = [node for node in result.module.graph.nodes if node.op.startswith("call")]
    return [type(modules[node.target]).__name__ if node.op == "call_module" else node.target.__name__ for node in nodes]


@pytest.mark.parametrize(
    ("layers", "shape", "chain", "left"),
    [
        ([conv(), nn.BatchNorm2d(4)], SHAPE, 2, "Conv2d"),
        ([conv(), nn.BatchNorm2d(4), nn.ReLU()], SHAPE, 3, "ConvReLU2d"),
        ([conv(), nn.ReLU()], SHAPE, 2, "ConvReLU2d"),
        ([conv(), nn.ReLU6()], SHAPE, 2, "ConvReLU6"),
        ([conv(), nn.BatchNorm2d(4), nn.ReLU6(inplace=True)], SHAPE, 3, "ConvReLU6"),
        ([conv(), nn.Hardtanh(0.0, 6.0)], SHAPE, 2, "ConvReLU6"),
        ([nn.Linear(6, 4), nn.ReLU()], FLAT, 2, "LinearReLU"),
        ([nn.Linear(6, 4), nn.BatchNorm1d(4)], FLAT, 2, "Linear"),
        ([nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU()], FLAT, 3, "LinearReLU"),
        ([nn.BatchNorm2d(3), nn.ReLU()], SHAPE, 2, "BNReLU2d"),
        ([nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()], (3, 8), 3, "ConvReLU1d"),
        ([nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4), nn.ReLU()], (3, 4, 4, 4), 3, "ConvReLU3d"),
        ([nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4)], SHAPE, 2, "ConvTranspose2d"),
        ([nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)], SHAPE, 2, "Conv2d"),
    ],
    ids=lambda value: "-".join(type(layer).__name__ for layer in value) if isinstance(value, list) else "",
)
def test_a_chain_becomes_one_call(layers: list[nn.Module], shape: tuple[int, ...], chain: int, left: str) -> None:
    result = fused(nn.Sequential(*layers), shape)
    assert result.chains == (tuple(str(number) for number in range(chain)),)
    assert calls(result) == [left]


@pytest.mark.parametrize("relu", [F.relu, torch.relu, lambda x: x.relu(), F.relu_])
def test_a_relu_called_as_a_function_is_fused(relu: Callable[[torch.Tensor], torch.Tensor]) -> None:
    result = fused(Net(lambda net, x: relu(net.bn(net.conv(x))), conv=conv(), bn=nn.BatchNorm2d(4)))
    assert [chain[:2] for chain in result.chains] == [("conv", "bn")]
    assert calls(result) == ["ConvReLU2d"]


def test_a_relu6_called_as_a_function_is_fused() -> None:
    assert calls(fused(Net(lambda net, x: F.relu6(net.conv(x)), conv=conv()))) == ["ConvReLU6"]


def test_a_relu_module_that_is_called_twice_keeps_its_second_call() -> None:
    result = fused(nn.Sequential(conv(), Block()))
    assert result.chains == (("1.conv1", "1.bn1", "1.relu"), ("1.conv2", "1.bn2"))
    assert calls(result) == ["Conv2d", "ConvReLU2d", "Conv2d", "add", "ReLU"]


def test_every_fused_chain_of_a_resnet_block_is_listed_for_the_recipe() -> None:
    model = float_model(nn.Sequential(conv(), Block()))
    auto = fuse_model(model, recipe(), SilentProgress())
    listed = [list(chain) for chain in chains_of(model)]
    assert fuse_model(model, recipe(fuse={"modules": listed}), SilentProgress()).chains == auto.chains


def test_an_output_with_a_second_reader_ends_the_chain() -> None:
    result = fused(
        Net(lambda net, x: (y := net.conv(x)) + net.relu(net.bn(y)), conv=conv(), bn=nn.BatchNorm2d(4), relu=nn.ReLU())
    )
    assert result.chains == (("bn", "relu"),)
    assert calls(result) == ["Conv2d", "BNReLU2d", "add"]


def test_an_output_that_the_model_also_returns_ends_the_chain() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.conv(x)
        return torch.cat([y, net.relu(y)], 1)

    assert fused(Net(forward, conv=conv(), relu=nn.ReLU())).chains == ()


def test_a_layer_that_is_called_twice_is_fused_twice_with_its_own_copy() -> None:
    net = Net(
        lambda net, x: net.bn(net.conv(net.bn2(net.conv(x)))),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        bn=nn.BatchNorm2d(3),
        bn2=nn.BatchNorm2d(3),
    )
    assert fused(net).chains == (("conv", "bn2"), ("conv_1", "bn"))


def test_one_module_under_two_names_is_two_layers() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    net = Net(
        lambda net, x: net.bn(net.first(x)) + net.second(x.abs()), first=shared, second=shared, bn=nn.BatchNorm2d(3)
    )
    assert fused(net).chains == (("first", "bn"),)


def test_a_batch_norm_over_another_dimension_is_not_fused() -> None:
    # Linear works on the last dimension of (n, 3, 6), BatchNorm1d on the second.
    layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(3))
    assert fused(layers, (3, 6)).chains == ()
    with pytest.raises(ModelError, match=r"cannot be fused: .*BatchNorm1d"):
        fuse_model(float_model(layers, (3, 6)), recipe((3, 6), fuse={"modules": [["0", "1"]]}), SilentProgress())


def test_a_list_is_honoured_exactly() -> None:
    layers = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4), nn.BatchNorm2d(4), nn.ReLU())
    result = fused(layers, modules=[["0", "1"]])
    assert result.chains == (("0", "1"),)
    assert calls(result) == ["Conv2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU"]


@pytest.mark.parametrize("engine", ["fbgemm", "onednn", "qnnpack"])
def test_quantization_fuses_nothing_that_the_list_leaves_out(engine: str) -> None:
    layers = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4), nn.ReLU())
    _, int8 = quantized(layers, engine, spec=recipe(fuse={"modules": [["0", "1"]]}))
    modules = dict(int8.module.named_modules())
    names = [type(modules[node.target]).__name__ for node in int8.module.graph.nodes if node.op == "call_module"]
    assert names == ["Conv2d", "ReLU", "Conv2d", "ReLU"]
    assert not any("ReLU2d" in type(module).__name__ for module in modules.values())


def test_an_empty_list_fuses_nothing() -> None:
    assert fused(nn.Sequential(conv(), nn.ReLU()), modules=[]).chains == ()


@pytest.mark.parametrize(
    ("chain", "words", "hint"),
    [
        (["conv", "bnn"], "the captured model has no call of 'bnn'", "did you mean 'bn'?"),
        (["zzz", "bn"], "the captured model has no call of 'zzz'", "cpupack fusions"),
        (["conv", "relu"], "the output of 'conv' is read by 'bn', so 'relu' is not its only reader", "fusions"),
        (["relu", "pool"], "ReLU + MaxPool2d does not run as one operator", "conv-bn-relu"),
        (["bn", "conv"], "'bn' is read by 'relu', so 'conv' is not its only", "fusions"),
        (["tail", "add"], "the output of 'tail' is read by 'add', 'add_1'", None),
    ],
)
def test_a_listed_chain_that_cannot_be_fused_says_why(chain: list[str], words: str, hint: str | None) -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        y = net.tail(net.pool(net.relu(net.bn(net.conv(x)))))
        return (y + 1.0) + (y + 2.0)

    net = Net(forward, conv=conv(), bn=nn.BatchNorm2d(4), relu=nn.ReLU(), pool=nn.MaxPool2d(2), tail=conv(4))
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        fuse_model(float_model(net), recipe(fuse={"modules": [chain]}), SilentProgress())
    assert str(caught.value).startswith(f"[fuse] modules: [{', '.join(chain)}]")
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize("chains", [[["0", "1"], ["1", "2"]], [["0", "1"], ["0", "1"]], [["0", "1", "2"], ["1", "2"]]])
def test_a_call_listed_in_two_chains_is_an_error(chains: list[list[str]]) -> None:
    model = float_model(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU()))
    with pytest.raises(ModelError, match=r"'[01]' is in two chains"):
        fuse_model(model, recipe(fuse={"modules": chains}), SilentProgress())


def test_the_model_as_loaded_is_not_changed() -> None:
    model = float_model(nn.Sequential(conv(), Block(), nn.Dropout()))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    types = [type(module) for module in model.module.modules()]
    fuse_model(model, recipe(), SilentProgress())
    assert [type(module) for module in model.module.modules()] == types
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_the_note_gives_the_number_of_chains_and_the_proof() -> None:
    progress = Recorder()
    result = fuse_model(float_model(nn.Sequential(conv(), nn.BatchNorm2d(4))), recipe(), progress)
    assert result.max_abs_diff <= 1e-5 * max(result.max_abs_output, 1.0)
    assert progress.notes[0].startswith("1 chains fused; FP32 outputs differ by at most")
