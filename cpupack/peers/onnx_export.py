"""The FP32 model as ONNX with a free batch dimension."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from cpupack.peers.job import Job


def export(job: Job, path: Path) -> None:
    """Write the model with torch's default exporter (torch.export, ``dynamo=True``).

    Its inputs have the names ``job.input_names``.
    """
    examples = job.examples(2)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            job.model(),
            examples,
            str(path),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in examples),
            input_names=list(job.input_names),
            output_names=[f"output_{number}" for number in range(job.output_count)],
            external_data=False,
            verbose=False,
        )
