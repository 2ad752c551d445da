"""The FP32 model as ONNX with a free batch dimension."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from cpupack.peers.job import Job

LOGGER = logging.getLogger(__name__)


def export(job: Job, path: Path) -> None:
    """Write the model with torch's default exporter (torch.export, ``dynamo=True``).

    Its inputs have the names ``job.input_names``. Where samples differ in length, that stays open if torch can do it.
    """
    if job.open_inputs:
        try:
            _export(job, path, with_length=True)
        except Exception as error:  # noqa: BLE001 - torch's exporter raises many classes; the model has a length then
            LOGGER.warning("the length of samples is fixed in the model for ONNX Runtime: %s", error)
        else:
            return
    _export(job, path, with_length=False)


def _export(job: Job, path: Path, *, with_length: bool) -> None:
    examples = job.examples(2)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    opened = job.open_inputs if with_length else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            job.model(),
            examples,
            str(path),
            dynamo=True,
            dynamic_shapes=tuple({0: batch, 1: length} if n in opened else {0: batch} for n in range(len(examples))),
            input_names=list(job.input_names),
            output_names=[f"output_{number}" for number in range(job.output_count)],
            external_data=False,
            verbose=False,
        )
