"""Loads weights: from torchvision's enums, timm or files, or random ones. Every mismatch is listed by name."""

from __future__ import annotations

import copy
import hashlib
import importlib
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cpupack.effort import GIGA, samples_within
from cpupack.errors import ModelError
from cpupack.model.checkpoint import take
from cpupack.model.directories import directory_of, weights_of
from cpupack.model.fit import listed
from cpupack.model.sources import timm_builder
from cpupack.model.user_code import describe_failure, first_line
from cpupack.model.vision import modern_names, optional_parts
from cpupack.model.weight_files import read_weights
from cpupack.progress import Progress
from cpupack.recipe import WEIGHT_FILES, LoadedRecipe, Model
from cpupack.recipe.derived import text_directory
from cpupack.recipe.shards import ShardError, files_of
from cpupack.recipe.text_checks import DIRECTORIES
from cpupack.runtime.manifest import hash_file
from cpupack.runtime.random_rows import random_rows
from cpupack.runtime.signature import Signature

_SETTLING_SAMPLES, _FEWEST_SETTLING = 8, 2
_SETTLING_MACS = 200 * GIGA
"""Multiply-adds of the batch that settles random weights, some seconds. A larger model has more places in a sample."""
_LEAST_IMAGE = 8
"""The height or width, in pixels, from which an input has a spectrum like a photograph."""
_CONNECT_TIMEOUT_S = 15
_CHUNK_BYTES = 2**20
SAVED = ("export", "torchscript")
"""Kinds of sources whose files hold the weights too."""


@dataclass(frozen=True)
class LoadedWeights:
    """Which weights the module has now. ``sha256`` is the hash of their file, None if they are not from a file."""

    origin: str
    random: bool
    sha256: str | None = None


@dataclass(frozen=True)
class Settling:
    """How to run a model on made-up inputs: ``module`` takes one tensor, in which those of ``signature`` are.

    ``macs`` are the multiply-adds of a sample, 0 where nobody has counted them.
    """

    module: nn.Module
    signature: Signature
    macs: int = 0

    @property
    def samples(self) -> int:
        """How many inputs settle random weights."""
        return samples_within(_SETTLING_MACS, self.macs, most=_SETTLING_SAMPLES, least=_FEWEST_SETTLING)

    @classmethod
    def of(cls, module: nn.Module, *shape: int) -> Settling:
        """Return it for a module that takes one float tensor of this shape and gives one."""
        return cls(module, Signature.plain(shape, ()))


def load_weights(
    module: nn.Module, loaded: LoadedRecipe, progress: Progress, settling: Settling | None = None
) -> LoadedWeights:
    """Load ``[model] weights`` into ``module``, in place.

    Random ones are settled by running the model; ``settling`` says how where it does not take one float tensor.

    Raises ModelError for a file that is missing, has another SHA-256, is not a state dict, or does not fit the module,
    and for a download that fails without ``weights_fallback``.
    """
    spec = loaded.recipe.model
    settling = settling or Settling.of(module, *loaded.recipe.engine_input_shape)
    kind, _, name = spec.source.partition(":")
    if spec.weights == "random":
        progress.warn('RANDOM WEIGHTS: the recipe has weights = "random". Speed is real, predictions mean nothing')
        settle_batch_norms(settling, spec.seed, progress)
        return LoadedWeights(f"random (seed {spec.seed})", random=True)
    if kind in DIRECTORIES:
        return _from_directory(loaded, progress, settling)
    if spec.weights == "factory":
        if kind in SAVED:
            return LoadedWeights(f"as {spec.source} has them", random=False)
        if kind != "python":
            raise ModelError('[model] weights = "factory" is for python: sources, whose factory loads its own weights')
        return LoadedWeights(f"as {spec.source} returns them", random=False)
    if spec.weights.endswith(WEIGHT_FILES):
        return _from_file(module, loaded.resolve(spec.weights), spec, progress)
    if kind == "timm" and spec.weights == "pretrained":
        return _from_timm(module, loaded, name, progress, settling)
    if kind != "torchvision":
        raise ModelError(
            f'[model] weights: {spec.weights!r} is not a path ending in {", ".join(WEIGHT_FILES)}, "random"'
            + (' or "pretrained"' if kind == "timm" else ' or "factory"')
        )
    return _from_torchvision(module, loaded, name, progress, settling)


def _from_directory(loaded: LoadedRecipe, progress: Progress, settling: Settling) -> LoadedWeights:
    """Return which weights the module was built with: those of its directory, or random ones."""
    spec, root = loaded.recipe.model, directory_of(loaded)
    path = weights_of(text_directory(loaded.recipe, loaded.path.parent) or root)
    if path is None:
        return _fall_back(settling, loaded, f"the weights of {spec.source}", "the directory has none", progress)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    _check_digest(digest, path, spec)
    return LoadedWeights(f"{spec.source}, {path.relative_to(root).as_posix()}", random=False, sha256=digest)


def _check_digest(digest: str, path: Path, spec: Model) -> None:
    if spec.sha256 is not None and digest != spec.sha256:
        raise ModelError(
            f"[model] sha256: {path} has SHA-256 {digest}, but the recipe says {spec.sha256}",
            hint="the recipe was written for another file; download the file again or correct the recipe",
        )


def settle_batch_norms(settling: Settling, seed: int, progress: Progress) -> None:
    """Set the running statistics of every BatchNorm from one seeded batch of made-up inputs, in place.

    In an untrained network these are means of 0 and variances of 1, which do not match its activations. The activations
    then shrink layer by layer (to 1e-14 in EfficientNet), and neither SQNR nor the speedup over FP32 means anything.
    """
    module = settling.module
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average, so one batch sets the statistics entirely
    noise = _made_up(settling.signature, seed, settling.samples)
    before = copy.deepcopy(module.state_dict())
    try:
        with torch.no_grad():
            module(noise)
    except Exception as error:  # noqa: BLE001 - users' code may fail on noise, for example if it expects token ids
        module.load_state_dict(before)
        progress.warn(
            f"BatchNorm keeps mean 0 and variance 1, because the model does not run on noise: {describe_failure(error)}"
        )
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _made_up(signature: Signature, seed: int, count: int) -> torch.Tensor:
    """Return a batch that the model takes: noise, and random ids, masks and pixels where the inputs are these."""
    if not signature.takes_rows:
        return _noise(signature.inputs[0].shape, seed, count)
    return torch.from_numpy(random_rows(signature.inputs, np.random.default_rng(seed), count))


def _noise(input_shape: Sequence[int], seed: int, count: int) -> torch.Tensor:
    """Return seeded noise of unit variance; for images with the spectrum of photographs, an amplitude of 1/f.

    White noise has hardly anything left after a few averages, so norms that have seen it alone make smooth images
    larger from layer to layer: RegNetY-1.6GF came to 6000, and rounding in FP32 to a third of that. Source: Field
    1987, "Relations between the statistics of natural images and the response properties of cortical cells".
    """
    noise = torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(seed))
    if len(input_shape) != 3 or min(input_shape[1:]) < _LEAST_IMAGE:
        return noise
    height, width = input_shape[1:]
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1 / max(height, width)
    image: torch.Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(height, width))
    return image / image.std()


def _download(weights: Any, cached: Path) -> None:
    """Have torchvision put a file into its cache. Raises URLError, OSError or RuntimeError."""
    if not cached.is_absolute():  # torch would make a directory "~" here
        raise OSError("this user has no home directory to keep it in: set TORCH_HOME")
    with urllib.request.urlopen(weights.url, timeout=_CONNECT_TIMEOUT_S):  # noqa: S310 - torchvision's https
        pass
    weights.get_state_dict(progress=False, check_hash=True)


def _from_torchvision(
    module: nn.Module, loaded: LoadedRecipe, name: str, progress: Progress, settling: Settling
) -> LoadedWeights:
    spec = loaded.recipe.model
    models = importlib.import_module("torchvision.models")
    enum = models.get_model_weights(name)
    members = list(enum.__members__)
    if spec.weights not in members:
        near = get_close_matches(spec.weights, members, n=1)
        raise ModelError(
            f"[model] weights: torchvision:{name} has no weights {spec.weights!r} (it has {', '.join(members)})",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    weights = enum[spec.weights]
    file_name = weights.url.rpartition("/")[2]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not cached.is_file():
        try:
            _download(weights, cached)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = getattr(error, "reason", error)
            if spec.weights_fallback == "random":
                return _fall_back(settling, loaded, f"{name} {spec.weights}", f"{file_name}: {reason}", progress)
            raise ModelError(
                f"[model] weights: {file_name} could not be downloaded: {reason}",
                hint=f"put the file at {cached}, or name a local path as [model] weights, "
                'or accept untrained ones with weights_fallback = "random"',
            ) from error
    found = _from_file(module, cached, spec, progress, names=modern_names, optional=optional_parts(module))
    return LoadedWeights(f"torchvision {name} {spec.weights}", random=False, sha256=found.sha256)


def _from_timm(
    module: nn.Module, loaded: LoadedRecipe, name: str, progress: Progress, settling: Settling
) -> LoadedWeights:
    spec = loaded.recipe.model
    progress.note(f"asking timm for the pretrained weights of {name}")
    try:
        module.load_state_dict(timm_builder(name)(**{**spec.kwargs, "pretrained": True}).state_dict())
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors; RuntimeError: the model has no weights
        if spec.weights_fallback == "random":
            return _fall_back(settling, loaded, f"timm {name} pretrained", first_line(error), progress)
        raise ModelError(
            f"[model] weights: timm has no pretrained weights for {name} here: {first_line(error)}",
            hint="fetch them once with internet, or name a local file as [model] weights, "
            'or accept untrained ones with weights_fallback = "random"',
        ) from error
    return LoadedWeights(f"timm {name} pretrained", random=False)


def _fall_back(settling: Settling, loaded: LoadedRecipe, wanted: str, reason: str, progress: Progress) -> LoadedWeights:
    """Keep the random weights that the recipe accepts, and warn."""
    spec = loaded.recipe.model
    progress.warn(
        f"RANDOM WEIGHTS in place of {wanted}, which could not be had ({reason}); "
        'the recipe allows it with weights_fallback = "random". Speed is real, predictions mean nothing'
    )
    settle_batch_norms(settling, spec.seed, progress)
    return LoadedWeights(f"random (seed {spec.seed}), in place of {wanted}", random=True)


def _from_file(
    module: nn.Module,
    path: Path,
    spec: Model,
    progress: Progress,
    *,
    names: Callable[[Any], Any] | None = None,
    optional: tuple[str, ...] = (),
) -> LoadedWeights:
    if not path.is_file():
        raise ModelError(f"[model] weights: {path} does not exist", hint="paths are relative to the recipe")
    digest = _digest_of(path)
    _check_digest(digest, path, spec)
    raw = read_weights(path)
    taken = take(names(raw) if names else raw, module, spec.state, path, optional=optional)
    for note in taken.notes:
        progress.note(note)
    for warning in taken.warnings:
        progress.warn(warning)
    module.load_state_dict(taken.state, strict=False)  # take() has already compared every name and shape
    return LoadedWeights(path.name, random=False, sha256=digest)


def _digest_of(path: Path) -> str:
    """Return the SHA-256 of a file; of an index, of its bytes and those of its shards."""
    try:
        files = files_of(path)
    except ShardError as error:
        raise ModelError(f"[model] weights: {error}") from error
    if len(files) == 1:
        return hash_file(path)
    digest = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            while part := file.read(_CHUNK_BYTES):
                digest.update(part)
    return digest.hexdigest()


def check_finite(module: nn.Module, origin: str) -> None:
    """Raise ModelError for NaN or infinite weights: the training diverged, or the file is damaged."""
    wrong = [name for name, value in module.named_parameters() if not torch.isfinite(value).all()]
    wrong += [name for name, value in module.named_buffers() if value.is_floating_point() and torch.isnan(value).any()]
    if wrong:
        raise ModelError(
            f"[model] weights: {origin}: NaN or infinity in {listed(wrong)}",
            hint="take a checkpoint from before the training diverged",
        )
