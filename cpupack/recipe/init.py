"""``cpupack init``: renders a commented recipe from templates/recipe, and reads it back to check it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpupack.errors import UsageError
from cpupack.recipe.file import parse_recipe
from cpupack.templates import render

_TEMPLATE = "recipe/recipe.toml.j2"


@dataclass(frozen=True)
class _Known:
    """The default weights of a torchvision model, and how torchvision preprocesses for them."""

    weights: str
    resize: int
    crop: int = 224
    interpolation: str = "bilinear"


_KNOWN = {
    "alexnet": _Known("IMAGENET1K_V1", 256),
    "convnext_tiny": _Known("IMAGENET1K_V1", 236),
    "densenet121": _Known("IMAGENET1K_V1", 256),
    "efficientnet_b0": _Known("IMAGENET1K_V1", 256, interpolation="bicubic"),
    "efficientnet_b1": _Known("IMAGENET1K_V2", 255, 240),
    "mnasnet1_0": _Known("IMAGENET1K_V1", 256),
    "mobilenet_v2": _Known("IMAGENET1K_V2", 232),
    "mobilenet_v3_large": _Known("IMAGENET1K_V2", 232),
    "mobilenet_v3_small": _Known("IMAGENET1K_V1", 256),
    "regnet_y_400mf": _Known("IMAGENET1K_V2", 232),
    "resnet18": _Known("IMAGENET1K_V1", 256),
    "resnet34": _Known("IMAGENET1K_V1", 256),
    "resnet50": _Known("IMAGENET1K_V2", 232),
    "resnet101": _Known("IMAGENET1K_V2", 232),
    "resnet152": _Known("IMAGENET1K_V2", 232),
    "resnext50_32x4d": _Known("IMAGENET1K_V2", 232),
    "shufflenet_v2_x1_0": _Known("IMAGENET1K_V1", 256),
    "squeezenet1_1": _Known("IMAGENET1K_V1", 256),
    "swin_t": _Known("IMAGENET1K_V1", 232, interpolation="bicubic"),
    "vgg16": _Known("IMAGENET1K_V1", 256),
    "vit_b_16": _Known("IMAGENET1K_V1", 256),
    "wide_resnet50_2": _Known("IMAGENET1K_V2", 232),
}
_UNKNOWN = _Known("DEFAULT", 256)


def init_recipe(name: str, model: str, directory: Path) -> Path:
    """Write ``directory/NAME.toml`` for a ``[model] source`` and return its path.

    Raises UsageError when a recipe cannot have this name or model, when the model's Python file does not exist, and
    when the recipe already exists or cannot be written.
    """
    path = directory / f"{name}.toml"
    text = render(_TEMPLATE, **_values(name, model))
    recipe, problems, _ = parse_recipe(text, str(path), directory.resolve())
    if recipe is None:
        # The places are left out: the file is not written, so its line numbers would mean nothing.
        raise UsageError("the recipe cannot be written: " + "; ".join(text for _, text in problems))
    _write_new(path, text)
    return path


def _values(name: str, model: str) -> dict[str, Any]:
    kind, _, rest = model.partition(":")
    known = _KNOWN.get(rest) if kind == "torchvision" else None
    preset = known or _UNKNOWN
    return {
        "name": name,
        "source": model,
        "kind": kind,
        "known": known is not None,
        "weights": preset.weights,
        "input_shape": [3, preset.crop, preset.crop],
        "labels": "imagenet" if kind == "torchvision" else None,
        "resize": preset.resize,
        "crop": preset.crop,
        "interpolation": preset.interpolation,
    }


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not exist yet. A failure leaves no part of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{path} already exists", hint="choose another name or remove the file") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with file:
            file.write(text)
    except OSError as error:
        path.unlink()
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
