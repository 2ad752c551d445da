"""Silero's voice activity detector for 16 kHz (silero-vad's weights).

What it keeps of earlier chunks, their last samples and the states of its LSTM, goes in and comes out.

The package itself is not imported: it needs torchaudio, and its network is some lines of torch.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

CHUNK, CONTEXT, UNITS = 512, 64, 128
_WINDOW, _HOP = 256, 128
_BINS = _WINDOW // 2 + 1


class VoiceActivity(nn.Module):
    """Samples of a chunk ``(n, 512)`` and its states to how likely it is speech ``(n, 1)``, and the next states."""

    def __init__(self) -> None:
        super().__init__()
        self.spectrum = nn.Conv1d(1, 2 * _BINS, _WINDOW, stride=_HOP, bias=False)
        self.encoder = nn.Sequential()
        for number, (inputs, outputs, stride) in enumerate(((_BINS, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1))):
            self.encoder.add_module(f"conv{number}", nn.Conv1d(inputs, outputs, 3, stride=stride, padding=1))
            self.encoder.add_module(f"relu{number}", nn.ReLU())
        self.lstm = nn.LSTM(128, UNITS, batch_first=True)
        self.head = nn.Linear(UNITS, 1)

    def forward(
        self, x: torch.Tensor, context: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        samples = torch.cat([context, x], 1)
        padded = nn.functional.pad(samples[:, None], (0, CONTEXT), mode="reflect")
        cosines, sines = self.spectrum(padded).chunk(2, 1)
        features = self.encoder(torch.sqrt(cosines * cosines + sines * sines))
        y, (h, c) = self.lstm(features.transpose(1, 2), (h, c))
        speech = torch.sigmoid(self.head(torch.relu(y[:, -1])))
        return {"speech": speech, "context": samples[:, -CONTEXT:], "h": h, "c": c}


def network() -> nn.Module:
    """``[model] source``: the network with its trained weights."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError('the weights come with a package: pip install --no-deps "silero-vad>=6.2,<7"')
    path = Path(found.submodule_search_locations[0]) / "data" / "silero_vad_16k.safetensors"
    theirs, made = load_file(path), VoiceActivity()
    weights = {"spectrum.weight": theirs["stft_conv.weight"]}
    for kind in ("weight", "bias"):
        for number in range(4):
            weights[f"encoder.conv{number}.{kind}"] = theirs[f"conv{number + 1}.{kind}"]
        weights[f"head.{kind}"] = theirs[f"final_conv.{kind}"].reshape(made.get_parameter(f"head.{kind}").shape)
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        weights[f"lstm.{kind}_l0"] = theirs[f"lstm_cell.{kind}"]
    made.load_state_dict(weights)
    return made.eval()
