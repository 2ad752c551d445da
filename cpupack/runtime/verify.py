"""Checks the package against its build: every file's hash, then the golden inputs' outputs against the stored ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .accuracy import agreement
from .arrays import array_in
from .errors import IntegrityError
from .files import GOLDEN_NAME, UNREADABLE
from .golden import every, thinned
from .manifest import check_files, extra_files, read_manifest
from .record import check_record
from .runner import Runner
from .signature import Signature, worst_sqnr_db
from .tasks.base import Presenter
from .tasks.segmentation import SegmentationPresenter
from .tasks.spec import CLASSIFICATION, RAW

COMPARES_CLASSES = ("classification", "segmentation")
"""The kinds of tasks whose outputs choose a class."""
Array = npt.NDArray[Any]
MIN_SQNR_DB = 30.0
"""Another instruction set may round the last bit differently; a wrong engine falls far below this."""


@dataclass(frozen=True)
class Verification:
    """The outputs of ``samples`` golden inputs, compared with those that the build stored.

    ``equal`` means equal bits. ``sqnr_db`` is 10 log10(sum(expected^2) / sum((expected - got)^2)), that of the worst of
    several outputs, None when equal. ``agreement`` is the share of inputs (of pixels, for maps) with the same class, of
    several outputs that with scores of classes; None for outputs that are no classes. ``*_fp32`` compares with the FP32
    model's outputs. Of large outputs only a part is stored and compared.
    """

    passed: bool
    files: int
    samples: int
    equal: bool
    max_abs_diff: float
    sqnr_db: float | None
    min_sqnr_db: float
    agreement: float | None
    sqnr_fp32_db: float | None
    agreement_fp32: float | None


def verify(package_dir: Path) -> Verification:
    """Check all hashes, RECORD and what else lies in the package; replay ``golden.npz`` and compare.

    Raises IntegrityError when a file is not the one built, HostError when this host cannot run the model.
    """
    manifest = read_manifest(package_dir)
    check_files(package_dir, manifest)
    if extra := extra_files(package_dir, manifest):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise IntegrityError(f"{package_dir / extra[0]}{more}: not part of what was built; delete it or reinstall")
    check_record(package_dir, manifest)
    golden = _read_golden(package_dir / GOLDEN_NAME)
    # One batch, as the build ran them: dynamic quantization takes its ranges from the whole batch.
    with Runner(package_dir, instances=1, batch_size=max(1, len(golden["input"])), check=False) as runner:
        shape, signature = runner.signature.engine_output_shape, runner.signature
        got = thinned(runner.replay(golden["input"]), shape)
        presenter, kind = runner.answers.presenter, runner.answers.spec.kind
    expected, fp32 = golden["output"], golden["output_fp32"]
    if got.shape != expected.shape:
        raise IntegrityError(f"the model returned {got.shape} for golden inputs whose output is {expected.shape}")
    equal = bool(np.array_equal(got, expected))
    # A row of several outputs that was thinned cannot be split into them.
    compared = Signature.plain((1,), got.shape[1:]) if signature.gives_rows and every(shape) > 1 else signature
    sqnr = _sqnr(compared, expected, got)
    same = same_classes(compared, presenter, scores=kind in {CLASSIFICATION, RAW} and compared is signature)
    return Verification(
        passed=equal or (sqnr is not None and sqnr >= MIN_SQNR_DB),
        files=len(manifest.files),
        samples=len(got),
        equal=equal,
        max_abs_diff=float(np.abs(got - expected).max()),
        sqnr_db=sqnr,
        min_sqnr_db=MIN_SQNR_DB,
        agreement=same(expected, got),
        sqnr_fp32_db=_sqnr(compared, fp32, got),
        agreement_fp32=same(fp32, got),
    )


def same_classes(
    signature: Signature, presenter: Presenter | None, *, scores: bool
) -> Callable[[Array, Array], float | None]:
    """Return what gives the share of inputs with the same class, of pixels for a segmentation; None without classes.

    ``scores`` says whether the only row of several values holds scores of classes.
    """
    if isinstance(presenter, SegmentationPresenter):
        maps = presenter

        def classes(values: Array) -> Array:
            (found,) = signature.unpack(values).values()
            return np.stack([maps.classes(each) for each in found])

        return lambda reference, actual: float(np.mean(classes(reference) == classes(actual)))
    own = signature.class_scores if scores else None
    if own is None or own.size < 2:
        return lambda reference, actual: None
    return lambda reference, actual: agreement(*(signature.split(each)[own.name] for each in (reference, actual)))


def _sqnr(signature: Signature, reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float | None:
    """Return the SQNR in dB of the worst output, None where there is no noise, because JSON has no infinity."""
    found = worst_sqnr_db(signature, reference, actual)
    return None if found == float("inf") else found


def _read_golden(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: array_in(archive, name) for name in ("input", "output", "output_fp32")}
    except UNREADABLE as error:
        raise IntegrityError(f"cannot read the golden inputs {path}: {error}") from error
