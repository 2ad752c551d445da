"""Fourier transforms and complex arithmetic inside a model become real layers; capture itself compares the answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cpupack import accuracy
from helpers.captured import Net, captured, random
from helpers.lowered import BOUND_DB, lowered, needs_kernels
from helpers.tiny_models import EIGHT_BITS, quantized, recipe, run, samples

SHAPE = (3, 8, 10)
FILTER = torch.view_as_complex(random(3, 8, 6, 2))
MIXING = torch.view_as_complex(random(3, 5, 4, 4, 2))
WINDOW = torch.hann_window(32)


def fourier_operator(net: Net, x: torch.Tensor) -> torch.Tensor:
    """FNO: the lowest frequencies are mixed, all others are zero."""
    waves = torch.fft.rfft2(x)
    mixed = torch.zeros(x.shape[0], 5, 8, 6, dtype=torch.cfloat)
    mixed[:, :, :4, :4] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :4, :4], net.mixing)
    return torch.fft.irfft2(mixed, s=(8, 10))


def by_parts(_net: Net, x: torch.Tensor) -> torch.Tensor:
    waves = torch.fft.rfft(x)
    found = torch.empty(x.shape[0], 3, 8, 6, dtype=torch.cfloat)
    found[..., :2], found[..., 2:] = waves[..., :2] * 2, waves[..., 2:]
    return torch.fft.irfft(found)


def auto_correlation(_net: Net, x: torch.Tensor) -> torch.Tensor:
    waves = torch.fft.rfft(x, dim=2)
    return torch.fft.irfft(waves * torch.conj(waves), n=8, dim=2)


def low_pass(_net: Net, x: torch.Tensor) -> torch.Tensor:
    waves = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(-2, -1))
    waves = waves * (torch.arange(8)[:, None] > 2)
    return torch.fft.ifft2(torch.fft.ifftshift(waves, dim=(-2, -1)), norm="ortho").real


def whisper(_net: Net, x: torch.Tensor) -> torch.Tensor:
    waves = torch.stft(x.flatten(1), 32, 16, window=WINDOW, return_complex=True)
    return torch.log10((waves[..., :-1].abs() ** 2).clamp(min=1e-4))


def by_phase(_net: Net, x: torch.Tensor) -> torch.Tensor:
    waves = torch.fft.rfft(x)
    return torch.cat([waves.abs().clamp(min=0.1), torch.polar(waves.abs(), waves.angle()).imag / 2], -1)


def denoise(_net: Net, x: torch.Tensor, **settings: Any) -> torch.Tensor:
    """A mask over a short-time transform, and the signal that is left."""
    how = {"n_fft": 32, "hop_length": 16, "window": WINDOW, **settings}
    waves = torch.stft(x.flatten(1), **how, return_complex=True)
    mask = torch.complex(torch.tanh(waves.real), torch.sigmoid(waves.imag))
    return torch.istft(waves * mask, **how, length=x[0].numel())


FORWARDS: dict[str, Any] = {
    "denoise": denoise,
    "denoise by short windows": lambda net, x: denoise(net, x, hop_length=12, win_length=30, window=WINDOW[:30]),
    "denoise on both sides": lambda net, x: denoise(net, x, onesided=False, normalized=True),
    "signal of its own length": lambda net, x: torch.istft(torch.stft(
        x.flatten(1), 32, 8, window=WINDOW, return_complex=True), 32, 8, window=WINDOW),
    "global filter": lambda net, x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * net.filter, norm="ortho"),
    "fourier operator": fourier_operator,
    "an empty tensor that is filled by parts": by_parts,
    "auto-correlation": auto_correlation,
    "low pass": low_pass,
    "whisper": whisper,
    "magnitude and phase": by_phase,
    "mixing tokens": lambda net, x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    "of several dimensions": lambda net, x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(1, 2, 3)) * 2, dim=(1, 2, 3)),
    "cut and filled": lambda net, x: torch.fft.irfft(torch.fft.rfft(x, n=6), n=12),
    "quotient": lambda net, x: torch.view_as_real(torch.fft.rfft(x) / (torch.fft.rfft(net.p) + 9)).flatten(3),
    "products with numbers": lambda net, x: (torch.complex(x, x * 2) * (1 - 2j) + 3).imag,

}  # fmt: skip


def net(name: str) -> Net:
    return Net(FORWARDS[name], filter=FILTER, mixing=MIXING, p=random(1, 3, 8, 10))


@pytest.mark.parametrize("name", FORWARDS)
def test_no_call_of_complex_numbers_is_left(name: str) -> None:
    graph = captured(net(name), SHAPE)
    called = " ".join(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    assert not any(word in called for word in ("fft", "complex", "stft", "conj"))


class Turned(nn.Module):
    """Complex numbers that stay torch's, among calls that the engine has kernels for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.complex(self.a(x[:, 0]), self.a(x[:, 1]))[:, :6].transpose(1, 2)
        return self.b(torch.view_as_real(torch.linalg.inv(y @ y.mH + torch.eye(8))).sum(-1)[:, :, :6])


class Filtered(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.mid, self.b = nn.Conv2d(3, 3, 3, padding=1), net(name), nn.LazyConv2d(8, 3)
        self.c = nn.Linear(8, 4)
        self.eval()(torch.zeros(1, *SHAPE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.mid(self.a(x))).relu().mean((2, 3)))


@needs_kernels
def test_no_native_part_moves_complex_numbers() -> None:
    """It would keep their real parts alone."""
    data = samples((2, 8, 8))
    model, int8 = quantized(Turned(), "native", spec=recipe((2, 8, 8)), data=data)
    assert any(each.kernel == "aten" for each in int8.layers)
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


@needs_kernels
@pytest.mark.parametrize(
    ("name", "engine"),
    [("global filter", "native"), ("fourier operator", "native"), ("fourier operator", EIGHT_BITS)],
)
def test_spectra_are_in_fp32_and_natively(name: str, engine: str) -> None:
    data = samples(SHAPE)
    model, int8 = quantized(Filtered(name), engine, spec=recipe(SHAPE), data=data)
    if engine == "native":
        assert not any(each.kernel == "aten" for each in int8.layers)
        transforms = [each for each in int8.layers if each.name.startswith("mid.") and each.kind == "Linear"]
        assert {each.precision for each in transforms} == {"fp32"}
    assert accuracy.sqnr_db(run(model, data), run(int8, data)) > 30.0


class Enhanced(nn.Module):
    """Speech enhancement: torch reflects the borders of a signal while the batch is its second dimension."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask = nn.Sequential(nn.Conv1d(17, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 17, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        waves = torch.stft(x, 32, 16, window=WINDOW, return_complex=True)
        return torch.istft(waves * self.mask(torch.log1p(waves.abs())), 32, 16, window=WINDOW, length=x.shape[-1])


@needs_kernels
def test_a_mask_over_a_centred_transform_needs_no_torch() -> None:
    assert lowered(Enhanced(), (128,))[0] > BOUND_DB
