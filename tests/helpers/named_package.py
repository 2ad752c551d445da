"""A real package whose model has several inputs and outputs: whole numbers, floats, and one that may be left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from cpupack.runtime.files import GOLDEN_NAME, MODEL_NAME
from cpupack.runtime.manifest import FileEntry, hash_file, read_manifest
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec
from helpers.tiny_package import keep_manifest, write_package

SIGNATURE = Signature(
    (
        TensorSpec("ids", (3,), "int64", vocabulary=100),
        TensorSpec("features", (2, 2)),
        TensorSpec("gate", (1,), "bool", default=1.0),
    ),
    (OutputSpec("pair", (2, 1)), OutputSpec("best", (3,), "argmax", 1)),
)


def answers(ids: Any, features: Any, gate: Any = None) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the model answers: sums of rows of ``features`` by the gate, and the place of the largest id."""
    features = np.asarray(features, np.float32)
    open_ = np.ones((len(features), 1), np.float32) if gate is None else np.asarray(gate, np.float32)
    pair = features.sum(axis=2) * open_
    return {"pair": pair[..., None], "best": np.asarray(ids).argmax(axis=1).astype(np.int64)}


def write_named_package(directory: Path) -> Path:
    """Write the importable package ``directory`` and return it."""
    import torch

    class Named(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            ids, features, gate = rows[:, :3], rows[:, 3:7].reshape(-1, 2, 2), rows[:, 7:]
            return torch.cat([features.sum(2) * gate, ids], 1)

    rows = np.array([[5, 9, 1, 0.5, 1.5, -2, 4, 1], [50, 20, 30, 1, 2, 3, 4, 0]], np.float32)
    return write_rows_package(directory, Named(), rows, SIGNATURE)


def write_rows_package(directory: Path, module: Any, rows: np.ndarray[Any, Any], signature: Signature) -> Path:
    """Write a package whose model is ``module``, from rows to rows as ``signature`` has them. ``rows`` are golden."""
    import torch

    write_package(directory)
    with torch.no_grad():
        traced = torch.jit.trace(module.eval(), torch.from_numpy(rows))
        torch.jit.save(torch.jit.freeze(traced.eval()), str(directory / MODEL_NAME))
        output = traced(torch.from_numpy(rows)).numpy()
    np.savez(directory / GOLDEN_NAME, input=rows, output=output, output_fp32=output)
    (directory / "labels.txt").unlink()
    manifest = read_manifest(directory)
    files = {
        name: FileEntry(hash_file(directory / name), (directory / name).stat().st_size)
        for name in manifest.files
        if name != "labels.txt"
    }
    shapes = {"input_shape": list(signature.engine_input_shape), "output_shape": list(signature.engine_output_shape)}
    changed = dataclasses.replace(
        manifest,
        files=files,
        model={**manifest.model, **shapes},
        preprocess=None,
        labels=None,
        inputs=[each.to_dict() for each in signature.inputs],
        outputs=[each.to_dict() for each in signature.outputs],
        task={"kind": "raw"},
    )
    keep_manifest(directory, changed)
    return directory
