"""Streams: sequences that are fed chunk by chunk, each with a state of its own."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cpupack.runtime.errors import InputError, IntegrityError, RunnerError
from cpupack.runtime.manifest import read_manifest
from cpupack.runtime.open_inputs import OpenInput
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.runtime.runner import Runner
from cpupack.runtime.serve.model import ServedModel
from cpupack.runtime.serve.protocol import read_request
from cpupack.runtime.signature import OutputSpec, Signature
from cpupack.runtime.stream import Stream
from cpupack.runtime.tensor_spec import TensorSpec
from helpers.named_package import write_rows_package
from helpers.once import once
from helpers.tiny_package import keep_manifest

SIGNATURE = Signature(
    (
        TensorSpec("total", (2,), default=0.0, state="next"),
        TensorSpec("x", (2,)),
        TensorSpec("gain", (1,), default=1.0),
    ),
    (OutputSpec("sums", (2,)), OutputSpec("next", (2,))),
)


class Sums(torch.nn.Module):
    """Rows of a total, two values and a gain, to the total of all values so far, twice."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        total = rows[:, :2] + rows[:, 2:4] * rows[:, 4:]
        return torch.cat([total, total], 1)


def write(root: Path) -> None:
    rows = np.array([[0, 0, 1, 2, 1], [5, 6, 1, 2, 3]], np.float32)
    write_rows_package(root / "tiny_int8", Sums(), rows, SIGNATURE)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "stream", write) / "tiny_int8"


@pytest.fixture(scope="module")
def runner(package: Path) -> Iterator[Runner]:
    with Runner(package, threads=1, instances=2) as runner:
        yield runner


def chunk(*values: float) -> np.ndarray[Any, Any]:
    return np.array([[value, -value] for value in values], np.float32)


def test_a_stream_carries_the_state_and_answers_without_it(runner: Runner) -> None:
    stream = runner.stream()
    assert stream.state == {}
    assert np.array_equal(stream(chunk(1)), chunk(1))
    assert np.array_equal(stream(x=chunk(2)), chunk(3))
    assert np.array_equal(stream({"x": chunk(4), "gain": [[2.0]]}), chunk(11))
    assert np.array_equal(stream(chunk(1), np.array([[0.0]], np.float32)), chunk(11))
    assert np.array_equal(stream.state["total"], chunk(11))


def test_a_stream_begins_anew_after_reset_and_goes_on_from_a_state(runner: Runner) -> None:
    stream = runner.stream()
    stream(chunk(1, 2))
    kept = stream.state
    stream(chunk(5, 5))
    assert np.array_equal(kept["total"], chunk(1, 2))  # a copy
    again = runner.stream(state=kept)
    assert np.array_equal(again(chunk(1, 1)), chunk(2, 3))
    stream.reset()
    assert np.array_equal(stream(chunk(7)), chunk(7))  # and with another number of sequences


def test_a_call_of_the_runner_takes_and_gives_the_state_itself(runner: Runner) -> None:
    found = runner(x=chunk(1), total=chunk(10))
    assert np.array_equal(found["next"], chunk(11))
    assert np.array_equal(runner(x=chunk(1))["sums"], chunk(1))  # it begins with zeros


def test_tensors_come_back_as_tensors(runner: Runner) -> None:
    found = runner.stream()(torch.from_numpy(chunk(1)))
    assert isinstance(found, torch.Tensor)


def test_streams_in_threads_do_not_share_a_state(runner: Runner) -> None:
    def total_of(number: int) -> np.ndarray[Any, Any]:
        stream = runner.stream()
        return [stream(chunk(number)) for _ in range(40)][-1]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(total_of, range(8)))
    assert [each[0, 0] for each in found] == [40.0 * number for number in range(8)]


def test_a_chunk_that_is_refused_leaves_the_state(runner: Runner) -> None:
    stream = runner.stream()
    stream(chunk(1))
    for bad, match in (
        ({"x": chunk(1, 2)}, "got 2 sequences, and the chunks before had 1; reset"),
        ({"x": np.zeros((1, 3), np.float32)}, r'"x": got float32 \(1, 3\)'),
        ({"x": np.full((1, 2), np.nan, np.float32)}, "sample 0 has nan"),
        ({"y": chunk(1)}, 'no input "y"'),
        ({"x": chunk(1), "total": chunk(1)}, 'keeps the state "total" itself'),
        ({"gain": [[1.0]]}, '"x" is missing'),
    ):
        with pytest.raises(InputError, match=match):
            stream(**bad)
    with pytest.raises(InputError, match="got 3 inputs; a chunk of this stream has x, gain"):
        stream(chunk(1), [[1.0]], chunk(1))
    assert np.array_equal(stream(chunk(1)), chunk(2))


def test_a_chunk_that_ruins_the_state_is_an_error_and_the_stream_goes_on(runner: Runner) -> None:
    """Each later chunk was refused for a state that nobody had given."""
    stream = runner.stream()
    stream(chunk(1, 2))
    large = chunk(1, 1e30)
    stream(large)
    with pytest.raises(RunnerError, match='the state "total" of sequence 1 is not finite or above'):
        stream(large)
    assert np.array_equal(stream.state["total"][0], [2, -2])
    assert np.array_equal(stream(chunk(3, -1))[0], [5, -5])


def test_a_chunk_without_the_batch_is_told_its_shape(runner: Runner) -> None:
    """It was taken for as many sequences as it has values."""
    stream = runner.stream()
    stream(chunk(1))
    with pytest.raises(
        InputError, match=r'"x": got float32 \(2,\); expected float32 \(n, 2\); add the batch dimension'
    ):
        stream(chunk(1)[0])


def test_a_state_that_does_not_fit_is_refused(runner: Runner) -> None:
    for state, match in (
        ({"sum": chunk(1)}, 'no state "sum"; it has total float32'),
        ({"total": np.zeros((1, 3), np.float32)}, r'"total": got float32 \(1, 3\)'),
        ({"total": np.zeros((1, 2))}, '"total": got float64'),
        ([chunk(1)], "state is a list"),
    ):
        with pytest.raises(InputError, match=match):
            runner.stream(state=state)  # type: ignore[arg-type]  # what a caller may hand in


def test_a_stream_is_neither_pickled_nor_copied(runner: Runner) -> None:
    stream = runner.stream()
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(RunnerError, match=r"stream\.state"):
            call(stream)


def test_a_model_without_a_state_has_no_streams(array_package_dir: Path) -> None:
    with Runner(array_package_dir, threads=1, instances=1) as plain, pytest.raises(InputError, match="keeps no state"):
        plain.stream()


def test_a_state_without_its_next_value_is_damage(package: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(package, tmp_path / "tiny_int8"))
    manifest = read_manifest(damaged)
    inputs = [{**each, "state": "nothing"} if each["name"] == "total" else each for each in manifest.inputs]
    keep_manifest(damaged, dataclasses.replace(manifest, inputs=inputs))
    told = 'the state "total" in the manifest is damaged'
    with Runner(damaged, threads=1, instances=1) as runner, pytest.raises(IntegrityError, match=told):
        runner.stream()


def test_chunks_of_any_length_have_outputs_and_states_of_their_own_length() -> None:
    """Of a chunk longer than the typical one, a part of the outputs was taken for the next state, without a word."""
    sizes = OpenSizes(
        (1, 1), (1, 9), (1, 1), (((0, 0, 1, 0),), ((1, 0, 0, 0),)), ("time",), (),
        inputs=(OpenInput((1,), ("",)), OpenInput((4,), ("time",))),
    )  # fmt: skip
    signature = Signature(
        (TensorSpec("total", (1,), default=0.0, state="next"), TensorSpec("x", (4,), names=("time",))),
        (OutputSpec("doubled", (4,)), OutputSpec("next", (1,))),
        sizes,
    )

    def run(rows: np.ndarray) -> np.ndarray:
        total, x = rows[:, :1], rows[:, 1:-1]
        return np.concatenate([2 * x, total + x.sum(1, keepdims=True)], 1)

    stream, total = Stream(signature, run), 0.0
    for length in (4, 7, 2, 9):
        chunk = np.arange(1, length + 1, dtype=np.float32)[None]
        total += float(chunk.sum())
        np.testing.assert_array_equal(stream(chunk), 2 * chunk)
        assert stream.state["total"].tolist() == [[total]]


def test_a_server_that_keeps_no_states_refuses_the_id_of_a_sequence(runner: Runner, package: Path) -> None:
    """Else each chunk would be answered as if it were the first of its stream, without a word."""
    model = ServedModel(runner, package)
    body = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}], "parameters": %s}'
    for parameters in ("{}", '{"sequence_id": 0}', '{"sequence_id": ""}'):
        assert model.read(read_request((body % parameters).encode(), None)).samples == 1
    for parameters in ('{"sequence_id": 5, "sequence_start": true}', '{"sequence_id": "a"}'):
        with pytest.raises(InputError, match=r"sequence_id is given, .* send each state .*'total'"):
            model.read(read_request((body % parameters).encode(), None))


def test_one_plain_input_that_packs_nothing_is_refused_from_every_way_in(tmp_path: Path) -> None:
    """A model that counts the steps of its only input from their values, and packs them."""
    plain = Signature((TensorSpec("x", (2, 3), blank=0.0),), (OutputSpec("sums", (3,)),))

    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1)

    package = write_rows_package(tmp_path / "tiny_int8", Last(), np.ones((2, 2, 3), np.float32), plain)
    batch = np.ones((3, 2, 3), np.float32)
    batch[1] = 0.0
    with Runner(package, threads=1, instances=1) as own:
        assert own(batch[:1]).tolist() == [[2.0, 2.0, 2.0]]
        for call in (lambda: own(batch), lambda: own.predict([*batch]), lambda: own(x=torch.from_numpy(batch))):
            with pytest.raises(InputError, match="0 in every place, which makes a sequence without a step"):
                call()
