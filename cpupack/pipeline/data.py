"""Reads the samples that a recipe names: for calibration, and for comparing INT8 with FP32."""

from __future__ import annotations

import math

from cpupack.artifacts import FloatModel, Samples
from cpupack.effort import GIGA, samples_within
from cpupack.progress import Progress
from cpupack.recipe import Evaluation, LoadedRecipe
from cpupack.recipe.gates import LABEL_GATES
from cpupack.sources import open_source
from cpupack.sources.states import rolled

_SYNTHETIC_EVALUATION, _FEWEST_SYNTHETIC = 64, 16
_SYNTHETIC_MACS = 1000 * GIGA
"""Multiply-adds of FP32 on all synthetic samples, some 20 seconds of two cores. Of a larger model there are fewer
samples than 64, but 16 at least: nobody has asked for a number."""
_EXAMPLES = 4
_MOST_OUTPUT_BYTES = 2**30
"""Outputs of FP32, and those of INT8, in memory at most."""


def calibration_samples(loaded: LoadedRecipe, model: FloatModel, progress: Progress) -> Samples | None:
    """Return the samples of ``[calibration]`` for a loaded model, None without that table."""
    spec = loaded.recipe.calibration
    if spec is None:
        return None
    found = open_source(
        spec.source,
        loaded,
        samples=spec.samples,
        seed=spec.seed,
        skip_corrupt=spec.skip_corrupt,
        labelled=False,
        progress=progress,
        inputs=model.signature.inputs,
        tokenizer=model.tokenizer,
    )
    return rolled(found, model)


def example_samples(loaded: LoadedRecipe, model: FloatModel, progress: Progress) -> Samples | None:
    """Return a few of the calibration samples, enough to run the model."""
    spec = loaded.recipe.calibration
    if spec is None:
        return None
    few = spec.model_copy(update={"samples": min(spec.samples, _EXAMPLES)})
    return calibration_samples(
        loaded.model_copy(update={"recipe": loaded.recipe.model_copy(update={"calibration": few})}), model, progress
    )


def evaluation_samples(
    loaded: LoadedRecipe, model: FloatModel, calibration: Samples | None, progress: Progress
) -> Samples:
    """Return the samples for comparing INT8 with FP32: ``[evaluation] source``, else data like the calibration's."""
    spec = loaded.recipe.evaluation
    if spec.source is not None:
        found = open_source(
            spec.source,
            loaded,
            samples=spec.samples,
            seed=0,
            skip_corrupt=spec.skip_corrupt,
            labelled=True,
            progress=progress,
            required=needs_labels(spec),
            targets=spec.metric is not None,
            inputs=model.signature.inputs,
            tokenizer=model.tokenizer,
            labels=model.labels,
        )
        return rolled(found, model)
    if calibration is not None and not calibration.synthetic:
        return calibration
    # Another seed, so that INT8 is not compared on the same synthetic samples that it was calibrated on.
    seed = (loaded.recipe.calibration.seed if loaded.recipe.calibration else 0) + 1
    found = open_source(
        "synthetic",
        loaded,
        samples=_synthetic_count(model.macs),
        seed=seed,
        skip_corrupt=False,
        labelled=False,
        progress=progress,
        inputs=model.signature.inputs,
        tokenizer=model.tokenizer,
    )
    return rolled(found, model)


def _synthetic_count(macs: int) -> int:
    return samples_within(_SYNTHETIC_MACS, macs, most=_SYNTHETIC_EVALUATION, least=_FEWEST_SYNTHETIC)


def bounded(samples: Samples, output_shape: tuple[int, ...], progress: Progress) -> Samples:
    """Return as many samples, spread over all, as have outputs that fit into memory: maps of classes are large."""
    most = max(1, _MOST_OUTPUT_BYTES // (4 * math.prod(output_shape)))
    if most >= len(samples):
        return samples
    size = f"{4 * math.prod(output_shape) * len(samples) / 2**30:.1f} GiB"
    progress.warn(
        f"INT8 is compared with FP32 on {most} of {len(samples)} samples: the outputs of all would take {size}"
    )
    return samples.spread(most)


def needs_labels(spec: Evaluation) -> bool:
    """Whether a gate compares classes with labels."""
    return any(getattr(spec, gate) is not None for gate in LABEL_GATES)
