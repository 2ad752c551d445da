"""Collects what a build reads: files, versions, the loaded weights, the captured graph and the samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

from cpupack.artifacts import CapturedModel, FloatModel, FusedModel, Samples
from cpupack.lock.code import imported, package_versions
from cpupack.lock.model import Inputs
from cpupack.lock.names import written
from cpupack.recipe import LoadedRecipe
from cpupack.recipe.files import named_files, picture_of, place_of, target_of
from cpupack.recipe.metrics import TARGET_FILES
from cpupack.runtime.host.cpu import machine
from cpupack.runtime.manifest import hash_file
from cpupack.runtime.tasks.spec import MASKS
from cpupack.wheel.tools import versions


def inputs_of(
    loaded: LoadedRecipe,
    model: FloatModel,
    graph_sha256: str,
    fused: FusedModel,
    calibration: Samples | None,
    evaluation: Samples,
) -> Inputs:
    """Return what a build read. ``graph_sha256`` is that of the captured graph (``graph_hash``).

    Called after the model and its data were loaded: what the user's code imports is known only then.
    """
    model_hashes = {"state": _state_hash(model.module), "graph": graph_sha256}
    if model.weights_sha256 is not None:
        model_hashes["weights"] = model.weights_sha256
    data = {"evaluation": data_hash(evaluation)}
    if calibration is not None:
        data["calibration"] = data_hash(calibration)
    return Inputs(
        recipe=recipe_hashes(loaded),
        versions={**package_versions(loaded), **versions()},
        host=host(),
        files=dict(sorted(_files(loaded, calibration, evaluation))),
        model=model_hashes,
        data=data,
        fused=[list(chain) for chain in fused.chains],
    )


def recipe_hashes(loaded: LoadedRecipe) -> dict[str, str]:
    """Return the SHA-256 of each table's values, and of the text as ``text``."""
    tables = loaded.recipe.model_dump(mode="json", by_alias=True)
    found = {
        name: _sha256(json.dumps(table, sort_keys=True))
        for name, table in tables.items()
        if isinstance(table, dict | list)
    }
    return {**found, "text": _sha256(loaded.text)}


def host() -> dict[str, str | int]:
    """Return what the last bits of torch's FP32 outputs depend on: the kernels for this CPU, and the threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"machine": machine(), "fp32_kernels": capability, "threads": torch.get_num_threads()}


def graph_hash(captured: CapturedModel) -> str:
    """Return the SHA-256 of a captured graph with its constants; of a model that is no graph, of its modules."""
    module = captured.module
    if not isinstance(module, fx.GraphModule):
        return _sha256(f"{captured.style}\n{module}\n{_state_hash(module)}")
    lines = (
        f"{node.op} {node.name} {target_name(node.target)} {node.args} {node.kwargs}"
        + (f" {module.get_submodule(str(node.target))}" if node.op == "call_module" else "")
        for node in module.graph.nodes
    )
    return _sha256("\n".join([*lines, _state_hash(module)]))


def target_name(target: Any) -> str:
    """Return the name of what a node of a graph calls, the same in every process."""
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', None) or target}"


def _state_hash(module: torch.nn.Module) -> str:
    """Return the SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    tensors: Iterable[tuple[str, torch.Tensor]] = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda each: each[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # A clone has strides of its own: of one value they may be 0, and such has no view as bytes.
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().reshape(-1)
        plain = plain.clone(memory_format=torch.contiguous_format)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def data_hash(samples: Samples) -> str:
    """Return the SHA-256 of samples in memory: their values, labels and targets."""
    digest = hashlib.sha256(f"{samples.data.dtype} {samples.data.shape}\n".encode())
    for each in (samples.data, samples.labels, samples.targets):
        if each is not None:
            digest.update(each.tobytes())
    return digest.hexdigest()


def _files(loaded: LoadedRecipe, calibration: Samples | None, evaluation: Samples) -> Iterator[tuple[str, str]]:
    """Yield (name, SHA-256) of every file that the build read, named as the recipe does."""
    directory = loaded.path.parent
    named = {each.name for each in named_files(loaded.recipe, directory)}
    for name in {*named, *_images(calibration), *_images(evaluation), *_targets(loaded, evaluation)}:
        path = place_of(name, directory)
        if path is not None and path.is_file():
            yield written(name), hash_file(path)
    for name, path in imported(loaded).items():
        if path.is_file():
            yield written(name), hash_file(path)


def _images(samples: Samples | None) -> Iterator[str]:
    kind, _, directory = ("" if samples is None else samples.origin).partition(":")
    if samples is not None and kind == "images":
        yield from (f"{directory.rstrip('/')}/{name}" for name in (*samples.names, *samples.skipped))


def _targets(loaded: LoadedRecipe, evaluation: Samples) -> Iterator[str]:
    """Yield the masks, maps or pictures of the images that were read, of targets that are a folder of them."""
    kind, _, directory = (loaded.recipe.evaluation.targets or "").partition(":")
    if kind in TARGET_FILES:
        folders = [directory]
        if loaded.recipe.task is not None and loaded.recipe.task.kind == MASKS:  # a folder for each class
            root = loaded.resolve(directory)
            folders = [f"{directory.rstrip('/')}/{each.name}" for each in sorted(root.iterdir()) if each.is_dir()]
        yield from (target_of(kind, folder, name) for folder in folders for name in evaluation.names)
    elif kind == "images":
        root = loaded.resolve(directory)
        found = (picture_of(root, name) for name in evaluation.names)
        yield from (f"{directory.rstrip('/')}/{each.relative_to(root).as_posix()}" for each in found if each)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
