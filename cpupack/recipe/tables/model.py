"""``[model]``: where the FP32 model and its weights come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from cpupack.recipe.tables.base import Expects, ImageLength, Seed, Table, Text

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".tar", ".bin", ".safetensors", ".index.json")
"""Endings of the names of weight files."""


class Model(Table):
    """Where the FP32 model and its weights come from."""

    source: Text
    """``torchvision:NAME``, ``timm:NAME``, ``python:FILE.py:factory``, ``python:pkg.mod:factory``,
    ``export:FILE.pt2`` (an exported program), ``torchscript:FILE.pt``, ``transformers:DIR`` or
    ``sentence-transformers:DIR`` (a directory that one of these libraries saved; ``package:NAME/DIR`` is one inside an
    installed package)."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory."""
    weights: Text
    """A torchvision enum name such as ``IMAGENET1K_V2``, ``pretrained`` (timm; of a
    directory, the file in it), ``factory`` (the Python factory
    loads them itself, or the file of ``source`` has them), a ``.pt``, ``.pth``, ``.ckpt``, ``.tar``, ``.bin`` or
    ``.safetensors`` file, the ``.index.json`` of weights in several files, or ``random``."""
    state: Literal["plain", "ema"] | None = None
    """Which weights to take from a checkpoint that has plain and averaged weights (EMA, SWA): ``plain`` or ``ema``.
    Absent means the plain ones, with a warning if there are averaged ones too. If the file has only averaged weights,
    those are taken."""
    weights_fallback: Literal["random"] | None = None
    """What to do when the download of the weights fails. Absent means an error."""
    sha256: (
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$"), Expects("64 lower-case hexadecimal digits")] | None
    ) = None
    """SHA-256 of the weights file, checked before it is read. Of weights in several files it is that of all bytes: of
    the index, then of each file in the order of their names."""
    seed: Seed = 0
    """Seed of random weights."""
    input_shape: Annotated[list[ImageLength], Field(min_length=1)] | None = None
    """Shape of the only input without the batch dimension, ``[channels, height, width]`` for images. A model with
    several inputs, or one that is not float32, has ``[[input]]`` tables instead. With ``[3, "height", "width"]`` and
    ``[sizes]`` the wheel takes images of any size, with ``[80, "time"]`` sequences of any length."""
    stream: bool = False
    """Make the states of the model's LSTM, GRU and RNN layers and cells, and what its causal convolutions have seen,
    inputs and outputs of the wheel, which ``runner.stream()`` carries from chunk to chunk. The shape of the input is
    that of a chunk. For a model that takes and returns its state itself, name it in ``state`` of an ``[[input]]``
    instead."""
    labels: Text | Annotated[list[str], Field(min_length=1)] | None = None
    """``imagenet``, ``coco`` or ``voc`` as torchvision has them (the last two with the background first), a text file
    with one label on each line, or a list of labels."""
