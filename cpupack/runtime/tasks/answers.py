"""A package's answers: its settings and constants, read once, and the results that they make of outputs."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import load_array
from ..errors import InputError, IntegrityError, RunnerError
from ..files import TASK_NAME
from ..items import ARCHIVE, is_floats, read_archive
from ..manifest import Manifest
from ..open_sizes import OpenSizes, open_sizes_of
from ..signature import Signature
from ..tensor_spec import TensorSpec
from ..text.tokenizer import Tokenizer, Tokens
from . import classification, kinds
from .base import Labels, Presenter, Result
from .decode import read_anchors
from .frame import Frame
from .spec import CLASSIFICATION, OF_TEXT, RAW, TaskSpec


class Answers:
    """Makes results of a model's outputs. ``spec`` is the task, ``labels`` the names of classes or values.

    ``presenter`` makes them; a classification has none.
    """

    def __init__(
        self,
        package_dir: Path,
        manifest: Manifest,
        labels: Labels,
        signature: Signature,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.spec = task_of(manifest)
        self.labels = labels
        images = [each for each in signature.inputs if each.preprocess is not None]
        self._image: TensorSpec | None = images[0] if images else None
        """The first input that is an image; results lie in it."""
        self.image_name = (self._image or signature.inputs[0]).name
        self._sizes = open_sizes_of(manifest)
        self.presenter: Presenter | None = None
        if self.spec.kind != CLASSIFICATION:
            anchors = read_anchors(package_dir / TASK_NAME) if self.spec.decoder else None
            model = kinds.Model(labels, input_size(signature), anchors, tokenizer, takes_bgr(signature))
            self.presenter = kinds.presenter(self.spec, model)

    @property
    def needs_frames(self) -> bool:
        """Whether the size of each original image must be known."""
        if self._sizes is not None and self._sizes.outputs and not self._sizes.inputs:
            return True  # where outputs are in a row depends on the size, which a row itself has
        if self._sizes is not None and self.presenter is not None:
            return self.presenter.needs_frame
        return self._image is not None and self.presenter is not None and self.presenter.needs_frame

    def frame(self, item: Any) -> Frame | Tokens | None:
        """Return the frame of one input of ``predict``, None where it is not needed. Raises InputError.

        Of results that lie in a text it is the tokens of the text.
        """
        if self.spec.kind in OF_TEXT:
            return item if isinstance(item, Tokens) else None
        if not self.needs_frames:
            return None
        from ..images.preprocess import upright_size

        item = self.image(item)
        if item is None:  # a caller left the image out, which has a default
            return None
        if self._image is None or is_floats(item):  # the model's own input: no image that it was made from is known
            if self._sizes is None:
                return None
            if self._sizes.inputs:
                shape = np.shape(item) if hasattr(item, "shape") else load_array(item, None, check_finite=False).shape
                return Frame.whole(shape[-1], shape[-2]) if len(shape) > 1 else None
            return _frame_of(item, self._sizes)
        assert self._image.preprocess is not None
        if isinstance(item, np.ndarray) and item.ndim >= 2:
            frame = Frame.of(item.shape[1], item.shape[0], self._image.preprocess)
        else:
            frame = Frame.of(*upright_size(item), self._image.preprocess)
        if self._sizes is None or self._sizes.inputs:
            return frame
        height, width = self._sizes.filled(frame.input_height, frame.input_width)
        return dataclasses.replace(frame, input_height=height, input_width=width)

    def image(self, item: Any) -> Any:
        """Return the image of one input of ``predict``, which is a mapping, or a file of one, for several inputs.

        None where the caller left it out.
        """
        if isinstance(item, str | os.PathLike) and str(item).endswith(ARCHIVE):
            item = read_archive(Path(item))
        return item.get(self.image_name) if isinstance(item, Mapping) else item

    def result(self, outputs: Mapping[str, npt.NDArray[np.float32]], frame: Frame | Tokens | None, top_k: int) -> Any:
        """Return the result for the outputs of one sample, each without the batch dimension.

        It is a list of ``Prediction`` for a classification, else the dataclass of the kind. Raises RunnerError for
        outputs that hold NaN, except where they are given raw.
        """
        if self.spec.kind != RAW:
            kinds.require_numbers(outputs)
        if self.presenter is None:
            (row,) = outputs.values()
            if row.ndim != 1:
                raise IntegrityError(f"a classification needs one row of scores, and the output has shape {row.shape}")
            return classification.top(row, top_k, self.labels, self.spec.scores)
        return self.presenter.present(outputs, frame)

    def facts(self, result: Any) -> dict[str, Any]:
        """Return one result as JSON-ready values."""
        if isinstance(result, list):
            return {"top": classification.to_dicts(result)}
        found: dict[str, Any] = result.to_dict()
        return found

    def text(self, result: Any) -> str:
        """Return one result as lines for people."""
        if isinstance(result, list):
            return classification.text(result, named=self.labels is not None)
        found: str = result.text()
        return found

    def drawing(self, result: Result | list[classification.Prediction], item: Any) -> Any:
        """Return one result drawn over the image that it belongs to, as a PIL image.

        A picture and a map of numbers are drawn by themselves.

        Raises RunnerError.
        """
        from PIL import Image

        from ..images.preprocess import upright_image

        if isinstance(result, list) or not self.spec.draws:
            raise RunnerError(draws_nothing(self.spec))
        if self.spec.draws_alone:
            drawn = result.draw(Image.new("RGB", (1, 1)))
        else:
            image = None if self._image is None else self.image(item)
            if image is None or is_floats(image):
                raise InputError("there is no image to draw over: the model was given arrays alone")
            drawn = result.draw(upright_image(image))
        assert drawn is not None
        return drawn


def draws_nothing(spec: TaskSpec) -> str:
    """Return what to say where a drawing is asked for, and results of the task have none."""
    return (
        f'kind "{spec.kind}" draws nothing; segmentation, masks, detection, keypoints, image and maps of numbers of a '
        "regression do"
    )


def task_of(manifest: Manifest) -> TaskSpec:
    """Return the task of a package. Raises IntegrityError when it is damaged."""
    shapes = [tuple(each.get("shape", ())) for each in manifest.outputs] or [tuple(manifest.model["output_shape"])]
    return TaskSpec.from_dict(manifest.task, shapes[0]) if len(shapes) == 1 or manifest.task else TaskSpec(RAW)


def _frame_of(item: Any, sizes: OpenSizes) -> Frame:
    """Return the frame of a model's own input, an array or an ``.npy`` file. Raises InputError for another shape."""
    if isinstance(item, bytes):
        item = io.BytesIO(item)
    array = item if isinstance(item, np.ndarray) else load_array(item, None, check_finite=False)
    if not sizes.is_image:
        sizes.check(str(array.dtype), (1, *array.shape))
    height, width = sizes.size_of(array.shape)
    return Frame.whole(width, height)


def input_size(signature: Signature) -> tuple[int, int]:
    """Return width and height of the image, or else of the first input that has rows and columns as its last dimensions
    after others: channels, frames. (1, 1) without one.
    """
    inputs = sorted(signature.inputs, key=lambda each: each.preprocess is None)
    maps = [each.shape for each in inputs if len(each.shape) >= 3]
    return (maps[0][-1], maps[0][-2]) if maps else (1, 1)


def takes_bgr(signature: Signature) -> bool:
    """Return whether the first input that is an image has its channels in OpenCV's order."""
    specs = (each.preprocess for each in signature.inputs if each.preprocess is not None)
    return next((each.mode == "BGR" for each in specs), False)
