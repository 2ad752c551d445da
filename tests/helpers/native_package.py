"""A small package whose model is one program of the native kernels: it runs without torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from cpupack.runtime.engine import library
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.files import GOLDEN_NAME, MODEL_NAME
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize
from cpupack.runtime.manifest import FileEntry, hash_file, read_manifest
from cpupack.stages import script
from helpers.lowered import lowered
from helpers.tiny_package import INPUT_SHAPE, PREPROCESS, TinyNet, keep_manifest, write_package


def write_native_package(directory: Path) -> Path:
    """Write the importable package ``directory``, which takes images, and return it."""
    import torch

    write_package(directory)
    torch.manual_seed(0)
    _, _, model = lowered(TinyNet(), INPUT_SHAPE)
    script.save(model, torch.zeros(1, *INPUT_SHAPE), directory / MODEL_NAME)
    golden = dict(np.load(directory / GOLDEN_NAME))
    with InstancePool(directory / MODEL_NAME, library.ENGINE, threads=1, instances=1) as pool:
        floats = np.ascontiguousarray(normalize(golden["input"], PreprocessSpec.from_dict(PREPROCESS)))
        golden["output"] = pool.run(floats)
    np.savez(directory / GOLDEN_NAME, **golden)
    manifest = read_manifest(directory)
    files = {name: FileEntry(hash_file(directory / name), (directory / name).stat().st_size) for name in manifest.files}
    target = {**manifest.target, "engine": library.ENGINE}
    changed = dataclasses.replace(manifest, target=target, files=files)
    keep_manifest(directory, changed)
    return directory
