"""Texts of any length for other engines: which batches they get, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cpupack.peers import lengths
from cpupack.peers.job import Data, Job
from cpupack.peers.pools import ThreadedPool
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.tensor_spec import TensorSpec

LONGEST = 6
ENDS = [5, 2, 3, 6, 1, 4]
Array = npt.NDArray[Any]


def job(directory: Path, **changes: Any) -> Job:
    """Six samples of ids and mask, whose lengths are ENDS, two in a batch."""
    places = np.arange(LONGEST)
    mask = places < np.array(ENDS)[:, None]
    ids = np.where(mask, 10 * np.arange(1, 7)[:, None] + places, 0)
    np.save(directory / "rows.npy", np.concatenate([ids, mask], axis=1).astype(np.float32))
    signature = Signature(
        inputs=(
            TensorSpec("ids", (LONGEST,), "int64", pad=0.0),
            TensorSpec("mask", (LONGEST,), "int64", pad=0.0),
        ),
        outputs=(OutputSpec("sums", (1,)),),
    )
    fields: dict[str, Any] = {
        "engine": "eager",
        "directory": str(directory),
        "recipe_path": "recipe.toml",
        "recipe_text": "",
        "weights": "weights.pt",
        "input_shape": (2 * LONGEST,),
        "calibration": None,
        "calibration_batch": 2,
        "evaluation": Data(str(directory / "rows.npy"), len(ENDS), None),
        "reference": "reference.npy",
        "package": {"source": "src", "import_name": "tiny"},
        "dynamic": False,
        "cores": 2,
        "activation_bits": 8,
        "batch_size": 2,
        "signature": signature.to_dicts(),
    }
    return Job(**(fields | changes))


def pool_of(call: Callable[[tuple[Array, ...]], Array]) -> Callable[[Job], ThreadedPool]:
    return lambda told: ThreadedPool(told, lambda: call, told.prepared)


def sums(arguments: tuple[Array, ...]) -> Array:
    return np.asarray(arguments[0].sum(axis=1, keepdims=True), np.float32)


def fixed(arguments: tuple[Array, ...]) -> Array:
    """A model that has the length of its example inside."""
    return sums(tuple(each.reshape(-1, LONGEST) for each in arguments))


def wrong(arguments: tuple[Array, ...]) -> Array:
    return sums(arguments) * (1.0 if arguments[0].shape[1] == LONGEST else -3.0)


def test_a_length_ends_with_the_last_position_that_is_no_padding(tmp_path: Path) -> None:
    told = job(tmp_path)
    arguments = told.arguments(told.evaluation.load(slice(None)))
    assert list(lengths.lengths(told, arguments)) == ENDS
    assert [each.shape for each in lengths.cut(told, tuple(each[1:3] for each in arguments))] == [(2, 3), (2, 3)]


def test_an_engine_that_takes_shorter_batches_gets_them_in_order_of_length(tmp_path: Path) -> None:
    told = job(tmp_path)
    assert lengths.choose(told, pool_of(sums)) == ", batches padded to their longest sample"
    served = [each for each in lengths.served(told) if isinstance(each, tuple)]
    sizes = [each[0].shape[1] for each in served]
    assert (min(sizes), max(sizes)) == (1, LONGEST)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("model", "said"), [(fixed, "a shorter one fails (ValueError)"), (wrong, "a shorter one gives another result")]
)
def test_another_engine_gets_whole_batches_and_that_is_said(
    tmp_path: Path, model: Callable[[tuple[Array, ...]], Array], said: str
) -> None:
    told = job(tmp_path)
    assert lengths.choose(told, pool_of(model)) == f", batches of full length: {said}"
    assert all(isinstance(each, np.ndarray) and each.shape == (2, 2 * LONGEST) for each in lengths.served(told))


def test_the_package_itself_gets_whole_batches(tmp_path: Path) -> None:
    assert all(isinstance(each, np.ndarray) for each in lengths.served(job(tmp_path, engine="cpupack")))


def test_samples_without_a_length_stay_in_their_order(tmp_path: Path) -> None:
    told = job(tmp_path, signature=None)
    assert lengths.choose(told, pool_of(sums)) == ""
    assert [each.tolist() for each in lengths.served(told)] == [each.tolist() for each in told.stored_batches()]
