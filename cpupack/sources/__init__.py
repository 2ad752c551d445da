"""Where calibration and evaluation data comes from: image folders, arrays, Python factories, or made up."""

from __future__ import annotations

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.sources import arrays, factory, images, synthetic
from cpupack.sources.request import Request

__all__ = ["open_source"]

_KINDS = {"images": images.read, "arrays": arrays.read, "python": factory.read, "synthetic": synthetic.read}


def open_source(
    spec: str,
    loaded: LoadedRecipe,
    *,
    samples: int | None,
    seed: int,
    skip_corrupt: bool,
    labelled: bool,
    progress: Progress,
    required: bool = True,
    targets: bool = False,
) -> Samples:
    """Read the data that ``spec`` (``[calibration] source`` or ``[evaluation] source``) names.

    ``samples`` is the most to take, None for all; the choice depends on ``seed`` alone. ``labelled`` asks for
    class indices, an error where there are none unless ``required`` is false. ``targets`` asks for what a metric
    compares outputs with: an array of any shape, or the labels where there is none. Raises CalibrationError when the
    data is missing, unusable, or not what the model takes.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _KINDS:
        raise CalibrationError(
            f'no data source "{spec}"',
            hint="images:DIR, arrays:FILE.npz, python:FILE.py:factory or synthetic",
        )
    request = Request(spec, loaded, samples, seed, skip_corrupt, labelled, progress, required, targets)
    return _KINDS[kind](rest, request)
