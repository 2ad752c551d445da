"""Factories of models as people write them: some load, others are told what is wrong."""

from __future__ import annotations

SOURCE = '''
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, classes)

    def features(self, x):
        return F.relu(self.conv(x)).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def like(after=lambda y: y, before=lambda x: x, **methods):
    """Return a net that does more before and after."""
    class Odd(Net):
        def forward(self, x):
            return after(super().forward(before(x)))
    Odd.__name__ = "Odd"
    return Odd()


# --- these load

def optional_arguments():
    class Odd(Net):
        def forward(self, x, mask=None, return_features: bool = False, *args, **kwargs):
            y = self.features(x)
            return y if return_features else self.head(y if mask is None else y * mask)
    return Odd()

def prints():
    print("made")
    return like(lambda y: print("hello", y.shape) or y)

def half(): return Net().half()
def bfloat16(): return Net().bfloat16()
def double(): return Net().double()

def mixed():
    net = Net()
    net.head.half()
    return net

def default_double():
    torch.set_default_dtype(torch.float64)
    return Net()

def no_grad_for_good():
    torch.set_grad_enabled(False)
    return Net()

def shared():
    net = Net(4)
    net.again = net.head
    net.other = nn.Linear(4, 4)
    net.other.weight = net.head.weight
    net.forward = lambda x: net.other(net.again(net.head(net.features(x))))
    return net

def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))

def training_with_dropout():
    return nn.Sequential(Net(), nn.Dropout(0.5)).train()

def compiled(): return torch.compile(Net())

def compiled_in_place():
    net = Net()
    net.compile()
    return net

def compiled_part():
    net = Net()
    net.conv = torch.compile(net.conv)
    return net

def compiled_forward():
    class Odd(Net):
        @torch.compile
        def forward(self, x):
            if torch.compiler.is_compiling():
                raise RuntimeError("compiled")
            return self.head(self.features(x))
    return Odd()

def data_parallel(): return nn.DataParallel(Net())
def compiled_data_parallel(): return torch.compile(nn.DataParallel(Net()))
def averaged(): return torch.optim.swa_utils.AveragedModel(Net())

def inference_parameters():
    with torch.inference_mode():
        return Net()

def weight_normed():
    net = Net()
    net.conv = nn.utils.parametrizations.weight_norm(net.conv)
    net.head = nn.utils.parametrizations.spectral_norm(net.head)
    return net

class Marked(nn.Parameter):
    """A parameter that a training framework marks with a class of its own."""

def marked_parameters():
    net = Net()
    net.head.weight = Marked(net.head.weight.detach())
    return net

def batch_from_shape(): return like(lambda y: y.view(y.shape[0], -1))

instance = Net()

def token_ids_cast_inside():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.norm = nn.BatchNorm1d(4)
        def forward(self, x):
            return self.norm(self.embed(x.flatten(1).long()).mean(1))
    return Odd()


# --- these are told what is wrong

def needs_arguments(classes): return Net(classes)
def the_class(): return Net
def nothing(): Net()
def state_dict(): return Net().state_dict()
def exits(): raise SystemExit("usage: train.py")
def raises_in_factory(): return 1 // 0
def cuda_factory(): return Net().cuda()

def pair(): return like(lambda y: (y, y.sum(1)))
def nested(): return like(lambda y: [y, {"a": y}])
def a_dict(): return like(lambda y: OrderedDict(out=y, aux=y[:, :2]))

@dataclass
class Output:
    logits: torch.Tensor
    loss: object = None

def a_dataclass(): return like(lambda y: Output(y))
Point = namedtuple("Point", "boxes scores")
def a_namedtuple(): return like(lambda y: Point(y, y))
def an_empty_list(): return like(lambda y: [])
def returns_numpy(): return like(lambda y: y.detach().numpy())
def returns_none(): return like(lambda y: None)
def returns_float(): return like(lambda y: y.sum().item())
def zero_dim(): return like(lambda y: y.sum())
def one_mean(): return like(lambda y: y.mean(0))
def integer(): return like(lambda y: y.argmax(1))
def boolean(): return like(lambda y: y > 0)
def complex_output(): return like(lambda y: torch.fft.fft(y))
def double_output(): return like(lambda y: y.double())
def half_output(): return like(lambda y: y.half())

def raises(): return like(lambda y: y + undefined_name)
def raises_without_words(): return like(lambda y: (_ for _ in ()).throw(ValueError()))
def exits_in_forward(): return like(lambda y: exit(3))
def needs_two_inputs():
    class Odd(Net):
        def forward(self, x, other):
            return super().forward(x + other)
    return Odd()
def no_forward():
    class Odd(nn.Module):
        pass
    return Odd()
def moves_to_cuda(): return like(before=lambda x: x.cuda())
def makes_on_cuda(): return like(lambda y: y + torch.zeros(5, device="cuda"))
def half_inside(): return like(before=lambda x: x.half())
def wrong_channels():
    net = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), body=nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 3))))
    return net
def token_ids():
    return nn.Sequential(OrderedDict(embed=nn.Embedding(10, 4)))
def functional_token_ids():
    net = Net()
    net.forward = lambda x: F.embedding(x, net.head.weight)
    return net
def fixed_batch(): return like(lambda y: y.view(1, 5))
def fixed_batch_result(): return like(lambda y: y.reshape(1, -1))
def fixed_batch_of_eight(): return like(lambda y: y.view(8, 5))
def grows_with_batch(): return like(lambda y: y.repeat(1, y.shape[0]))

def scripted(): return torch.jit.script(Net())
def traced_part():
    net = Net()
    net.conv = torch.jit.trace(net.conv, torch.zeros(1, 3, 8, 8))
    return net
class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.25))
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return torch.where(x > 0, x, x * self.slope)
        return x
class Forks(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.jit.wait(torch.jit.fork(self.conv, x))
class Activated(Net):
    def __init__(self):
        super().__init__()
        self.act = torch.jit.script(Slope())
    def forward(self, x):
        return self.act(super().forward(x))
def scripted_activation(): return Activated()
def script_that_forks():
    net = Net()
    net.conv = torch.jit.script(Forks())
    return net
def traced_by_fx(): return torch.fx.symbolic_trace(Net())
def exported_program():
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=(batch,)).module()
def quantized():
    return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)
def observed():
    net = Net()
    net.post = torch.ao.quantization.MinMaxObserver()
    return net
def meta():
    with torch.device("meta"):
        return Net()
def meta_part():
    net = Net()
    net.head = net.head.to("meta")
    return net
def nan_weights():
    net = Net()
    net.head.weight.data[0, 0] = float("nan")
    return net
def infinite_weights():
    net = Net()
    net.head.weight.data[0, 0] = float("inf")
    return net
def sparse_weights():
    net = Net()
    net.head.register_buffer("mask", torch.eye(4).to_sparse())
    return net
class Packed(torch.Tensor):
    """A tensor that is no plain one, as of libraries that quantize."""
def packed_weights():
    net = Net()
    net.head.weight = nn.Parameter(net.head.weight.detach().as_subclass(Packed))
    return net
def a_function(): return lambda x: x
'''
