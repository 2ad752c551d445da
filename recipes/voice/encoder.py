"""Resemblyzer's speaker encoder with the weights of its package, and the mel spectrogram that it was trained on.

The package itself is not imported: it needs librosa and a C extension, and its network is some lines of torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

RATE = 16000
WINDOW, HOP, FRAMES, MELS = 400, 160, 160, 40
SAMPLES = WINDOW + (FRAMES - 1) * HOP
"""1.6 seconds: as many frames as the network was trained on."""


class SpeakerEncoder(nn.Module):
    """Samples ``(n, SAMPLES)`` to embeddings ``(n, 256)`` of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 2 * (WINDOW // 2 + 1), WINDOW, stride=HOP, bias=False)
        self.mel = nn.Linear(WINDOW // 2 + 1, MELS, bias=False)
        self.spectrum.weight.data = fourier()[:, None]
        self.mel.weight.data = mel_filters()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cosines, sines = self.spectrum(x[:, None]).transpose(1, 2).chunk(2, 2)
        _, (hidden, _) = self.lstm(self.mel(cosines * cosines + sines * sines))
        raw = torch.relu(self.linear(hidden[-1]))
        return raw / torch.linalg.vector_norm(raw, dim=1, keepdim=True)


def speaker_encoder() -> nn.Module:
    """``[model] source``: the network with its trained weights."""
    found = importlib.util.find_spec("resemblyzer")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError('the weights come with a package: pip install --no-deps "resemblyzer>=0.1.4,<0.2"')
    path = Path(found.submodule_search_locations[0]) / "pretrained.pt"
    weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    network = SpeakerEncoder()
    own = {name: value for name, value in weights.items() if name.startswith(("lstm.", "linear."))}
    missing, unexpected = network.load_state_dict(own, strict=False)
    assert set(missing) == {"spectrum.weight", "mel.weight"}, missing
    assert not unexpected, unexpected
    return network.eval()


def fourier() -> torch.Tensor:
    """Return the window's cosines, then its sines, ``(2 * (WINDOW / 2 + 1), WINDOW)``, under a Hann window."""
    place = torch.arange(WINDOW, dtype=torch.float64)
    angles = 2 * torch.pi / WINDOW * torch.outer(torch.arange(WINDOW // 2 + 1, dtype=torch.float64), place)
    window = 0.5 - 0.5 * torch.cos(2 * torch.pi / WINDOW * place)
    return (torch.cat([torch.cos(angles), torch.sin(angles)]) * window).float()


def mel_filters() -> torch.Tensor:
    """Return triangles ``(MELS, WINDOW / 2 + 1)`` of equal area, evenly spaced on Slaney's scale from 0 to RATE / 2."""
    edges = _hertz(torch.linspace(0.0, float(_mels(torch.tensor(RATE / 2.0))), MELS + 2, dtype=torch.float64))
    bins = torch.linspace(0.0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0.0)
    return (triangles * 2.0 / (high - low)).float()


# Slaney's scale: 15 mels to 1000 Hz, linear, and from there 27 to each factor of 6.4.


def _mels(hertz: torch.Tensor) -> torch.Tensor:
    return torch.where(hertz < 1000, hertz * 0.015, 15 + 27 * torch.log(hertz / 1000) / torch.log(torch.tensor(6.4)))


def _hertz(mels: torch.Tensor) -> torch.Tensor:
    return torch.where(mels < 15, mels / 0.015, 1000 * 6.4 ** ((mels - 15) / 27))
