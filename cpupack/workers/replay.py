"""``python -m cpupack.workers.replay SPEC.json``: runs a saved model in a fresh process, as the wheel will.

SPEC holds ``model``, ``engine``, ``inputs`` (.npy), ``preprocess``, ``pixel_input``, ``threads`` and ``jobs``. Each
job has ``outputs`` (a .npy to write), ``rows``, ``batch_size`` and ``floats`` (normalize, even if the model takes
pixels).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.images.inputs import model_input
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.workers.steps import tell


def main(spec_path: str) -> None:
    """Run uint8 pixels ``(n, h, w, c)`` or float32 ``(n, *input_shape)``; save float32 ``(rows, *output_shape)``."""
    spec = json.loads(Path(spec_path).read_text(encoding="utf-8"))
    data = np.load(spec["inputs"], mmap_mode="r")
    preprocess = PreprocessSpec.from_dict(spec["preprocess"]) if spec["preprocess"] else None
    with InstancePool(Path(spec["model"]), spec["engine"], spec["threads"], instances=1) as pool:
        for job in spec["jobs"]:
            outputs = []
            for start in range(0, job["rows"], job["batch_size"]):
                tell(spec_path, start, job["rows"], "samples")
                chunk = np.array(data[start : min(start + job["batch_size"], job["rows"])])
                ready = model_input(chunk, preprocess, pixel_input=spec["pixel_input"] and not job["floats"])
                outputs.append(pool.run(torch.from_numpy(ready)).numpy())
            np.save(job["outputs"], np.concatenate(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
