"""Spectrograms and mel filters as users write them: captured as convolutions and products, natively in FP32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, captured
from helpers.lowered import needs_kernels
from helpers.tiny_models import EIGHT_BITS, quantized, recipe, run, samples

LENGTH = 1024


class Power(nn.Module):
    """A power spectrogram, mel filters, a logarithm, and a convolution over time."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        own = how.pop("win_length", None)
        self.how = {"n_fft": 128, "hop_length": 64, **how} | ({"win_length": own} if own else {})
        self.register_buffer("window", torch.hann_window(own or self.how["n_fft"]))
        bins = self.how["n_fft"] // 2 + 1 if how.get("onesided", True) else self.how["n_fft"]
        self.register_buffer("filters", torch.rand(bins, 20) / bins)
        self.conv = nn.Conv1d(20, 8, 3)
        self.fc = nn.Linear(8, 4)

    def power(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stft(x, window=self.window, return_complex=True, **self.how).abs() ** 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mels = torch.matmul(self.power(x).transpose(1, 2), self.filters)
        return self.fc(self.conv(torch.log(mels + 1e-3).transpose(1, 2)).relu().mean(2))


class ByParts(Power):
    def power(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.stft(x, window=self.window, return_complex=True, **self.how)).pow(2).sum(-1)


class RealAndImaginary(Power):
    def power(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.stft(x, window=self.window, return_complex=True, **self.how)
        return z.real**2 + z.imag**2


class OfWindows(Power):
    """A transform that stays torch's."""

    def power(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.fft.rfft(x.unfold(1, 128, 64) * self.window)
        return (z.real**2 + z.imag**2).transpose(1, 2)


NETS = {
    "centred": Power(),
    "not centred": Power(center=False),
    "zeros around": Power(pad_mode="constant"),
    "two-sided": Power(onesided=False),
    "normalized": Power(normalized=True),
    "short window": Power(win_length=100),
    "odd": Power(n_fft=101, hop_length=37),
    "by parts": ByParts(),
    "real and imaginary": RealAndImaginary(),
}


@pytest.mark.parametrize("name", NETS)
def test_the_transform_is_captured_as_a_convolution(name: str) -> None:
    """Capture itself compares the graph's answers with the model's."""
    graph = captured(NETS[name], (LENGTH,))
    kinds = [type(each).__name__ for each in graph.modules()]
    assert kinds.count("Conv1d") == 2
    assert not any("aten.stft" in str(node.target) for node in graph.graph.nodes)


@needs_kernels
@pytest.mark.parametrize("name", ["centred", "real and imaginary", "by parts", "short window"])
def test_all_of_it_is_native_and_the_spectrum_is_in_fp32(name: str) -> None:
    data = samples((LENGTH,))
    model, int8 = quantized(NETS[name], "native", spec=recipe((LENGTH,)), data=data)
    assert not any(each.kernel == "aten" for each in int8.layers)
    assert [each.name for each in int8.layers if each.precision == "int8" and "conv" in each.kernel] == ["conv", "fc"]
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0


def test_torchs_engines_keep_it_in_fp32_too() -> None:
    data = samples((LENGTH,))
    model, int8 = quantized(NETS["centred"], EIGHT_BITS, spec=recipe((LENGTH,)), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 20.0


@needs_kernels
@pytest.mark.parametrize("net", [NETS["centred"], NETS["real and imaginary"], OfWindows()])
def test_quiet_moments_are_not_lost(net: nn.Module) -> None:
    """The second half is a thousandth as loud: 60 dB, where codes of 8 bits have 48."""
    data = samples((LENGTH,))
    data.data[:, LENGTH // 2 :] *= np.float32(1e-3)
    model, int8 = quantized(net, "native", spec=recipe((LENGTH,)), data=data)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 25.0
    assert {each.name for each in int8.layers if each.precision == "int8" and "conv" in each.kernel} == {"conv", "fc"}
    assert not any("linear" in each.kernel for each in int8.layers)  # the filters


class Normalized(nn.Module):
    """The first layers of wav2vec 2.0: a convolution of sound, and a norm of each channel over time."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv1d(1, 32, 8, stride=4, bias=False), after
        self.second, self.third = nn.Conv1d(32, 64, 3), nn.Conv1d(64, 8, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(self.norm(self.first(x.unsqueeze(1))))
        return self.third(self.second(y).relu()).mean(2)


@needs_kernels
@pytest.mark.parametrize("by_norm", [True, False])
def test_quiet_sounds_before_a_norm_are_not_lost(by_norm: bool) -> None:
    """One in a hundred as loud has two codes of 8 bits, and the norm makes it as loud as the others."""
    data = samples((256,))
    data.data[1::2] *= np.float32(1e-2)
    net = Normalized(nn.GroupNorm(32, 32, eps=1e-9) if by_norm else nn.ReLU())
    model, int8 = quantized(net, "native", spec=recipe((256,)), data=data)
    first = next(each for each in int8.layers if each.name == "first")
    assert first.precision == ("fp32" if by_norm else "int8")
    if by_norm:
        wanted, found = run(model, data)[1::2], run(int8, data)[1::2]
        assert accuracy.sqnr_db(wanted, found) > 25.0


FFTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "FNet": lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    "fftn": lambda x: torch.fft.fftn(x, dim=(1, 2), norm="ortho").real,
    "the imaginary part": lambda x: torch.fft.fft2(x, norm="forward").imag,
    "one dimension": lambda x: torch.fft.fft(x, dim=1).real,
    "cut": lambda x: torch.fft.fft(x, n=5).real,
    "read by abs": lambda x: torch.fft.fft(x).abs(),
}


@pytest.mark.parametrize("name", FFTS)
def test_a_part_of_a_transform_is_products_with_waves(name: str) -> None:
    """torch's own transform gives a sample other last bits in another batch."""
    graph = captured(Net(lambda net, x: FFTS[name](net.norm(x)), norm=nn.LayerNorm(8)), shape=(7, 8))
    assert not any("fft" in str(node.target) and node.op == "call_function" for node in graph.graph.nodes)


@needs_kernels
def test_a_transform_mixes_tokens_natively() -> None:
    torch.manual_seed(0)
    forward = FFTS["FNet"]
    net = Net(lambda net, x: net.after(x + forward(net.before(x))), before=nn.Linear(8, 8), after=nn.Linear(8, 8))
    model, int8 = quantized(net, "native", spec=recipe((7, 8)), data=samples((7, 8)))
    assert {each.kernel.partition("::")[0] for each in int8.layers} == {"cpupack"}
    assert accuracy.sqnr_db(run(model, samples((7, 8))), run(int8, samples((7, 8)))) > 30.0  # like a layer over tokens
