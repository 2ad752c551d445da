"""Whether a model that packs sequences answers to a sample as torch's own packing does when the sample is alone."""

from __future__ import annotations

import numpy as np
import torch

from cpupack.errors import ModelError
from cpupack.model.leaves import leaves_of
from cpupack.model.one_row import OneRow
from cpupack.model.user_code import describe_failure
from cpupack.runtime.signature import Floats, Signature

_SAME = 1e-3
"""Of the largest output: what the two FP32 outputs may differ by. As in the proof of capture."""
_HINT = (
    "after pad_packed_sequence, steps from a sample's length on are zeros up to the greatest length of its batch: pass "
    "total_length, and use the lengths (or the last states) instead of the last step or a mean over all steps"
)


def check_packed(model: OneRow, signature: Signature, batch: torch.Tensor) -> None:
    """Compare each sample of a batch with what the user's model gives for that sample alone, in FP32.

    Outputs of a sample may end at its length there, and are compared so far. Raises ModelError for a model whose answer
    depends on the greatest length of the batch.
    """
    plain = model.packing(packs=False)
    for number in range(len(batch)):
        row = batch[number : number + 1]
        with torch.no_grad():
            found = signature.split(model(row).numpy())
            try:
                alone = leaves_of(plain.call_user(model.tensors(row))).tensors
            except Exception as error:
                if "greater than 0" in str(error):  # torch takes no sequence without steps
                    continue
                raise ModelError(
                    "the model fails for a sample alone, whose packed sequence is shorter than [[input]] shape: "
                    f"{describe_failure(error)}",
                    hint=_HINT,
                ) from error
        for taken, output in zip(model.taken, signature.outputs, strict=True):
            apart = _apart(found[output.name], alone[taken.name].movedim(taken.axis, 0).numpy())
            if not apart <= _SAME:
                raise ModelError(
                    f'the output "{output.name}" of a sample depends on the greatest length of its batch: alone it is '
                    f"another one (they differ by {apart:.2g} of its largest value)",
                    hint=_HINT,
                )


def _apart(found: Floats, alone: Floats) -> float:
    """Return the largest difference, of the largest value; infinity where more than one dimension is shorter."""
    shorter = [one < two for one, two in zip(alone.shape, found.shape, strict=False)]
    if alone.ndim != found.ndim or sum(shorter) > 1 or any(np.greater(alone.shape, found.shape)):
        return float("inf")
    part = found[tuple(slice(size) for size in alone.shape)]
    return float(np.abs(part - alone).max()) / (float(np.abs(alone).max()) or 1.0)
