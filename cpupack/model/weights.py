"""Weights: from torchvision's enums, state-dict files, or random; every mismatch is listed by name."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import struct
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError
from cpupack.model.sources import timm_builder
from cpupack.model.user_code import first_line
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe

_UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises for files that are no checkpoint."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_LISTED = 8
_SETTLING_SAMPLES = 8
_CONNECT_TIMEOUT_S = 15


@dataclass(frozen=True)
class LoadedWeights:
    """Which weights are in the module now. ``sha256`` is of the file they were read from, None for random ones."""

    origin: str
    random: bool
    sha256: str | None = None


def load_weights(module: nn.Module, loaded: LoadedRecipe, progress: Progress) -> LoadedWeights:
    """Load ``[model] weights`` into ``module``, in place.

    Raises ModelError for a file that is missing, has another SHA-256, is not a state dict, or does not fit the module,
    and for a download that fails without ``weights_fallback``.
    """
    spec = loaded.recipe.model
    kind, _, name = spec.source.partition(":")
    if spec.weights == "random":
        progress.warn('RANDOM WEIGHTS: the recipe has weights = "random". Speed is real, predictions mean nothing')
        settle_batch_norms(module, spec.input_shape, spec.seed)
        return LoadedWeights(f"random (seed {spec.seed})", random=True)
    if spec.weights == "factory":
        if kind != "python":
            raise ModelError('[model] weights = "factory" is for python: sources, whose factory loads its own weights')
        return LoadedWeights(f"as {spec.source} returns them", random=False)
    if Path(spec.weights).suffix in {".pt", ".pth", ".safetensors"}:
        return _from_file(module, loaded.resolve(spec.weights), spec.sha256)
    if kind == "timm" and spec.weights == "pretrained":
        return _from_timm(module, loaded, name, progress)
    if kind != "torchvision":
        raise ModelError(
            f'[model] weights: {spec.weights!r} is not a .pt, .pth or .safetensors path, "random"'
            + (' or "pretrained"' if kind == "timm" else ' or "factory"')
        )
    return _from_torchvision(module, loaded, name, progress)


def settle_batch_norms(module: nn.Module, input_shape: list[int], seed: int) -> None:
    """Set the running statistics of every BatchNorm from one seeded batch of noise, in place.

    An untrained network has means of 0 and variances of 1 there whatever its activations are; those then shrink layer
    by layer (to 1e-14 in EfficientNet), and neither SQNR nor the speedup over FP32 means anything.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # a plain average, so one batch sets the statistics entirely
    noise = torch.randn(_SETTLING_SAMPLES, *input_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        module(noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _from_torchvision(module: nn.Module, loaded: LoadedRecipe, name: str, progress: Progress) -> LoadedWeights:
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
            with urllib.request.urlopen(weights.url, timeout=_CONNECT_TIMEOUT_S):  # noqa: S310 - torchvision's https
                pass
            weights.get_state_dict(progress=False, check_hash=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            reason = getattr(error, "reason", error)
            if spec.weights_fallback == "random":
                return _fall_back(module, loaded, f"{name} {spec.weights}", f"{file_name}: {reason}", progress)
            raise ModelError(
                f"[model] weights: {file_name} could not be downloaded: {reason}",
                hint=f"put the file at {cached}, or name a local path as [model] weights, "
                'or accept untrained ones with weights_fallback = "random"',
            ) from error
    found = _from_file(module, cached, spec.sha256)
    return LoadedWeights(f"torchvision {name} {spec.weights}", random=False, sha256=found.sha256)


def _from_timm(module: nn.Module, loaded: LoadedRecipe, name: str, progress: Progress) -> LoadedWeights:
    spec = loaded.recipe.model
    progress.note(f"asking timm for the pretrained weights of {name}")
    try:
        module.load_state_dict(timm_builder(name)(**{**spec.kwargs, "pretrained": True}).state_dict())
    except (OSError, RuntimeError) as error:  # the hub's errors are OSErrors; RuntimeError: the model has no weights
        if spec.weights_fallback == "random":
            return _fall_back(module, loaded, f"timm {name} pretrained", first_line(error), progress)
        raise ModelError(
            f"[model] weights: timm has no pretrained weights for {name} here: {first_line(error)}",
            hint="fetch them once with internet, or name a local file as [model] weights, "
            'or accept untrained ones with weights_fallback = "random"',
        ) from error
    return LoadedWeights(f"timm {name} pretrained", random=False)


def _fall_back(module: nn.Module, loaded: LoadedRecipe, wanted: str, reason: str, progress: Progress) -> LoadedWeights:
    """Keep the random weights that the recipe accepts, and say so loudly."""
    spec = loaded.recipe.model
    progress.warn(
        f"RANDOM WEIGHTS in place of {wanted}, which could not be downloaded ({reason}); "
        'the recipe allows it with weights_fallback = "random". Speed is real, predictions mean nothing'
    )
    settle_batch_norms(module, spec.input_shape, spec.seed)
    return LoadedWeights(f"random (seed {spec.seed}), in place of {wanted}", random=True)


def _from_file(module: nn.Module, path: Path, sha256: str | None) -> LoadedWeights:
    if not path.is_file():
        raise ModelError(f"[model] weights: {path} does not exist", hint="paths are relative to the recipe")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256:
        raise ModelError(
            f"[model] sha256: {path} has SHA-256 {digest}, the recipe says {sha256}",
            hint="the file is not the one the recipe was written for; fetch it again or correct the recipe",
        )
    state = _unwrap(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path), path)
    _check_fit(module, state, path)
    module.load_state_dict(state)
    return LoadedWeights(path.name, random=False, sha256=digest)


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ModelError(f"[model] weights: {path} is not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # A remark of torch.load on files that torch.save did not write; what is wrong with them is said below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if "TorchScript" in str(error) or "torch.jit" in str(error):
            reason = "it is a TorchScript archive"
        elif "Weights only load failed" in str(error) or "GLOBAL" in str(error):
            reason = "it is damaged, or holds pickled Python objects, and those are not executed"
        else:
            # A KeyError here is an opcode that pickle does not know, an EOFError has no words at all.
            worded = not isinstance(error, KeyError | EOFError | IndexError | UnicodeDecodeError) and str(error).strip()
            reason = first_line(error) if worded else "torch.save did not write it, or it is cut off"
        raise ModelError(
            f"[model] weights: {path} is not a state dict: {reason}",
            hint="save the tensors alone: torch.save(model.state_dict(), path)",
        ) from error


def _unwrap(raw: Any, path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict inside a checkpoint: under a usual key, without DataParallel's ``module.`` prefix."""
    for wrapper in _WRAPPERS:
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), Mapping):
            raw = raw[wrapper]
            break
    if not isinstance(raw, Mapping) or not raw or not all(isinstance(value, torch.Tensor) for value in raw.values()):
        found = (
            f"a dict with keys {', '.join(map(str, list(raw)[:5]))}" if isinstance(raw, Mapping) else type(raw).__name__
        )
        raise ModelError(
            f"[model] weights: {path} is not a state dict: it holds {found}",
            hint="save the tensors alone: torch.save(model.state_dict(), path)",
        )
    state = {str(key): value for key, value in raw.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _check_fit(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    own = module.state_dict()
    problems = []
    # num_batches_tracked is a counter that older checkpoints lack; it changes nothing in eval mode.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    for title, names in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes)):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            problems.append(f"  {title} ({len(names)}): {', '.join(names[:_LISTED])}{more}")
    if problems:
        raise ModelError(
            f"[model] weights: {path} does not fit the model:\n" + "\n".join(problems),
            hint="is it a checkpoint of this architecture, and are [model] kwargs (num_classes, ...) right?",
        )
    for key in own:
        if key not in state and key.endswith("num_batches_tracked"):
            state[key] = own[key]
