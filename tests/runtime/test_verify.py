"""A package verifies, and fails to verify when its results have changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cpupack.runtime.accuracy import sqnr_db
from cpupack.runtime.errors import IntegrityError
from cpupack.runtime.files import GOLDEN_NAME
from cpupack.runtime.manifest import FileEntry, hash_file, read_manifest
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tasks import kinds
from cpupack.runtime.tasks.spec import TaskSpec
from cpupack.runtime.verify import same_classes, verify
from helpers.tiny_package import keep_manifest


@pytest.fixture
def with_golden(edited: Callable[..., Path], package_dir: Path) -> Callable[..., Path]:
    """Replace arrays of golden.npz, in a package whose manifest knows the new file."""

    def make(**changes: np.ndarray | None) -> Path:
        arrays = {**np.load(package_dir / GOLDEN_NAME), **changes}
        copy = edited()
        path = copy / GOLDEN_NAME
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        manifest = read_manifest(copy)
        manifest.files[GOLDEN_NAME] = FileEntry(hash_file(path), path.stat().st_size)
        keep_manifest(copy, manifest)
        return copy

    return make


def golden(package_dir: Path, key: str) -> np.ndarray:
    return np.load(package_dir / GOLDEN_NAME)[key]


def test_fresh_package_is_exact(package_dir: Path) -> None:
    found = verify(package_dir)
    assert (found.passed, found.equal, found.max_abs_diff, found.sqnr_db) == (True, True, 0.0, None)
    assert (found.files, found.samples, found.agreement) == (len(read_manifest(package_dir).files), 8, 1.0)


def test_comparison_with_fp32_is_of_the_stored_outputs(package_dir: Path) -> None:
    found = verify(package_dir)
    int8, fp32 = (golden(package_dir, key).astype(np.float64) for key in ("output", "output_fp32"))
    assert found.sqnr_fp32_db == pytest.approx(10 * np.log10((fp32**2).sum() / ((fp32 - int8) ** 2).sum()), abs=1e-9)
    assert found.agreement_fp32 == (int8.argmax(1) == fp32.argmax(1)).mean()


def test_array_package_is_exact(array_package_dir: Path) -> None:
    assert verify(array_package_dir).equal


def test_last_bit_differences_pass_and_are_reported(package_dir: Path, with_golden: Callable[..., Path]) -> None:
    output = golden(package_dir, "output")
    found = verify(with_golden(output=output * np.float32(1.001)))
    assert (found.passed, found.equal) == (True, False)
    # The noise is a thousandth of the signal: 20 log10(1001/1) is 60.0 dB.
    assert found.sqnr_db == pytest.approx(20 * np.log10(1001), abs=0.01)
    assert found.max_abs_diff == pytest.approx(np.abs(output * 0.001).max(), rel=1e-3)


@pytest.mark.parametrize("change", [lambda x: x * 1.1, lambda x: -x, np.zeros_like, lambda x: x * np.nan])
def test_other_outputs_fail(
    package_dir: Path, with_golden: Callable[..., Path], change: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = verify(with_golden(output=change(golden(package_dir, "output")).astype(np.float32)))
    assert not found.passed
    assert not found.equal


def test_changed_file_is_an_integrity_error(edited: Callable[..., Path]) -> None:
    copy = edited()
    (copy / "labels.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(IntegrityError, match=r"labels\.txt is not the file"):
        verify(copy)


def test_golden_without_its_arrays(with_golden: Callable[..., Path]) -> None:
    with pytest.raises(IntegrityError, match=r"cannot read the golden inputs.*output_fp32"):
        verify(with_golden(output_fp32=None))


def test_golden_of_another_shape(package_dir: Path, with_golden: Callable[..., Path]) -> None:
    with pytest.raises(IntegrityError, match=r"returned \(8, 4\) for golden inputs whose output is \(8, 3\)"):
        verify(with_golden(output=golden(package_dir, "output")[:, :3]))


def test_sqnr_of_known_signals() -> None:
    signal = np.array([3.0, 4.0])
    assert sqnr_db(signal, signal) == float("inf")
    assert sqnr_db(signal, signal + np.array([0.5, 0.0])) == pytest.approx(20.0)  # 25 / 0.25 is a hundredfold
    assert sqnr_db(np.zeros(2), signal) == float("-inf")
    assert sqnr_db(signal, np.array([np.nan, 0.0])) == float("-inf")


def test_of_a_mask_of_one_class_pixels_are_compared() -> None:
    """``argmax`` over its one score, or over the rows of a map, is no class."""
    fp32 = np.array([[[1.0, -1.0], [2.0, -3.0]]], np.float32)
    int8 = np.array([[[1.0, 1.0], [2.0, -2.5]]], np.float32)
    presenter = kinds.presenter(TaskSpec.of("segmentation"), kinds.Model(None))
    for shape in ((2, 2), (1, 2, 2)):
        same = same_classes(Signature.plain((3, 2, 2), shape), presenter, scores=False)
        assert same(fp32.reshape(1, *shape), int8.reshape(1, *shape)) == 0.75


def test_one_number_of_several_outputs_is_no_class() -> None:
    maps, one, row = OutputSpec("maps", (2, 2)), OutputSpec("one", (1,)), OutputSpec("row", (3,))
    values = np.arange(14, dtype=np.float32).reshape(2, 7)
    for outputs, scores, found in (((maps, one), True, None), ((maps, row), True, 1.0), ((maps, row), False, None)):
        signature = Signature(Signature.plain((3,), (1,)).inputs, outputs)
        width = signature.engine_output_shape[0]
        assert same_classes(signature, None, scores=scores)(values[:, :width], values[:, :width]) == found
