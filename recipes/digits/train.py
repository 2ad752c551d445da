"""Train the digits network and write digits.safetensors beside this file: ``python recipes/digits/train.py``.

A few minutes on two cores. The seed is fixed; another CPU or torch rounds differently, so its file may differ in the
last bits. Only the training images are used; the held-out ones are looked at once, at the end, to print the accuracy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from data import Pixels, held_out_set, training_set
from model import DigitsNet
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import pad

# As in recipes/digits.toml, [preprocess].
MEAN, STD = 0.3, 0.375
BATCH = 64
MAX_SHIFT = 1


def normalized(pixels: Pixels) -> torch.Tensor:
    """Return uint8 ``(n, 8, 8, 1)`` as the model takes it, float32 ``(n, 1, 8, 8)``."""
    return ((torch.from_numpy(pixels).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return each image moved by up to ``MAX_SHIFT`` pixels both ways; black comes in at the border."""
    count, _, height, width = images.shape
    padded = pad(images, [MAX_SHIFT] * 4, value=-MEAN / STD)
    offsets = torch.randint(0, 2 * MAX_SHIFT + 1, (count, 2), generator=generator).tolist()
    moved = [padded[row, :, y : y + height, x : x + width] for row, (y, x) in enumerate(offsets)]
    return torch.stack(moved)


def train(epochs: int, seed: int) -> DigitsNet:
    """Return the trained network in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = training_set()
    inputs, targets = normalized(pixels), torch.from_numpy(labels)
    model = DigitsNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        # A short last batch would make noisy BatchNorm statistics, so it is left out; the order changes every epoch.
        for rows in order.split(BATCH)[: len(inputs) // BATCH]:
            optimizer.zero_grad()
            loss = loss_of(model(shifted(inputs[rows], generator)), targets[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            sys.stderr.write(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}\n")
    return model.eval()


def top1(model: nn.Module, pixels: Pixels, labels: npt.NDArray[np.int64]) -> float:
    """Return the top-1 accuracy as a fraction."""
    with torch.inference_mode():
        found = model(normalized(pixels)).argmax(1).numpy()
    return float((found == labels).mean())


def main() -> None:
    """Train, save, and print the accuracy on both parts."""
    parser = argparse.ArgumentParser(description="Train the digits network on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("digits.safetensors"))
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(mode=True)
    model = train(arguments.epochs, arguments.seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, arguments.out)
    for name, part in (("training", training_set()), ("held-out", held_out_set())):
        sys.stdout.write(f"{name}: {len(part[1])} images, top-1 {top1(model, *part):.2%}\n")
    sys.stdout.write(f"{arguments.out}: {sum(p.numel() for p in model.parameters()):,} parameters\n")


if __name__ == "__main__":
    main()
