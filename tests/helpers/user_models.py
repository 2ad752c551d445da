"""What users bring: models that work, and models that do not. Copied into a project as ``models.py``."""

import torch
from torch import nn

print("this file prints while it is imported")


class Residual(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.relu(x + self.bn(self.conv(x)))
        return self.head(torch.flatten(self.pool(x), 1))


def residual(classes: int = 3, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual(classes, channels)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def recurrent() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent()


class Stubbed(nn.Module):
    """Branches on the data in a way that no graph can hold, so it brings its own stubs."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = torch.ao.quantization.QuantStub()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.head = nn.Linear(8, 3)
        self.dequant = torch.ao.quantization.DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.abs().max() > 1e6:
            x = x / 2
        x = self.relu(self.bn(self.conv(self.quant(x)))).mean((2, 3))
        return self.dequant(self.head(x))


def stubbed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stubbed()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # cannot be captured
            x = -x
        return self.head(x.flatten(1))


def branching() -> nn.Module:
    return Branching()


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def pair() -> nn.Module:
    return Pair()


def failing() -> nn.Module:
    raise ValueError("no such backbone")


def leaving() -> nn.Module:
    raise SystemExit(0)


def number() -> int:
    return 3
