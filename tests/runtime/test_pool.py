"""Instances run in parallel with their own engine, and fail with an error of one line."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.torch_jit import first_cause
from cpupack.runtime.errors import HostError, RunnerError
from helpers.threads import crew_threads
from helpers.tiny_package import CLASSES, ENGINE, INPUT_SHAPE, PREPROCESS, RUNTIME, TinyNet, quantize_and_save
from helpers.waiting import PATIENCE_S, wait_until

BATCH = torch.rand((2, *INPUT_SHAPE), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def pool(package_dir: Path) -> Iterator[InstancePool]:
    with InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=2) as pool:
        yield pool


def scripted(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its own deprecation
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def test_answers_are_the_builds(package_dir: Path, pool: InstancePool) -> None:
    golden = np.load(package_dir / "golden.npz")
    from cpupack.runtime.images.preprocess import PreprocessSpec, normalize

    batch = torch.from_numpy(normalize(golden["input"], PreprocessSpec.from_dict(PREPROCESS)))
    np.testing.assert_array_equal(pool.run(batch).numpy(), golden["output"])


def test_every_instance_gives_the_same_answer(pool: InstancePool) -> None:
    futures = [pool.submit(BATCH) for _ in range(10)]
    assert all(torch.equal(future.result(), pool.run(BATCH, 1)) for future in futures)


def test_channels_last_and_contiguous_inputs_agree(pool: InstancePool) -> None:
    assert torch.equal(pool.run(BATCH), pool.run(BATCH.contiguous(memory_format=torch.channels_last)))


def test_output_needs_no_grad_and_engine_is_set(pool: InstancePool) -> None:
    assert not pool.run(BATCH).requires_grad
    assert torch.backends.quantized.engine == ENGINE


def test_wrong_shape_is_one_line_and_the_instance_lives_on(pool: InstancePool) -> None:
    with pytest.raises(RunnerError, match=r"batch of shape \(2, 5, 16, 16\)") as caught:
        pool.run(torch.rand(2, 5, 16, 16))
    assert "\n" not in str(caught.value)
    assert pool.run(BATCH).shape == (2, CLASSES)


def test_work_goes_to_the_idle_instance(tmp_path: Path) -> None:
    """A short call ends while a long one, given first, still runs: it ends only when its input is changed."""

    class Waiting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x[0, 0] > 0):
                pass
            return x

    with InstancePool(scripted(Waiting(), tmp_path / "waiting.pt"), ENGINE, threads=1, instances=2) as pool:
        busy = torch.ones(1, 1)
        long = pool.submit(busy)
        try:
            pool.submit(torch.zeros(1, 1)).result(timeout=PATIENCE_S)
            assert not long.done()
        finally:
            busy.zero_()
        long.result(timeout=PATIENCE_S)


def test_warm_runs_on_every_instance(package_dir: Path) -> None:
    with InstancePool(package_dir / "model.pt", ENGINE, threads=2, instances=2) as pool:
        pool.warm(torch.zeros(3, *INPUT_SHAPE))
        assert pool.run(torch.rand(3, *INPUT_SHAPE), 1).shape == (3, CLASSES)


def test_each_instance_has_its_thread(package_dir: Path) -> None:
    """There is one worker thread for each instance, and none is left after closing."""
    before = crew_threads()
    with InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=3):
        wait_until(lambda: crew_threads() == before + 3)
    wait_until(lambda: crew_threads() == before)


def test_forgotten_pool_ends_its_threads(package_dir: Path) -> None:
    before = crew_threads()
    InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=1).run(BATCH)
    gc.collect()
    wait_until(lambda: crew_threads() == before)


def test_interpreter_ends_without_close(package_dir: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from cpupack.runtime.engine.pool import InstancePool\n"
        f"pool = InstancePool(Path({str(package_dir / 'model.pt')!r}), {ENGINE!r}, 1, 2)\n"
        f"pool.warm(torch.zeros(1, *{INPUT_SHAPE})); print('ran')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "PYTHONPATH": str(RUNTIME.parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_pool_from_before_a_fork_says_so(package_dir: Path) -> None:
    code = (
        "import os, torch; from pathlib import Path; from cpupack.runtime.engine.pool import InstancePool\n"
        f"pool = InstancePool(Path({str(package_dir / 'model.pt')!r}), {ENGINE!r}, 1, 1)\n"
        "if child := os.fork(): os.waitpid(child, 0); raise SystemExit\n"
        f"try: pool.run(torch.rand(1, *{INPUT_SHAPE}))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True,
        env={**os.environ, "PYTHONPATH": str(RUNTIME.parent.parent)},
    )  # fmt: skip
    assert done.stdout == (
        "RunnerError this runner was made before the process forked; make one in each worker process\n"
    )


def test_closed_pool_says_so(package_dir: Path) -> None:
    pool = InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=1)
    pool.close()
    pool.close()
    with pytest.raises(RunnerError, match="closed"):
        pool.run(BATCH)


def test_close_finishes_queued_work(package_dir: Path) -> None:
    with InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=1) as pool:
        futures = [pool.submit(BATCH) for _ in range(20)]
    assert all(future.done() for future in futures)


def test_absent_engine_names_those_there(package_dir: Path) -> None:
    with pytest.raises(HostError, match=r"'nonesuch'.*here has .*qnnpack"):
        InstancePool(package_dir / "model.pt", "nonesuch", threads=1, instances=1)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_unloadable_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    before = crew_threads()
    with pytest.raises(HostError, match=r"cannot load .*model\.pt") as caught:
        InstancePool(path, ENGINE, threads=1, instances=2)
    assert "\n" not in str(caught.value)
    wait_until(lambda: crew_threads() == before)


def test_model_that_returns_no_tensor(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    with (
        InstancePool(scripted(Two(), tmp_path / "two.pt"), ENGINE, threads=1, instances=1) as pool,
        pytest.raises(RunnerError, match="returned tuple; expected one tensor"),
    ):
        pool.run(BATCH)


@pytest.mark.skipif("onednn" not in torch.backends.quantized.supported_engines, reason="needs two x86 engines")
def test_two_engines_serve_from_one_process(tmp_path: Path) -> None:
    """``quantized::conv2d_add`` refuses another engine: the pools must not switch it mid-call."""
    torch.manual_seed(0)
    paths = {}
    for engine in ("onednn", "fbgemm"):
        paths[engine] = tmp_path / f"{engine}.pt"
        quantize_and_save(TinyNet(), torch.rand(4, *INPUT_SHAPE), paths[engine], engine)
    with (
        InstancePool(paths["onednn"], "onednn", threads=1, instances=2) as one,
        InstancePool(paths["fbgemm"], "fbgemm", threads=1, instances=2) as other,
    ):
        alone = {pool: pool.run(BATCH) for pool in (one, other)}
        futures = [(pool, pool.submit(BATCH)) for _ in range(100) for pool in (one, other)]
        for pool, future in futures:
            assert torch.equal(future.result(timeout=PATIENCE_S), alone[pool])


def test_busy_engine_does_not_starve_the_other(package_dir: Path, tmp_path: Path) -> None:
    other = next(name for name in torch.backends.quantized.supported_engines if name not in {"none", ENGINE})
    stop = threading.Event()
    with (
        InstancePool(package_dir / "model.pt", ENGINE, threads=1, instances=2) as busy,
        InstancePool(scripted(torch.nn.ReLU(), tmp_path / "relu.pt"), other, threads=1, instances=1) as guest,
    ):
        feeders = [threading.Thread(target=_feed, args=(busy, number, stop)) for number in range(2)]
        for feeder in feeders:
            feeder.start()
        try:
            for _ in range(20):
                guest.submit(BATCH).result(timeout=PATIENCE_S)  # a guard against hanging, far above what it takes
        finally:
            stop.set()
            for feeder in feeders:
                feeder.join()


def _feed(pool: InstancePool, instance: int, stop: threading.Event) -> None:
    while not stop.is_set():
        pool.run(BATCH, instance)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain message", "plain message"),
        (
            "The following operation failed.\nTraceback of TorchScript:\n  here\nRuntimeError: the cause\n",
            "the cause",
        ),
        ("expected: one thing\nsecond line", "expected: one thing"),
        ("", "RuntimeError"),
    ],
)
def test_first_cause(text: str, line: str) -> None:
    assert first_cause(RuntimeError(text)) == line
