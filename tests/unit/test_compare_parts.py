"""Jobs, instances as threads, files fed to an engine, and rounds, without any engine."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cpupack.comparison.rounds import Participants
from cpupack.peers.files import pillow_feed
from cpupack.peers.job import Data, Job, PeerError
from cpupack.peers.pools import ThreadedPool
from cpupack.peers.process import EngineFailedError
from cpupack.progress import SilentProgress
from cpupack.runtime.images.preprocess import PreprocessSpec
from cpupack.runtime.tune.space import Setting

SIZE = 4


def job(directory: Path, **changes: Any) -> Job:
    pixels = np.arange(3 * SIZE * SIZE * 3, dtype=np.uint8).reshape(3, SIZE, SIZE, 3)
    np.save(directory / "evaluation.npy", pixels)
    preprocess = PreprocessSpec(resize=SIZE, crop=SIZE, mean=(0.5,), std=(0.25,)).to_dict()
    fields: dict[str, Any] = {
        "engine": "eager",
        "directory": str(directory),
        "recipe_path": "recipe.toml",
        "recipe_text": "",
        "weights": "weights.pt",
        "input_shape": (3, SIZE, SIZE),
        "calibration": None,
        "calibration_batch": 2,
        "evaluation": Data(str(directory / "evaluation.npy"), 3, preprocess),
        "reference": "reference.npy",
        "package": {"source": "src", "import_name": "tiny"},
        "dynamic": False,
        "cores": 2,
        "activation_bits": 8,
        "batch_size": 2,
    }
    return Job(**(fields | changes))


def echo_pool(told: Job, seen: list[Any]) -> ThreadedPool:
    def load() -> Any:
        return lambda batch: seen.append((threading.current_thread(), batch)) or batch

    return ThreadedPool(told, load, lambda batch: batch)


def test_a_job_reads_back_as_it_was_written(tmp_path: Path) -> None:
    told = job(tmp_path)
    told.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == told


def test_a_setting_goes_into_the_job(tmp_path: Path) -> None:
    at = job(tmp_path).at(Setting(threads=3, instances=2, batch_size=5), single=False)
    assert (at.threads, at.instances, at.batch_size, at.single) == (3, 2, 5, False)


def test_batches_are_of_the_evaluation_and_wrap_around(tmp_path: Path) -> None:
    told = job(tmp_path, input_kind="uint8")
    stored = np.load(tmp_path / "evaluation.npy")
    first, second, *_ = told.stored_batches()
    assert np.array_equal(first, stored[[0, 1]])
    assert np.array_equal(second, stored[[2, 0]])


def test_float_batches_are_normalized_and_pixels_are_left_to_the_engine(tmp_path: Path) -> None:
    floats = job(tmp_path).stored_batches()[0]
    told = job(tmp_path, input_kind="uint8")
    pixels = told.stored_batches()[0]
    assert (floats.dtype, pixels.dtype) == (np.float32, np.uint8)
    assert np.allclose(floats, (pixels.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, atol=1e-6)
    assert np.array_equal(told.floats(pixels), floats)


def test_calibration_that_the_recipe_lacks_is_told_as_a_reason(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="calibration"):
        next(job(tmp_path).calibration_batches())


def test_instances_have_threads_of_their_own(tmp_path: Path) -> None:
    seen: list[Any] = []
    pool = echo_pool(job(tmp_path, instances=2), seen)
    for number in (0, 1):
        assert pool.submit("batch", number).result() == "batch"
    pool.close()
    threads = [thread for thread, _ in seen]
    assert len({*threads, threading.current_thread()}) == 3


def test_a_single_instance_runs_in_the_callers_thread(tmp_path: Path) -> None:
    seen: list[Any] = []
    echo_pool(job(tmp_path, single=True), seen).submit("batch").result()
    assert seen == [(threading.current_thread(), "batch")]
    with pytest.raises(ValueError, match="one request"):
        echo_pool(job(tmp_path, single=True, instances=2), seen)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_files_are_fed_in_order_in_whole_batches(tmp_path: Path, count: int) -> None:
    paths = []
    for number in range(count):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (SIZE, SIZE), (number, 0, 0)).save(paths[-1])
    seen: list[Any] = []
    told = job(tmp_path, input_kind="uint8")
    pool = echo_pool(told, seen)
    assert pillow_feed(pool, told)(paths) == count
    pool.close()
    reds = [batch[:, 0, 0, 0].tolist() for _, batch in seen]
    assert all(len(each) == told.batch_size for each in reds)  # a tail is filled up
    assert [red for each in reds for red in each][:count] == list(range(count))


class FakeProcess:
    """Answers with its name, and fails in round ``fails``."""

    def __init__(self, name: str, fails: int | None = None) -> None:
        self.name, self.fails, self.rounds, self.state = name, fails, 0, "paused"

    @contextmanager
    def running(self) -> Any:
        self.state = "running"
        try:
            yield
        finally:
            self.state = "paused"

    def measure(self) -> dict[str, Any]:
        self.rounds += 1
        if self.fails == self.rounds:
            raise EngineFailedError("no more")
        return {"name": self.name}

    def __exit__(self, *_: object) -> None:
        self.state = "killed"


def play(*processes: FakeProcess, rounds: int) -> tuple[list[dict[str, Any]], Participants]:
    with ExitStack() as stack:
        field = Participants(stack, Path())
        field._processes.update({each.name: each for each in processes})
        states = []

        def measure(process: Any) -> dict[str, Any]:
            states.append([each.state for each in processes if each.state == "running"])
            return process.measure()

        rows = field.play(rounds, measure, SilentProgress())
        assert all(each == ["running"] for each in states)  # never two at once
        return rows, field


def test_rounds_alternate_and_one_engine_runs_at_a_time() -> None:
    rows, _ = play(FakeProcess("a"), FakeProcess("b"), rounds=2)
    assert [(row["round"], row["position"], row["engine"]) for row in rows] == [
        (0, 0, "a"), (0, 1, "b"), (1, 0, "b"), (1, 1, "a"),
    ]  # fmt: skip


def test_an_engine_that_fails_in_a_round_is_out_with_its_rows() -> None:
    failing = FakeProcess("b", fails=2)
    rows, field = play(FakeProcess("a"), failing, rounds=3)
    assert {row["engine"] for row in rows} == {"a"}
    assert len(rows) == 3
    assert field.failed == {"b": "no more"}
    assert failing.state == "killed"
