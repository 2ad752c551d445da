"""Builds modules from torchvision, timm, and factories in users' own files and packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from cpupack.errors import CpupackError, ModelError
from cpupack.model.accept import accepted
from cpupack.model.detectors import as_network
from cpupack.model.directories import sentence_module, transformers_module
from cpupack.model.saved import load_exported, load_torchscript
from cpupack.model.user_code import describe_failure
from cpupack.model.vision import import_torchvision, repair_torchvision_imports, torchvision_builder
from cpupack.progress import Progress
from cpupack.recipe import LoadedRecipe


def known_labels(name: str) -> tuple[str, ...]:
    """Return the class names of a list in ``KNOWN_LABELS`` as torchvision's weights have them.

    ``imagenet`` has 1000, ``coco`` 91 with the background first, ``voc`` 21 with the background first.
    """
    import_torchvision()
    models = importlib.import_module("torchvision.models")
    weights = {
        "imagenet": lambda: models.ResNet18_Weights.IMAGENET1K_V1,
        "coco": lambda: models.detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
        "voc": lambda: models.segmentation.LRASPP_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
    }
    return tuple(weights[name]().meta["categories"])


def build_module(loaded: LoadedRecipe, progress: Progress) -> torch.nn.Module:
    """Build the module that ``[model] source`` names, without downloading weights.

    Raises ModelError when the source does not exist, its code fails, or it does not return an FP32 module.
    """
    spec = loaded.recipe.model
    kind, _, rest = spec.source.partition(":")
    match kind:
        case "export" | "torchscript":
            return accepted(_saved(kind, rest, loaded), spec.source, progress)
        case "transformers":
            return accepted(transformers_module(loaded, progress), spec.source, progress)
        case "sentence-transformers":
            return accepted(sentence_module(loaded, progress), spec.source, progress)
        case "torchvision":
            make = torchvision_builder(rest, spec.weights)
        case "timm":
            make = timm_builder(rest)
        case "python":
            make = load_factory(rest, loaded, key="[model] source")
        case _:
            raise ModelError(
                f"[model] source: {spec.source!r} is not one of torchvision:NAME, timm:NAME, python:FILE.py:factory, "
                "python:pkg.mod:factory, export:FILE.pt2, torchscript:FILE.pt, transformers:DIR, "
                "sentence-transformers:DIR"
            )
    if isinstance(make, torch.nn.Module):  # the recipe names a module instead of a function that makes one
        if spec.kwargs:
            raise ModelError(f"[model] kwargs: {spec.source} is a module, not a factory, and takes no arguments")
        return as_network(accepted(make, spec.source, progress), spec.source)
    made = accepted(_with_defaults_kept(make, spec.kwargs, f"[model] {spec.source}"), spec.source, progress)
    return as_network(made, spec.source)


def _saved(kind: str, name: str, loaded: LoadedRecipe) -> torch.nn.Module:
    spec, path = loaded.recipe.model, loaded.resolve(name)
    if kind == "export":
        return load_exported(path, spec.source)
    return load_torchscript(path, spec.source, loaded.recipe.input_specs)


def _with_defaults_kept(make: Callable[..., Any], kwargs: dict[str, Any], what: str) -> Any:
    """Call a factory and restore torch's default dtype and device after it, which the factory may change."""
    dtype, grad, device = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()
    try:
        return call_factory(make, kwargs, what)
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def timm_builder(name: str) -> Callable[..., Any]:
    """Return the builder of a timm model, without weights unless it is called with ``pretrained=True``.

    Raises ModelError when timm is not installed or has no such model.
    """
    import_torchvision()  # timm imports it
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError(
            "timm is not installed, and the recipe needs it", hint='pip install "cpupack[timm]"'
        ) from error
    if name.partition(".")[0] not in timm.list_models():
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ModelError(
            f"[model] source: timm has no model {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else None,
        )
    return lambda **kwargs: timm.create_model(name, **kwargs)


def load_factory(spec: str, loaded: LoadedRecipe, *, key: str) -> Callable[..., Any]:
    """Import ``FILE.py:factory`` (path relative to the recipe) or ``pkg.mod:factory`` and return the factory.

    ``key`` names the recipe key in errors. Raises ModelError when there is no such file, module or function.
    """
    repair_torchvision_imports()
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"{key}: python:{spec} must be python:FILE.py:factory or python:pkg.mod:factory")
    module = (
        _import_file(loaded.resolve(place), loaded.path, key) if place.endswith(".py") else _import_name(place, key)
    )
    factory = getattr(module, attribute, None)
    if not callable(factory):
        near = get_close_matches(attribute, [name for name in vars(module) if callable(vars(module)[name])], n=1)
        raise ModelError(
            f"{key}: {place} has no function or class {attribute!r}",
            hint=f"did you mean {near[0]}?" if near else None,
        )
    found: Callable[..., Any] = factory
    return found


def call_factory(factory: Callable[..., Any], kwargs: dict[str, Any], what: str) -> Any:
    """Call a user's factory. Any exception becomes a ModelError that names its file and line."""
    try:
        return factory(**kwargs)
    except CpupackError:
        raise
    except (Exception, SystemExit) as error:  # a training script may call sys.exit(), which must not end the build
        raise ModelError(f"{what} failed: {describe_failure(error)}", hint=_factory_hint(error)) from error


def _factory_hint(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, TypeError) and "argument" in text:
        return "set the arguments of the factory with [model] kwargs = { name = value }"
    if "CUDA" in text or "NVIDIA" in text or "deserialize object on" in text:
        return 'a build runs on the CPU: leave out .cuda() and .to("cuda"), load with map_location="cpu"'
    return None


def _import_file(path: Path, recipe: Path, key: str) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"{key}: {path} does not exist", hint="paths are relative to the recipe")
    name = f"_cpupack_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{key}: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up the user's module here
    _import_beside(path.parent, recipe)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{key}: importing {path} failed: {describe_failure(error)}") from error
    return module


_beside: dict[Path, Path] = {}
"""Directories of users' files that were put on the path here, the last one first, with their recipe."""


def _import_beside(directory: Path, recipe: Path) -> None:
    """Let a file of ``directory`` import the others there; installed packages come first.

    A file of the same name beside another model (``utils.py``, ``network.py``), which may be loaded already, is not
    taken for it. Other directories of the same recipe stay on the path, behind this one.
    """
    if str(directory) in sys.path and directory not in _beside:
        return  # the user's own choice
    before = list(_beside)
    others = {each for each in before if each != directory}
    found = [name for name, module in sys.modules.items() if _root(module) in others]
    kept = {each: of for each, of in _beside.items() if of == recipe and each != directory}
    _beside.clear()
    _beside.update({directory: recipe, **kept})
    sys.path[:] = [each for each in sys.path if Path(each) not in before] + [str(each) for each in _beside]
    for name in found:
        if (directory / f"{name}.py").is_file() or (directory / name).is_dir():
            for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[each]


def _root(module: ModuleType) -> Path | None:
    """Return the directory on the path from which a module that is not in a package was imported."""
    spec = getattr(module, "__spec__", None)
    if not isinstance(spec, ModuleSpec) or "." in spec.name:
        return None
    # A directory without __init__.py has no file.
    place = next(iter(spec.submodule_search_locations or ()), spec.origin)
    return None if place is None else Path(place).parent


def _import_name(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{key}: no module named {error.name!r}",
            hint=f"install it in cpupack's environment, or name a file: python:{name.replace('.', '/')}.py:factory",
        ) from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{key}: importing {name} failed: {describe_failure(error)}") from error
