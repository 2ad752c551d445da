"""The FP32 model as ONNX with a free batch dimension."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from cpupack.peers.job import Job

INPUT = "input"


def export(job: Job, path: Path) -> None:
    """Write the model with torch's default exporter (torch.export, ``dynamo=True``)."""
    example = torch.from_numpy(next(iter(job.calibration_batches(2))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            job.model(),
            (example,),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=["output"],
            external_data=False,
            verbose=False,
        )
