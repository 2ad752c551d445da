"""Sources of calibration and evaluation data: image folders, arrays, Python factories, or synthetic data."""

from __future__ import annotations

from cpupack.artifacts import Samples
from cpupack.errors import CalibrationError
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.runtime.tensor_spec import TensorSpec
from cpupack.runtime.text.spec import TextInput
from cpupack.sources import arrays, factory, images, synthetic, texts
from cpupack.sources.request import Request

__all__ = ["open_source"]

_KINDS = {
    "images": images.read,
    "text": texts.read,
    "arrays": arrays.read,
    "python": factory.read,
    "synthetic": synthetic.read,
}


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
    inputs: tuple[TensorSpec, ...] | None = None,
    tokenizer: TextInput | None = None,
    labels: tuple[str, ...] | None = None,
) -> Samples:
    """Read the data that ``spec`` (``[calibration] source`` or ``[evaluation] source``) names.

    ``samples`` is the largest number of samples to take, None for all. Only ``seed`` decides which. ``labelled`` asks
    for class indices; without them it is an error unless ``required`` is false. ``targets`` asks for what a metric
    compares outputs with: an array of any shape, or the labels if there is no such array. ``inputs`` are those of the
    model with what is known of them after loading; by default those of the recipe. ``tokenizer`` makes inputs of text.
    ``labels`` are those of the model, by default those of the recipe.
    Raises CalibrationError when the data is missing, unusable, or does not fit the model's input.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _KINDS:
        raise CalibrationError(
            f'unknown data source "{spec}"',
            hint="use images:DIR, text:FILE, arrays:FILE.npz, python:FILE.py:factory or synthetic",
        )
    request = Request(
        spec,
        loaded,
        inputs or loaded.recipe.input_specs,
        samples,
        seed,
        skip_corrupt,
        labelled,
        progress,
        required,
        targets,
        tokenizer,
        labels,
    )
    return _KINDS[kind](rest, request)
