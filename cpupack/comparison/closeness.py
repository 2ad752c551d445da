"""How close an engine's outputs are to those of the FP32 model, for each output by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cpupack.peers.process import EngineFailedError
from cpupack.runtime.accuracy import agreement, sqnr_db
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks.spec import CLASSIFICATION, RAW

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Closeness:
    """``by_output`` has the SQNR of each output in dB, None for classes that an argmax chose.

    ``agreement`` is the share of samples with the same class, None where no output chooses classes.
    """

    by_output: Mapping[str, float | None]
    agreement: float | None

    @property
    def sqnr_db(self) -> float | None:
        """The SQNR of the worst output, None where each is a class."""
        return min((value for value in self.by_output.values() if value is not None), default=None)


def closeness(signature: Signature, reference: Array, actual: Sequence[Array], kind: str = CLASSIFICATION) -> Closeness:
    """Compare what an engine gave, one array for each output in their order, with the FP32 model's rows.

    Both are as the wheel's caller gets them: with the softmax or argmax of [[output]]. ``kind`` is that of the task: of
    some, such as embeddings, the outputs are no scores of classes. Raises EngineFailedError for another shape.
    """
    expected = signature.unpack(reference)
    for (name, wanted), found in zip(expected.items(), actual, strict=True):
        if found.shape != wanted.shape:
            raise EngineFailedError(f"its {name} has shape {found.shape}, that of the FP32 model {wanted.shape}")
    pairs = [
        (spec, wanted, found) for spec, wanted, found in zip(signature.outputs, expected.values(), actual, strict=True)
    ]
    if any(spec.rows_of is not None for spec in signature.outputs):
        row = np.concatenate([each.reshape(len(reference), -1) for each in actual], axis=1)
        one, other = signature.compared(reference, row)  # no function is applied to outputs of proposals
        pairs = [(spec, one[spec.name], other[spec.name]) for spec in signature.outputs]
    by_output = {spec.name: None if spec.apply == "argmax" else sqnr_db(wanted, found) for spec, wanted, found in pairs}
    return Closeness(by_output, _agreement(signature, pairs, scores=kind in {CLASSIFICATION, RAW}))


def _agreement(signature: Signature, pairs: Sequence[tuple[OutputSpec, Array, Array]], *, scores: bool) -> float | None:
    """Return the agreement of the only output that chooses classes. ``scores`` says whether one may without argmax."""
    chosen = [(wanted, found) for spec, wanted, found in pairs if spec.apply == "argmax"]
    if len(chosen) == 1:
        return float(np.mean(chosen[0][0] == chosen[0][1]))
    own = signature.class_scores if scores and not chosen else None
    if own is None or own.size < 2:
        return None
    return next(agreement(wanted, found) for spec, wanted, found in pairs if spec is own)
