"""Capture: what is refused and why, whose names calls have, what constants are computed, and what passes it by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn.utils import parametrizations

from cpupack import accuracy
from cpupack.errors import ModelError
from cpupack.graph.names import is_within
from cpupack.graph.recurrent import Recurrent
from cpupack.graph.vocabulary import in_vocabulary
from cpupack.progress import SilentProgress
from cpupack.stages.capture import capture
from helpers.captured import Net, captured, kinds, module, names, random
from helpers.tiny_models import SHAPE, Recorder, float_model, fuse_model, quantized, recipe, run, samples


def test_in_place_updates_are_seen_by_every_later_reader() -> None:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.a(x)
        y = net.b(x)
        y.add_(x)
        F.hardtanh_(y, -0.5, 0.5)
        first = y[:, 0]
        first.mul_(3.0)  # through a view
        flat = y.flatten(2)
        flat += 1.0
        y[:, 1] = 2.0
        return net.c(y).mean((2, 3))

    layers = {name: nn.Conv2d(inputs, 4, 1) for name, inputs in (("a", 3), ("b", 4), ("c", 4))}
    captured(Net(forward, **layers))


def test_updates_of_a_slice_are_joins_or_nothing() -> None:
    def ghost(net: Net, x: torch.Tensor) -> torch.Tensor:  # timm's GhostNet adds its shortcut to a slice
        out = torch.cat([net.a(x), net.b(x)], 1)[:, :6]
        out += net.c(x)
        return out

    graph = captured(Net(ghost, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(3, 6, 1)))
    assert "slice_scatter" not in " ".join(kinds(graph))
    assert kinds(graph)[-1] == "add"


def test_the_callers_input_is_not_changed() -> None:
    graph = captured(Net(lambda net, x: net.conv(x.sub_(0.5).div_(0.25)), conv=nn.Conv2d(3, 4, 3)))
    batch = random(2, *SHAPE)
    before = batch.clone()
    graph(batch)
    assert torch.equal(batch, before)


def test_shapes_and_arguments_with_defaults_are_known() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, flag: bool = False) -> torch.Tensor:
            n, c, h, _ = x.shape
            assert c == 3
            if h % 5:
                x = F.pad(x, (0, 0, 0, 5 - h % 5))
            x = self.conv(x)
            if mask is not None:
                x = x * mask
            return x.mean((2, 3)) * x.shape[1] ** -0.5 if flag else x.view(n, -1)

    assert kinds(captured(Optional())) == ["Conv2d", "flatten"]


# Names


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(F.silu(self.bn(self.conv(self.act(x)))) + x)


@pytest.mark.parametrize(
    ("own", "held"),
    [
        ("graph", "graph_"), ("code", "code_"), ("self", "self_"), ("class", "class_"), ("in", "in_"), ('a"b', "a_22b"),
        ("a\\b", "a_5cb"), ("größe", "gr_f6_dfe"), ("a-b", "a-b"), ("x'y", "x'y"), ("1", "1"),
    ],
)  # fmt: skip
def test_a_name_that_a_graph_cannot_hold_has_the_nearest_that_it_can(own: str, held: str) -> None:
    net = nn.Sequential()
    net.add_module(own, nn.Conv2d(3, 4, 3))
    net.add_module("inner", nn.Sequential())
    net.get_submodule("inner").add_module(own, nn.Conv2d(4, 4, 3))
    inner = own if own in {"graph", "code", "self"} else held  # only the graph itself has attributes like these
    graph = captured(net)
    assert names(graph) == [held, f"inner.{inner}"]
    assert is_within(held, [own])
    assert is_within(f"inner.{inner}", [f"inner.{own}"])


def test_calls_have_the_names_of_the_users_modules() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Stage())
    assert names(captured(net)) == ["0", "1.act", "1.conv", "1.bn", "1.silu", "1.add", "1.act_1"]


def test_a_subclass_that_pads_first_has_its_own_name() -> None:
    class SamePad(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3, stride=2)
            self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)

    graph = captured(nn.Sequential(SamePad(), nn.BatchNorm2d(4), nn.ReLU6()))
    assert names(graph) == ["0", "1", "2"]
    fused = fuse_model(float_model(nn.Sequential(SamePad(), nn.BatchNorm2d(4), nn.ReLU6())), recipe(), Recorder())
    assert fused.chains == (("0", "1", "2"),)


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation is a child of the norm."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return self.act(self.drop(x))


def test_a_norm_with_its_activation_is_fused_as_two_calls() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4, nn.ReLU()), nn.Conv2d(4, 4, 3), NormAct(4, nn.SiLU()))
    assert names(captured(net)) == ["0", "1.batch_norm", "1.act", "2", "3.batch_norm", "3.act"]
    fused = fuse_model(float_model(net), recipe(), SilentProgress())
    assert fused.chains == (("0", "1.batch_norm", "1.act"), ("2", "3.batch_norm"))
    listed = recipe(fuse={"modules": [["0", "1"], ["2", "3"]]})  # by the user's module
    assert fuse_model(float_model(net), listed, SilentProgress()).chains == (
        ("0", "1.batch_norm"),
        ("2", "3.batch_norm"),
    )


def test_old_recipes_may_name_a_function_as_fx_did() -> None:
    net = Net(lambda net, x: F.relu(net.b(F.relu(net.a(x)))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
    listed = recipe(fuse={"modules": [["a", "relu"], ["b", "relu_1"]]})
    assert fuse_model(float_model(net), listed, SilentProgress()).chains == (("a", "relu"), ("b", "relu_1"))


def test_parameters_that_functions_take_give_the_name() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    net = Net(lambda net, x: net.attention(x, x, x)[0], attention=attention)
    found = names(captured(net, (6, 4)))
    assert "attention.in_proj" in found
    assert "attention.out_proj" in found


# Constants


def standardized(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    weight = weight - weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), bias, padding=1)


LAYERS = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Conv2d(3, 4, 3)),
    "the old weight_norm": lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)),
    "the old spectral_norm": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
    "weight standardization": lambda: Net(
        lambda net, x: standardized(x, net.c.weight, net.c.bias), c=nn.Conv2d(3, 4, 3)
    ),
    "a gain": lambda: Net(
        lambda net, x: F.conv2d(x, net.w * net.g, net.b),
        w=nn.Parameter(random(4, 3, 3, 3)),
        g=nn.Parameter(random(4, 1, 1, 1)),
        b=nn.Parameter(random(4)),
    ),
    "a mask": lambda: Net(
        lambda net, x: F.conv2d(x, torch.where(net.m > 0, net.w, 0.0)),
        w=nn.Parameter(random(4, 3, 3, 3)),
        m=random(4, 3, 3, 3, seed=9),
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("layer", LAYERS)
def test_weights_that_are_computed_become_the_layers_own(layer: str) -> None:
    assert kinds(captured(LAYERS[layer]())) == ["Conv2d"]


def test_addmm_is_a_linear_layer() -> None:
    class Conv1D(nn.Module):  # of Hugging Face's GPT-2
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(random(4, 6)), nn.Parameter(random(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = (*x.size()[:-1], 6)
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)

    graph = captured(nn.Sequential(Conv1D(), nn.GELU()), (5, 4))
    assert [each for each in kinds(graph) if each not in {"reshape", "flatten"}] == ["Linear", "GELU"]


def test_tables_are_constants_under_the_users_names() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls, self.pos = nn.Parameter(random(1, 1, 4)), nn.Parameter(random(1, 7, 4))
            self.fc = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
            return self.fc(x)[:, 0]

    graph = captured(nn.Sequential(Tokens()), (6, 4))
    held = {node.meta["cpupack_name"] for node in graph.graph.nodes if node.op == "get_attr"}
    assert held == {"0.cls", "0.pos"}
    assert all(in_vocabulary(graph, node) for node in graph.graph.nodes)


def test_each_call_of_a_shared_layer_has_its_own_weights() -> None:
    net = Net(
        lambda net, x: net.second(net.conv(net.first(net.conv(x)))),
        conv=nn.Conv2d(3, 3, 3, padding=1),
        first=nn.BatchNorm2d(3),
        second=nn.BatchNorm2d(3),
    )
    graph = captured(net)
    assert names(graph) == ["conv", "first", "conv_1", "second"]
    assert module(graph, "conv").weight.data_ptr() != module(graph, "conv_1").weight.data_ptr()


# What passes capture by


def test_a_model_with_stubs_is_captured_as_any_other() -> None:
    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv, self.dequant = QuantStub(), nn.Conv2d(3, 3, 3, padding=1), DeQuantStub()
            self.sum = FloatFunctional()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.quant(x)
            return self.dequant(self.sum.add_relu(self.conv(x), x))

    assert names(captured(Stubbed())) == ["conv", "add", "relu"]
    model, int8 = quantized(Stubbed(), "native")
    data = samples(seed=1)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


def test_models_with_stubs_that_cannot_be_captured_and_dynamic_quantization_stay_as_they_are() -> None:
    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.conv, self.dequant = QuantStub(), nn.Conv2d(3, 4, 3), DeQuantStub()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 1e9:
                return x
            return self.dequant(self.conv(self.quant(x)))

    model = float_model(Stubbed())
    found = capture(model, samples(), recipe(), SilentProgress())
    assert (found.style, found.module) == ("eager", model.module)
    native = recipe(target={"x86_64": {"engine": "native"}})
    with pytest.raises(ModelError, match="a line depends on the values of a tensor"):
        capture(model, samples(), native, SilentProgress())
    linear = float_model(nn.Linear(6, 4), (6,))
    found = capture(linear, None, recipe((6,), quantize={"mode": "dynamic"}), SilentProgress())
    assert (found.style, found.module) == ("dynamic", linear.module)


# Forms


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda net, x: x - 1.5, ["add"]),
        (lambda net, x: 2.0 - x, ["mul", "add"]),
        (lambda net, x: -x, ["mul"]),
        (lambda net, x: x / 4.0, ["mul"]),
        (lambda net, x: 1.0 / (x.abs() + 1.0), ["abs", "add", "reciprocal"]),
        (lambda net, x: x.sub(x.abs(), alpha=2), ["abs", "mul", "add"]),
        (lambda net, x: torch.square(x), ["pow"]),
        (lambda net, x: x.clamp(min=0), ["ReLU"]),
        (lambda net, x: x.clamp(0, 6), ["ReLU6"]),
        (lambda net, x: x.clamp(-1, 2), ["Hardtanh"]),
        (lambda net, x: x.clamp(max=2.0), ["clamp"]),
        (lambda net, x: F.softmax(x, 1), ["Softmax"]),
        (lambda net, x: x.transpose(1, 2), ["permute"]),
        (lambda net, x: x.movedim(1, -1), ["permute"]),
        (lambda net, x: x[:, 1:3], ["getitem"]),
        (lambda net, x: x[..., ::2, ::2], ["getitem", "getitem"]),
        (lambda net, x: x[:, -1], ["getitem", "reshape"]),
        (lambda net, x: torch.cat(x.split([1, 2], 1)[::-1], 1), ["getitem", "getitem", "cat"]),
        (lambda net, x: torch.stack([x, x.abs()], 1), ["abs", "reshape", "reshape", "cat"]),
        (lambda net, x: torch.stack(x.unbind(1)[:2], 2).flatten(1), None),
        (
            lambda net, x: F.channel_shuffle(torch.cat([x, x.abs()], 1), 2),
            ["abs", "cat", "reshape", "permute", "reshape"],
        ),
        (lambda net, x: F.interpolate(x, scale_factor=2), ["interpolate"]),
        (lambda net, x: F.interpolate(x, size=(5, 7), mode="bilinear"), ["interpolate"]),
        (lambda net, x: F.interpolate(x, scale_factor=1.3, mode="bicubic"), ["interpolate"]),
        (lambda net, x: x @ x.transpose(2, 3), ["permute", "matmul"]),
        (lambda net, x: torch.bmm(x.flatten(2), x.flatten(2).mT), None),
        (lambda net, x: F.scaled_dot_product_attention(x, x, x), ["scaled_dot_product_attention"]),
        (lambda net, x: x.amax((2, 3)), ["AdaptiveMaxPool2d", "flatten"]),
        (lambda net, x: x.max(1).values, ["amax"]),
        (lambda net, x: torch.max(x, x.abs() - 1), None),
        (lambda net, x: (x.view(torch.int32) & 0x7FFFFFFF).view(torch.float32), None),
        (lambda net, x: F.group_norm(x, 3), ["GroupNorm"]),
        (lambda net, x: F.instance_norm(x), ["InstanceNorm2d"]),
        (lambda net, x: F.layer_norm(x, (8,)), ["LayerNorm"]),
        (lambda net, x: F.lp_pool2d(x, 2, 2), None),
        (lambda net, x: torch.roll(x, 1, 2), None),
        (lambda net, x: torch.einsum("nchw,ndhw->ncd", x, x), None),
        (lambda net, x: x.masked_fill(x > 1, 0.0), None),
        (lambda net, x: torch.cumsum(x, 1), None),
        (lambda net, x: (~torch.zeros(x.shape[0], 1, 8, 8, dtype=torch.bool)).cumsum(2) * 0.1 * x, None),
        (lambda net, x: torch.where(x.isnan() | (x > 9.0), 0.0, x.remainder(2.0)), None),
    ],
)
def test_each_operation_has_one_form(forward: object, expected: list[str] | None) -> None:
    graph = captured(Net(forward))  # type: ignore[arg-type]  # a function of both
    if expected is not None:
        assert kinds(graph) == expected
        assert all(in_vocabulary(graph, node) for node in graph.graph.nodes)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(8, 4, batch_first=True),
        nn.GRU(8, 4, 2, batch_first=True, bidirectional=True),
        nn.RNN(8, 4, batch_first=True),
    ],
)
def test_each_layer_of_a_recurrent_module_is_one_call(layer: nn.LSTM | nn.GRU | nn.RNN) -> None:
    graph = captured(Net(lambda net, x: net.layer(x)[0][:, -1], layer=layer), (6, 8))
    own = [graph.get_submodule(str(each.target)) for each in graph.graph.nodes if each.op == "call_module"]
    assert [each.kind for each in own if isinstance(each, Recurrent)] == [type(layer).__name__] * layer.num_layers


def test_a_state_of_a_recurrent_layer_that_is_read_is_right_too() -> None:
    captured(Net(lambda net, x: net.layer(x)[1][0][-1], layer=nn.LSTM(8, 4, batch_first=True)), (6, 8))


def test_every_node_knows_its_shape_and_place() -> None:
    graph = captured(nn.Sequential(nn.Conv2d(3, 4, 1), Stage()))
    for node in graph.graph.nodes:
        if node.op.startswith("call"):
            assert node.meta["shape"][0] == 2
            assert node.meta["nn_module_stack"]


def test_a_layer_in_float64_is_one_of_float32_where_the_answers_are_the_same() -> None:
    graph = captured(Net(lambda net, x: net.conv(x.double()).float(), conv=nn.Conv2d(3, 4, 3).double()))
    assert "Conv2d" in kinds(graph)


def test_a_layer_in_float64_that_float32_would_change_stays_as_it_is() -> None:
    def far(net: Net, x: torch.Tensor) -> torch.Tensor:
        wide = x.double() + 1e9  # in steps of 64 in float32
        result: torch.Tensor = net.conv(wide - wide[:, :, :1]).float()
        return result

    graph = captured(Net(far, conv=nn.Conv2d(3, 4, 3).double()))
    assert "conv2d.default" in kinds(graph)


def test_what_is_repeated_for_each_sample_does_not_ask_for_the_size_of_the_batch() -> None:
    """A traced model would have that size as a number, and fail with another batch."""
    graph = captured(
        Net(
            lambda net, x: (
                (x.var((2, 3), keepdim=True) + 1.0).expand(x.shape[0], 3, 8, 8)
                + x.mean((2, 3)).expand(2, x.shape[0], 3).sum(0)[:, :, None, None]
            )
        )
    )
    assert "size" not in kinds(graph)
    assert kinds(graph).count("expand.default") == 2
