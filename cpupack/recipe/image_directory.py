"""How a directory of transformers makes its model's input from an image, in the terms of ``[preprocess]``.

The library saves it as preprocessor_config.json, or as a part of processor_config.json. Keys that old files leave out
have the default of the class that the file names. A recipe's own keys win.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cpupack.errors import RecipeError
from cpupack.recipe.json_objects import read_json
from cpupack.recipe.tables.signature import Preprocess

GEOMETRY = ("resize", "crop", "fit", "pad_value", "place")
"""Keys of ``[preprocess]`` that say where the pixels go. One of them in a recipe stands for all of them."""
_FILES = ("processor_config.json", "preprocessor_config.json")
METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Interpolations by Pillow's numbers, in which the library saves them."""
_SHORTER_EDGE = {
    *("bit", "clip", "chineseclip", "convnext", "levit", "mobilenetv1", "mobilenetv2", "mobilevit", "poolformer"),
}
"""Processors for which one number as the size is that of the shorter edge; for the others it is both edges."""
_CROP = {
    *("bit", "clip", "chineseclip", "deit", "flava", "levit", "mobilenetv1", "mobilenetv2", "mobilevit", "poolformer"),
}
"""Processors that crop where their file does not say."""
_CROP_SHARE = {"convnext": 224 / 256, "poolformer": 0.9}
"""Processors that resize to so much more than they keep, and the share where their file does not say."""
_WARPS_FROM = 384
"""ConvNeXt's processor crops nothing from this size on."""
_LEVIT_SHARE = 224 / 256
_KNOWN_STEPS = {
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order"),
    "do_reduce_labels",  # it is about the labels of a training set
}
_ODD_SETTINGS = ("keep_aspect_ratio", "apply_ocr")
_MEAN: tuple[float, ...] = (0.0,)
_STD: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class ImageSettings:
    """What a directory says: the keys of ``[preprocess]``, and the shape of the input that they make.

    ``file`` is where it says so. ``problem`` is what keeps the geometry from being said in ``[preprocess]``, None where
    nothing does.
    """

    file: str
    keys: Mapping[str, Any]
    shape: tuple[int, int, int] | None
    problem: str | None = None


def image_settings(root: Path, config: Mapping[str, Any], given: Collection[str] = ()) -> ImageSettings | None:
    """Return what a directory says of its images, None where it says nothing, or reads videos.

    ``given`` are the keys that the recipe has itself: it does not matter what is wrong with them here. Raises
    RecipeError.
    """
    file, raw = _settings(root)
    name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    if not raw or not ({"image_mean", "size", "do_resize", "do_rescale"} & set(raw)) or "Video" in name:
        return None
    family = name.lower()
    for ending in ("pil", "fast", "imageprocessor", "featureextractor"):
        family = family.removesuffix(ending)
    where = root / file
    keys: dict[str, Any] = {"mode": _mode(raw, config, family)}
    method = raw.get("resample")
    if method in METHODS:
        keys["interpolation"] = METHODS[method]
    if not {"mean", "std"} <= set(given):
        keys |= _normalization(raw, family, keys["mode"], where)
    if placed(given):
        return ImageSettings(file, keys, None)
    try:
        keys |= _geometry(raw, family, where)
        if keys["resize"] is not None and "interpolation" not in {*keys, *given}:
            _check_method(method)
    except _OtherError as error:
        return ImageSettings(file, keys, None, str(error))
    size = keys["crop"] or keys["resize"]
    return ImageSettings(file, keys, (1 if keys["mode"] == "L" else 3, size[0], size[1]))


def placed(given: Collection[str]) -> bool:
    """Return whether a recipe with these keys of ``[preprocess]`` says itself where the pixels go."""
    return any(name in given for name in GEOMETRY)


def with_own(settings: ImageSettings, own: Preprocess | None, shape: list[int | str] | None) -> Preprocess | None:
    """Return ``[preprocess]`` as a recipe and its directory say it, None where the wheel takes arrays alone.

    ``own`` is the recipe's table and ``shape`` its ``input_shape``; both win over the directory. Raises RecipeError
    where neither says how an image becomes the input.
    """
    given = {} if own is None else {name: getattr(own, name) for name in own.model_fields_set}
    if settings.problem is not None:
        if own is None and shape is not None:
            return None
        raise RecipeError(
            f"[model] source: {settings.file} {settings.problem}, which [preprocess] cannot say",
            hint="say in [preprocess] how an image becomes the model's input, and its shape in [model] input_shape",
        )
    found = dict(settings.keys)
    if "resize" in found and shape is not None:
        found |= _at_shape(found, shape)
    try:
        return Preprocess.model_validate({**found, **given})
    except ValidationError as error:
        (first, *_) = error.errors()
        raise RecipeError(
            f"[model] source: {settings.file}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _at_shape(keys: Mapping[str, Any], shape: list[int | str]) -> dict[str, Any]:
    """Return resize and crop for another ``input_shape``: the same share of an image is seen."""
    sides = shape[-2:]
    if len(shape) != 3 or not all(isinstance(each, int) for each in sides):
        return {"resize": None, "crop": None}  # images of any size are filled up
    resize, crop = keys["resize"], keys["crop"]
    if list(crop or resize) == list(sides):
        return {}
    if crop is None:
        return {"resize": list(sides)}
    shares = [int(side) / old for side, old in zip(sides, crop, strict=True)]
    if isinstance(resize, list):
        return {"resize": [round(old * share) for old, share in zip(resize, shares, strict=True)], "crop": list(sides)}
    return {"resize": round(resize * max(shares)), "crop": list(sides)}


class _OtherError(Exception):
    """The directory does with images what ``[preprocess]`` does not."""


def _settings(root: Path) -> tuple[str, dict[str, Any]]:
    nested = read_json(root / _FILES[0]).get("image_processor")
    if isinstance(nested, dict):
        return _FILES[0], nested
    return _FILES[1], read_json(root / _FILES[1])


def _check_method(method: Any) -> None:
    """Raise _OtherError for a way to resize that ``[preprocess]`` does not have."""
    if method not in METHODS:
        raise _OtherError("does not say resample" if method is None else f"resamples images by the method {method}")


def _mode(raw: Mapping[str, Any], config: Mapping[str, Any], family: str) -> str:
    if config.get("num_channels") == 1:
        return "L"
    flips = raw.get("do_flip_channel_order")
    return "BGR" if (family == "mobilevit" if flips is None else flips) else "RGB"


def _normalization(raw: Mapping[str, Any], family: str, mode: str, where: Path) -> dict[str, list[float]]:
    """Return mean and std for pixels from 0 to 1. The library's own scale goes into them."""
    factor = 1.0
    if raw.get("do_rescale") is not False:
        factor = _number(raw.get("rescale_factor"), 1 / 255, where, "rescale_factor")
    scale = factor * 255
    shift = 1.0 if raw.get("rescale_offset") and raw.get("do_rescale") is not False else 0.0
    normalizes = raw.get("do_normalize")
    mean, std = _MEAN, _STD
    if normalizes or (normalizes is None and family != "mobilevit"):
        mean, std = _numbers(raw, "image_mean", where), _numbers(raw, "image_std", where)
    if family == "efficientnet" and raw.get("include_top") is not False:
        again = _numbers(raw, "image_std", where)
        std = tuple(one * other for one, other in zip(std if len(std) > 1 else std * len(again), again, strict=True))
    channels = 1 if mode == "L" else 3
    if not {len(mean), len(std)} <= {1, channels}:
        raise RecipeError(f"[model] source: {where} has {len(mean)} means for {channels} channels")
    if min(std) <= 0 or scale <= 0:
        raise RecipeError(f"[model] source: {where} divides by {min(std)} x {scale:g}, no positive number")
    if scale == 1.0 and shift == 0.0:
        return {"mean": list(mean), "std": list(std)}
    return {"mean": [(each + shift) / scale for each in mean], "std": [each / scale for each in std]}


def _geometry(raw: Mapping[str, Any], family: str, where: Path) -> dict[str, Any]:
    """Return resize and crop. Raises _OtherError for what these cannot say."""
    for key, value in raw.items():
        if value and ((key.startswith("do_") and key not in _KNOWN_STEPS) or key in _ODD_SETTINGS):
            raise _OtherError(f"has {key}")
    if (divisor := raw.get("size_divisor")) not in {None, 0, 1}:
        raise _OtherError(f"makes sizes multiples of {divisor}")
    resize = _resize(raw, family, where) if raw.get("do_resize") is not False else None
    crops = raw.get("do_center_crop")
    crop = None
    if crops or (crops is None and family in _CROP):
        crop = _pair(raw.get("crop_size"), where, "crop_size")
    elif isinstance(resize, int) and family == "convnext":
        edge = int(raw["size"]["shortest_edge"] if isinstance(raw["size"], dict) else raw["size"])
        if edge >= _WARPS_FROM:
            resize = [edge, edge]
        else:
            crop = [edge, edge]
    if crop is None and not isinstance(resize, list):
        raise _OtherError("gives images of different sizes")
    return {"resize": resize, "crop": crop}


def _resize(raw: Mapping[str, Any], family: str, where: Path) -> int | list[int]:
    size = raw.get("size")
    if isinstance(size, dict):
        size = {key: value for key, value in size.items() if value is not None}
        if set(size) == {"shortest_edge"}:
            edge = _edge(size["shortest_edge"], where, "size")
        elif set(size) == {"height", "width"}:
            pair = _pair(size, where, "size")
            if family != "poolformer" or pair[0] != pair[1]:
                return pair
            edge = pair[0]
        else:
            raise _OtherError(f"has the size {size}")
    elif isinstance(size, list) or family not in _SHORTER_EDGE:
        return _pair(size, where, "size")
    else:
        edge = _edge(size, where, "size")
    if family == "levit":
        return int(edge / _LEVIT_SHARE)
    if family not in _CROP_SHARE or (family == "convnext" and edge >= _WARPS_FROM):
        return edge
    return int(edge / _number(raw.get("crop_pct"), _CROP_SHARE[family], where, "crop_pct"))


def _pair(value: Any, where: Path, name: str) -> list[int]:
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2:
        raise RecipeError(f"[model] source: {where} has {name} {value!r}, which is no height and width")
    return [_edge(each, where, name) for each in sides]


def _edge(value: Any, where: Path, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(
            f"[model] source: {where} has no {name} in pixels"
            if value is None
            else f"[model] source: {where} has {name} {value!r}, which is no number of pixels",
            hint="correct it there, or say in [preprocess] how an image becomes the model's input",
        )
    return value


def _numbers(raw: Mapping[str, Any], name: str, where: Path) -> tuple[float, ...]:
    value = raw.get(name)
    values = value if isinstance(value, list) else [value]
    if len(values) not in {1, 3} or not all(isinstance(each, int | float) for each in values):
        raise RecipeError(
            f"[model] source: {where} has {'no ' + name if value is None else f'{name} {value!r}'}, and one number or "
            "one for each channel is needed",
            hint="correct it there; it must be what the model was trained with",
        )
    return tuple(map(float, values))


def _number(value: Any, default: float, where: Path, name: str) -> float:
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e6:
        raise RecipeError(f"[model] source: {where} has {name} {value!r}, which is no positive number")
    return float(value)
