"""torchvision: importing a build that does not match the installed torch, and building its models by name."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import torch
from torch import nn

from cpupack.errors import ModelError

_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")
_WRAP = "wrap the part that you need in your own factory (python:FILE.py:factory) whose forward returns one tensor"
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""Layer names from before PyTorch 0.4, which some of torchvision's own weights still have."""
_AUX_HEAD = "aux_classifier."


class _RepairingLoader(SourceFileLoader):
    """Runs ``torchvision/__init__.py``. If that fails for missing operators, declares them and runs it again.

    Package indexes have only CUDA builds of recent torchvision versions. With a CPU build of torch their extension does
    not load, and ``import torchvision`` fails with "operator torchvision::nms does not exist". Models and transforms
    do not use these operators. A matching build is imported unchanged.
    """

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            for schema in (
                "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            ):
                if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                    _SCHEMAS.define(schema)
            super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds only torchvision, and gives it a loader that repairs its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _RepairingLoader(spec.loader.name, spec.loader.path)
        return spec


def repair_torchvision_imports() -> None:
    """Make ``import torchvision`` work in this process, also in users' code, for every installed build."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def import_torchvision() -> ModuleType:
    """Import torchvision, even a build whose C++ operators do not load with this torch.

    Raises ModelError when torchvision is not installed.
    """
    repair_torchvision_imports()
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ModelError(
            "torchvision is not installed, but the recipe needs it",
            hint='pip install "cpupack[torchvision]", after the CPU build of torch (see README)',
        ) from error


def torchvision_builder(name: str, weights: str) -> Callable[..., Any]:
    """Return the builder of one of torchvision's models. It builds the form for ``weights``, but does not load them.

    Classifiers of images and of video are built unchanged, and so are detectors (``detectors.as_network``).
    Segmentation models are built to return only ``out``. Raises ModelError for a name that torchvision does not know,
    and for models that are no single network.
    """
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    family = _family(models, name)
    if family is None:
        names = models.list_models()
        near = get_close_matches(name, names, n=3)
        raise ModelError(
            f"[model] source: torchvision has no model {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else "torchvision.models.list_models() lists them",
        )
    if family == "optical_flow":
        raise ModelError(
            f"[model] source: torchvision:{name} is an optical flow model, not a classifier: it takes two images and "
            "returns a list of flows; a packaged model maps one tensor to one tensor",
            hint=f"{_WRAP}: for example one with both images joined in the channels that returns the last flow",
        )
    builder: Callable[..., Any] = models.get_model_builder(name)

    def build(**kwargs: Any) -> Any:
        if "weights" in kwargs or "pretrained" in kwargs:
            raise ModelError(
                f"[model] kwargs: weights of torchvision:{name} are chosen by [model] weights, not by kwargs"
            )
        defaults: dict[str, Any] = {"weights": None}
        if name in {"googlenet", "inception_v3"}:
            defaults["init_weights"] = True
        defaults |= _needed_by(models, name, weights)
        if family in {"segmentation", "detection"}:
            defaults["weights_backbone"] = None  # otherwise torchvision would download weights for the backbone
        module = builder(**{**defaults, **kwargs})
        return _returning_out(module) if family == "segmentation" else module

    return build


def _needed_by(models: ModuleType, name: str, weights: str) -> dict[str, Any]:
    """Return the arguments that torchvision's builder adds by itself for pretrained weights."""
    member = models.get_model_weights(name).__members__.get(weights)
    if member is None:
        return {}
    if name in {"googlenet", "inception_v3"}:
        return {"transform_input": True}  # these weights were trained on inputs with another normalization
    if name.startswith("vit_") and "min_size" in member.meta:
        return {"image_size": member.meta["min_size"][0]}
    return {}


def modern_names(raw: Any) -> Any:
    """Return a state dict with today's names if it has DenseNet's old names, else unchanged."""
    if not isinstance(raw, dict):
        return raw
    return {_DENSENET.sub(r"\1\2", name) if isinstance(name, str) else name: value for name, value in raw.items()}


def optional_parts(module: nn.Module) -> tuple[str, ...]:
    """Return the name prefixes that the weights of a torchvision model may lack: a head that only training uses."""
    segments = type(module).__module__.startswith("torchvision.models.segmentation") or hasattr(module, "_returns_out")
    return (_AUX_HEAD,) if segments and getattr(module, "aux_classifier", None) is None else ()


def _family(models: ModuleType, name: str) -> str | None:
    for family in ("", "segmentation", "detection", "video", "optical_flow", "quantization"):
        part = getattr(models, family) if family else models
        if name in models.list_models(module=part):
            return family or "classification"
    return None


def _returning_out(module: nn.Module) -> nn.Module:
    """Make a segmentation model return only its ``out``. It becomes a subclass, so every module keeps its name."""
    kind: type[Any] = type(module)

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = kind.forward(self, x)["out"]
        return out

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "_returns_out": True})
    return module
