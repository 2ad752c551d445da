"""The subject of a comparison: the package of a recipe or a wheel, and the FP32 model and data for all engines."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack import pipeline
from cpupack.artifacts import FloatModel, Reference, Samples
from cpupack.cache import StageCache
from cpupack.errors import UsageError
from cpupack.peers.job import Data, Job
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.file import load_recipe, parse_recipe
from cpupack.runtime.accuracy import sqnr_db
from cpupack.runtime.files import GOLDEN_NAME, RECIPE_NAME
from cpupack.runtime.golden import thinned
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.host.probe import HostProbe
from cpupack.runtime.images.preprocess import normalize
from cpupack.runtime.manifest import Manifest, read_manifest
from cpupack.wheel.inspect import inspect

_SAME_MODEL_DB = 60.0
"""FP32 outputs of equal weights agree at least this well, even on another CPU or with other threads."""

_MOST_SAMPLES = 1000
"""Outputs are compared on at most this many samples, because FP32 on two cores runs only a few images per second."""


@dataclass(frozen=True)
class Subject:
    """The subject of the comparison. ``job`` is the job of every engine, except for its name and setting."""

    recipe: LoadedRecipe
    manifest: Manifest
    model: FloatModel
    reference: Reference
    calibration: Samples | None
    job: Job


def from_recipe(loaded: LoadedRecipe, work: Path, progress: Progress, cache: StageCache | None = None) -> Subject:
    """Build the recipe's package below ``work``, with what ``cache`` has. Raises the error of the stage that failed."""
    cpu = machine()
    if cpu not in loaded.recipe.target.cpu:
        raise UsageError(
            f"{loaded.path}: [target] cpu is {', '.join(loaded.recipe.target.cpu)}, but this host is {cpu}",
            hint="compare on a host that the recipe builds for, or --set target.cpu",
        )
    prepared, _, staged = pipeline.stage_untuned(loaded, cpu, work, progress, cache)
    return _subject(loaded, staged.package_dir, prepared.model, prepared.reference, prepared.calibration, work)


def from_wheel(
    wheel: Path,
    recipe: Path | None,
    overrides: tuple[str, ...],
    work: Path,
    progress: Progress,
    caching: Callable[[LoadedRecipe], StageCache] | None = None,
) -> Subject:
    """Unpack a wheel below ``work`` and load the FP32 model it was built from. ``caching`` opens its recipe's cache.

    Raises UsageError when the wheel is damaged or for another CPU, when its recipe cannot be used from here, or when
    the outputs of the recipe's FP32 model differ from those of the model that the wheel was built from.
    """
    found = inspect(wheel)
    if found.problems:
        raise UsageError(f"{wheel} differs from its build: {found.problems[0]}", hint="build or copy it again")
    if found.manifest.target["cpu"] != machine():
        raise UsageError(f"{wheel} is for {found.manifest.target['cpu']}, but this host is {machine()}")
    source = work / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(source)
    package_dir = source / found.manifest.import_name
    loaded = load_recipe(recipe, overrides) if recipe else _packed_recipe(wheel, package_dir, overrides)
    model, calibration, reference = pipeline.run_float(loaded, progress, None if caching is None else caching(loaded))
    _check_same_model(wheel, loaded, package_dir, model)
    return _subject(loaded, package_dir, model, reference, calibration, work)


def _packed_recipe(wheel: Path, package_dir: Path, overrides: tuple[str, ...]) -> LoadedRecipe:
    """Read the recipe inside the wheel as if it were in the current directory."""
    path = Path.cwd() / f"{wheel.name} {RECIPE_NAME}"
    text = (package_dir / RECIPE_NAME).read_text(encoding="utf-8")
    recipe, problems, final = parse_recipe(text, str(path.name), path.parent, overrides)
    if recipe is None:
        listed = "\n".join(f"{place}: {text}" for place, text in problems)
        raise UsageError(
            f"the recipe in {wheel} cannot be used from {path.parent}:\n{listed}",
            hint="name the recipe that the wheel was built from: --recipe RECIPE",
        )
    return LoadedRecipe(recipe=recipe, path=path, text=final)


def _check_same_model(wheel: Path, loaded: LoadedRecipe, package_dir: Path, model: FloatModel) -> None:
    """Compare the FP32 outputs in the wheel, which are from its build, with those of the recipe's model."""
    with np.load(package_dir / GOLDEN_NAME) as golden:
        stored, expected = golden["input"], golden["output_fp32"]
    spec = loaded.recipe.engine_preprocess
    if stored.dtype == np.uint8 and spec is not None:
        stored = normalize(stored, spec)
    fits = stored.dtype == np.float32 and stored.shape[1:] == model.input_shape
    with torch.inference_mode():
        actual = model.module(torch.from_numpy(np.ascontiguousarray(stored))).numpy() if fits else None
    if actual is not None:
        actual = thinned(actual, model.output_shape)
    if actual is None or actual.shape != expected.shape or sqnr_db(expected, actual) < _SAME_MODEL_DB:
        raise UsageError(
            f"the FP32 model of {loaded.path.name} is not the one {wheel.name} was built from: its outputs differ",
            hint="name the recipe of the build with --recipe; if that fell back to random weights, so must this",
        )


def _save_state(module: nn.Module, path: Path) -> None:
    """Save the weights through memory: where the disk is full, torch's own writer ends the process."""
    memory = io.BytesIO()
    torch.save(module.state_dict(), memory)
    path.write_bytes(memory.getbuffer())


def _subject(
    loaded: LoadedRecipe,
    package_dir: Path,
    model: FloatModel,
    reference: Reference,
    calibration: Samples | None,
    work: Path,
) -> Subject:
    manifest = read_manifest(package_dir)
    reference = _spread(reference)
    outputs = work / "reference.npy"
    np.save(outputs, reference.outputs)
    weights = work / "weights.pt"
    _save_state(model.module, weights)
    job = Job(
        engine="",
        directory="",
        recipe_path=str(loaded.path),
        recipe_text=loaded.text,
        weights=str(weights),
        input_shape=model.input_shape,
        calibration=_saved(calibration, work / "calibration.npy") if calibration else None,
        calibration_batch=loaded.recipe.calibration_batch_size,
        evaluation=_saved(reference.samples, work / "evaluation.npy"),
        reference=str(outputs),
        package={"source": str(package_dir.parent), "import_name": package_dir.name},
        dynamic=loaded.recipe.quantize.mode == "dynamic",
        cores=HostProbe().budget().usable,
        activation_bits=manifest.target["activation_bits"],
        signature=None if model.signature.is_plain else model.signature.to_dicts(),
    )
    return Subject(loaded, manifest, model, reference, calibration, job)


def _spread(reference: Reference) -> Reference:
    """Return at most ``_MOST_SAMPLES`` samples, spread evenly, because samples of a class are often consecutive."""
    samples = reference.samples
    if len(samples) <= _MOST_SAMPLES:
        return reference
    rows = np.linspace(0, len(samples) - 1, _MOST_SAMPLES).astype(int)
    kept = dataclasses.replace(
        samples,
        data=samples.data[rows],
        names=tuple(samples.names[row] for row in rows),
        labels=None if samples.labels is None else samples.labels[rows],
    )
    return dataclasses.replace(reference, samples=kept, outputs=reference.outputs[rows])


def _saved(samples: Samples, path: Path) -> Data:
    np.save(path, samples.data)
    preprocess: dict[str, Any] | None = samples.preprocess.to_dict() if samples.preprocess else None
    return Data(str(path), len(samples), preprocess)
