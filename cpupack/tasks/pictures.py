"""Pictures of a build's results before and after INT8, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cpupack.artifacts import Samples, TaskPicture
from cpupack.runtime.images.spec import PreprocessSpec
from cpupack.runtime.names import printable
from cpupack.runtime.signature import Signature
from cpupack.runtime.tasks.base import Presenter
from cpupack.runtime.tasks.frame import Frame
from cpupack.runtime.tasks.lettering import own_font_alone
from cpupack.runtime.tasks.maps import RegressionMaps
from cpupack.runtime.tasks.regression import RegressionPresenter
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.tensor_spec import TensorSpec

MOST = 3
"""Samples with pictures."""
_EDGE = 480
_LEAST_EDGE = 240
"""Smaller inputs are enlarged: a label would hide a digit of 28 x 28 pixels."""
_QUALITY = 85


def pictures(
    presenter: Presenter | None,
    kind: str,
    samples: Samples,
    signature: Signature,
    expected: Mapping[str, npt.NDArray[Any]],
    found: Mapping[str, npt.NDArray[Any]],
) -> tuple[TaskPicture, ...]:
    """Return FP32's and INT8's results drawn over the first samples, empty for kinds that draw nothing or no images.

    Of a model with several images they are drawn over the first one, as ``predict --save`` does. Maps of numbers of
    both have the colours of FP32's range.
    ``expected`` and ``found`` are the outputs of FP32 and INT8 by name, of at least the first samples.
    """
    inputs = zip(signature.inputs, signature.input_places(), strict=True)
    first = next(((each, place) for each, place in inputs if each.preprocess is not None), None)
    maps = isinstance(presenter, RegressionPresenter) and presenter.spec.maps
    task = TaskSpec(kind, maps=maps)
    if presenter is None or not task.draws or (first is None and not task.draws_alone):
        return ()
    result = []
    for row in range(min(MOST, len(samples), *map(len, expected.values()), *map(len, found.values()))):
        base, frame = (Image.new("RGB", (1, 1)), None) if first is None else _shown(samples, row, signature, *first)
        drawn = []
        ranges = None
        for outputs in (expected, found):
            one = {name: each[row] for name, each in outputs.items()}
            answer = presenter.present(one, frame)
            with own_font_alone():  # the wheel has these pictures, and its bytes do not depend on the host's fonts
                if isinstance(answer, RegressionMaps):
                    ranges = answer.ranges() if ranges is None else ranges
                    picture = answer.drawn(ranges)
                else:
                    picture = answer.draw(base.copy())
            drawn.append(_encoded(picture))
        result.append(TaskPicture(printable(samples.names[row]), *drawn))
    return tuple(result)


def _shown(
    samples: Samples, row: int, signature: Signature, spec: TensorSpec, place: slice
) -> tuple[Image.Image, Frame]:
    """Return the image of a sample as results are drawn over it, and where these lie in it."""
    assert spec.preprocess is not None
    pixels = samples.data[row]
    if signature.takes_rows:
        pixels = _pixels(pixels[place].reshape(*spec.shape[1:], spec.shape[0]), spec.preprocess)
    elif samples.preprocess is None:
        pixels = _pixels(pixels.transpose(1, 2, 0), spec.preprocess)
    height, width = pixels.shape[:2]
    if spec.preprocess.mode == "BGR":
        pixels = pixels[..., ::-1]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).convert("RGB")
    frame = _frame(width, height)
    return image.resize((frame.width, frame.height), Image.Resampling.NEAREST), frame


def _frame(width: int, height: int) -> Frame:
    """Return the frame of an input that is shown as it is, or a whole number of times as large."""
    times = _times(width, height)
    return Frame(times * width, times * height, width, height, width, height)


def _times(width: int, height: int) -> int:
    return max(1, _LEAST_EDGE // max(width, height))


def _pixels(values: npt.NDArray[np.float32], spec: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image ``(height, width, channels)`` that is normalized."""
    scaled = (values * np.asarray(spec.std, np.float32) + np.asarray(spec.mean, np.float32)) * 255
    return np.asarray(scaled.round().clip(0, 255), np.uint8)


def _encoded(image: Image.Image) -> str:
    times = _times(*image.size)  # a picture that is the result itself may be small, too
    image = image.convert("RGB").resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    image.thumbnail((_EDGE, _EDGE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return base64.b64encode(out.getvalue()).decode("ascii")
