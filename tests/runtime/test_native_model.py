"""Programs run without torch: found in saved models, called from any thread, and refused with a reason."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import native_convolutions
import native_nets
import numpy as np
import pytest
import torch

from cpupack.graph.native_model import NativeModel
from cpupack.runtime.engine import library
from cpupack.runtime.engine import program as native_program
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.session import Session
from cpupack.runtime.errors import HostError, IntegrityError, RunnerError
from cpupack.stages import script
from helpers.native_reference import Reference
from helpers.threads import crew_threads
from helpers.tiny_package import RUNTIME
from helpers.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.skipif(library.describe()["problem"] is not None, reason="needs the native kernels")
NET = native_nets.by_blocks(54, 4)
INPUT, PROGRAM = NET.tensors()
OUTPUTS = NET.program.outputs


def by_pixels() -> Reference:
    """The other way in which pixels are read, in rows of more than one vector and a rest."""
    net = Reference(native_convolutions.pixels(2, 5, 37, 4))
    net.output(net.conv(0, native_convolutions.weights(20, 4, 3, 3), pad=(1, 1), fill=9))
    return net


def save(module: torch.nn.Module, example: torch.Tensor, path: Path) -> Path:
    """Save as the build does."""
    library.load()
    script.save(module, example, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = NativeModel(PROGRAM.numpy().tobytes(), (OUTPUTS,), {}, pixel_input=True)
    return save(model, INPUT, tmp_path_factory.mktemp("saved") / "model.pt")


def expected() -> np.ndarray:
    library.load()
    library.set_threads(1)
    return torch.ops.cpupack.run_3(INPUT, PROGRAM, OUTPUTS).numpy()


def test_what_the_build_saves_is_found_to_be_a_program(saved: Path) -> None:
    assert native_program.is_program(saved, library.ENGINE)
    assert not native_program.is_program(saved, "onednn")
    program = native_program.read_program(saved)
    np.testing.assert_array_equal(program.memory, PROGRAM.numpy())
    assert program.memory.ctypes.data % 64 == 0
    assert (program.pixel_shape, program.float_shape, program.outputs) == (tuple(INPUT.shape[1:]), None, OUTPUTS)


def test_a_model_that_does_more_is_left_to_torch(tmp_path: Path) -> None:
    """FP32 parts before or after the program."""

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("program", PROGRAM)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.cpupack.run_3(x, self.program, OUTPUTS) * 2

    program = PROGRAM.numpy().tobytes()
    models = [
        Twice(),
        NativeModel(program, (OUTPUTS,), {}, pixel_input=True, tail=torch.nn.Softmax(1)),
    ]
    for number, model in enumerate(models):
        path = save(model, INPUT, tmp_path / f"{number}.pt")
        assert not native_program.is_program(path, library.ENGINE)
        with InstancePool(path, library.ENGINE, threads=2, instances=1) as pool:
            assert not pool.is_program
            with torch.inference_mode():
                np.testing.assert_array_equal(pool.run(INPUT.numpy()), model(INPUT).numpy())


@pytest.mark.parametrize("shape", [(7, 10), (2, 5, 1, 7)])
def test_a_batch_of_other_dimensions_is_read_in_rows(shape: tuple[int, ...], tmp_path: Path) -> None:
    x, program = native_nets.floats_out(3, 70, 10).tensors()
    model = NativeModel(program.numpy().tobytes(), (10,), {}, pixel_input=True)
    tokens = x.flatten(1).reshape(3, *shape)
    path = save(model, tokens, tmp_path / "model.pt")
    assert native_program.is_program(path, library.ENGINE)
    with InstancePool(path, library.ENGINE, threads=1, instances=1) as pool, torch.inference_mode():
        np.testing.assert_array_equal(pool.run(tokens.numpy()), model(tokens).numpy())


@pytest.mark.parametrize(
    ("shape", "image"), [((2, OUTPUTS // 2), False), ((OUTPUTS // 2, 1, 2), True), ((OUTPUTS, 1), False)]
)
def test_results_of_any_shape_need_no_torch(shape: tuple[int, ...], image: bool, tmp_path: Path) -> None:
    """Maps and sequences, as segmentation and tagging give them: the runner knows how the engine's results lie."""
    model = NativeModel(PROGRAM.numpy().tobytes(), shape, {}, pixel_input=True, image=image)
    path = save(model, INPUT, tmp_path / "model.pt")
    assert native_program.is_program(path, library.ENGINE)
    rows = expected()
    by_hand = rows.reshape(-1, *shape[1:], shape[0]).transpose(0, 3, 1, 2) if image else rows.reshape(-1, *shape)
    with InstancePool(path, library.ENGINE, threads=1, instances=2) as pool, torch.inference_mode():
        for answer in (model(INPUT).numpy(), pool.run(INPUT.numpy()), pool.run(INPUT).numpy()):
            np.testing.assert_array_equal(answer, by_hand)
        assert pool.run(INPUT.numpy()[:0]).shape == (0, *by_hand.shape[1:])


@pytest.mark.parametrize(("threads", "instances"), [(1, 1), (2, 1), (1, 3)])
def test_arrays_and_tensors_give_the_same_from_every_way_in(saved: Path, threads: int, instances: int) -> None:
    with InstancePool(saved, library.ENGINE, threads=threads, instances=instances) as pool:
        answers = [
            pool.run(INPUT.numpy()),
            pool.run(INPUT).numpy(),
            pool.run(INPUT.numpy(), instances - 1),
            pool.submit(INPUT.numpy()).result(),
            pool.run(np.ascontiguousarray(INPUT.numpy())),
            np.concatenate([pool.run(INPUT.numpy()[n : n + 1]) for n in range(len(INPUT))]),
        ]
    for answer in answers:
        np.testing.assert_array_equal(answer, expected())


def test_threads_that_slept_or_still_look_for_work_take_the_next_call(saved: Path) -> None:
    """A thread sleeps soon after a long gap, and looks for work longer after some short ones."""
    with InstancePool(saved, library.ENGINE, threads=2, instances=1) as pool:
        for gap_s in (0.003, *(0.0002,) * 20, 0.0, 0.003, 0.0, 0.003):
            time.sleep(gap_s)
            np.testing.assert_array_equal(pool.run(INPUT.numpy()), expected())


@pytest.mark.parametrize("net", [NET, by_pixels()], ids=["by blocks", "by pixels"])
def test_threads_that_wait_for_a_cpu_leave_their_shares_to_others(net: Reference) -> None:
    """With four times as many threads as CPUs, most shares are run by a thread whose share it is not."""
    given, program = net.tensors()
    parsed = native_program._parse(program.numpy())
    alone, crowd = Session(parsed, 1), Session(parsed, 4 * (os.cpu_count() or 1))
    want = alone(given.numpy())
    for call in range(300):
        if call % 50 == 0:
            time.sleep(0.01)  # all of them sleep
        np.testing.assert_array_equal(crowd(given.numpy()), want)
    alone.close()
    crowd.close()


@pytest.mark.parametrize("net", [NET, by_pixels()], ids=["by blocks", "by pixels"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_kernels_add_the_mask(net: Reference, threads: int) -> None:
    given, program = net.tensors()
    masked = given.clone()
    masked[:, 3] = 201
    session = Session(native_program._parse(program.numpy()), threads)
    rgb = np.ascontiguousarray(masked[:, :3].permute(0, 2, 3, 1).numpy()).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(session(rgb, mask=201), session(masked.numpy()))
    assert not np.array_equal(session(rgb, mask=0), session(masked.numpy()))
    session.close()
    session.close()


def test_a_mask_is_refused_where_there_is_none() -> None:
    _, program = native_nets.floats_out(3, 70, 10).tensors()
    session = Session(native_program._parse(program.numpy()), 1)
    with pytest.raises(RunnerError, match="does not take pixels of three channels"):
        session(np.zeros((1, 3, 1, 1), np.uint8), mask=1)


def test_batches_that_the_program_does_not_take(saved: Path) -> None:
    with InstancePool(saved, library.ENGINE, threads=1, instances=1) as pool:
        for wrong in (INPUT.numpy()[:, :, :-1], INPUT.numpy()[:, :3], INPUT.numpy()[0]):
            with pytest.raises(RunnerError, match=r"batch of shape .*: it takes \(n, 4, "):
                pool.run(wrong)
        for kind in (np.float32, np.float64, np.int8):
            with pytest.raises(RunnerError, match="does not take"):
                pool.run(INPUT.numpy().astype(kind))
        assert pool.run(INPUT.numpy()[:0]).shape == (0, OUTPUTS)
        np.testing.assert_array_equal(pool.run(INPUT.numpy()), expected())


def test_weights_are_there_once_and_each_instance_says_what_it_takes(saved: Path) -> None:
    with InstancePool(saved, library.ENGINE, threads=1, instances=2) as pool:
        shared, alone = pool.shared_bytes, pool.memory_per_instance_bytes  # alone: made ready for one sample
        assert shared >= len(PROGRAM)
        pool.warm(INPUT.numpy())
        once = pool.memory_per_instance_bytes
        pool.warm(INPUT.numpy())
        assert pool.memory_per_instance_bytes == once > alone > 0
        assert pool.shared_bytes == shared


def test_what_the_kernels_make_of_weights_is_there_once() -> None:
    """Three layers of 3 x 3 x 32 inputs each.

    On AVX2 these are transformed weights: 16 values of 2 bytes for each pair of an input and an output. With VNNI there
    are lists of products, which depend on the size of the image too: each program has its own.
    """
    net = native_nets.winograd((2, 8, 6, 32), 32)
    x, program = net.tensors()
    read = native_program._parse(program.numpy())
    expected = {"avx2": 3 * 16 * 32 * 32 * 2, "vnni": 0, "amx": 0}[library.describe()["isa"]]
    sessions = [Session(read, 1) for _ in range(3)]
    assert [each.prepared_bytes for each in sessions] == [0, 0, 0]
    results = []
    callers = [threading.Thread(target=lambda each=each: results.append(each(x.numpy()))) for each in sessions[:2]]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [each.prepared_bytes for each in sessions] == [expected, expected, 0]
    sessions[0].close()
    results += [sessions[1](x.numpy()), sessions[2](x.numpy()[:1])]
    for result in results:
        np.testing.assert_array_equal(result, net.result[: len(result)])
    for each in sessions:
        each.close()


def test_many_callers_share_few_instances(saved: Path) -> None:
    wanted, wrong = expected(), []
    with InstancePool(saved, library.ENGINE, threads=2, instances=2) as pool:

        def call(seed: int) -> None:
            for number in range(60):
                batch = INPUT.numpy()[: 1 + (number + seed) % len(INPUT)]
                answer = pool.run(batch) if number % 3 else pool.submit(batch).result()
                if not np.array_equal(answer, wanted[: len(batch)]):
                    wrong.append(seed)

        callers = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


def test_closing_waits_for_who_is_running(saved: Path) -> None:
    batch = np.concatenate([INPUT.numpy()] * 400)
    for delay_s in (0.0, 0.0005, 0.002, 0.005):
        pool = InstancePool(saved, library.ENGINE, threads=1, instances=1)
        found: list[object] = []

        def call(pool: InstancePool = pool, found: list[object] = found) -> None:
            try:
                found.append(pool.run(batch))
            except RunnerError as error:
                found.append(str(error))

        caller = threading.Thread(target=call)
        caller.start()
        time.sleep(delay_s)
        pool.close()
        caller.join()
        (answer,) = found
        assert answer == "the runner is closed" if isinstance(answer, str) else answer.shape == (len(batch), OUTPUTS)


def test_instances_keep_to_the_plans_cpus(saved: Path) -> None:
    """The kernels' own threads inherit the CPUs, and a caller does not run a bound instance."""
    cpu = max(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    known = {int(path.name) for path in Path("/proc/self/task").iterdir()}
    with InstancePool(saved, library.ENGINE, threads=2, instances=1, cpus=((cpu,),)) as pool:
        pool.run(INPUT.numpy())
        started = {int(path.name) for path in Path("/proc/self/task").iterdir()} - known
        assert len(started) == 2  # the instance's thread and its team's
        assert [os.sched_getaffinity(thread) for thread in started] == [{cpu}, {cpu}]
    assert os.sched_getaffinity(0) == before


def test_cpus_that_are_not_there(saved: Path) -> None:
    with pytest.raises(HostError, match="CPUs 1023 cannot be used here"):
        InstancePool(saved, library.ENGINE, threads=1, instances=1, cpus=((1023,),))
    with pytest.raises(ValueError, match="given for 1 instances, and there are 2"):
        InstancePool(saved, library.ENGINE, threads=1, instances=2, cpus=((0,),))


def test_no_torch_is_imported(saved: Path) -> None:
    code = """
import sys; from pathlib import Path; import numpy as np
from cpupack.runtime.engine.pool import InstancePool
with InstancePool(Path(sys.argv[1]), "native", 2, 1) as pool:
    print(pool.run(np.zeros((1, *map(int, sys.argv[2:])), np.uint8)).shape, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved), *map(str, INPUT.shape[1:])],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env={**os.environ, "PYTHONPATH": str(RUNTIME.parent.parent)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"(1, {OUTPUTS}) False\n"), done.stderr


def test_the_program_is_stored_once_and_torch_opens_the_same_file(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f"/extra/{native_program.PROGRAM_NOTE}"))
        note = json.loads(archive.read(name))
        assert archive.read(f"{name.partition('/')[0]}/{note['record']}") == PROGRAM.numpy().tobytes()
    assert saved.read_bytes().count(PROGRAM.numpy().tobytes()) == 1
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch.jit announces its own deprecation
        module = torch.jit.load(str(saved))
        np.testing.assert_array_equal(module(INPUT).numpy(), expected())


Change = Callable[[str, bytes], bytes | None]


def rewritten(saved: Path, path: Path, change: Change, compression: int = zipfile.ZIP_STORED) -> Path:
    """Copy a saved model with its records changed: ``change(name, bytes)``, None to leave one out."""
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", compression) as target:
        for member in source.infolist():
            if (data := change(member.filename, source.read(member))) is not None:
                target.writestr(member.filename, data)
    return path


def of_record(part: str, change: Callable[[bytes], bytes | None]) -> Change:
    return lambda name, data: change(data) if f"/{part}/" in name else data


def laid_out(layout: bytes) -> bytes:
    return b'{"schema": 1, "record": "constants/0", "layout": ' + layout + b"}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_record("constants", lambda data: data[::-1]), "no program of this format"),
        (of_record("constants", lambda data: data[:20]), "cannot load the native program"),
        (of_record("constants", lambda _data: b""), "cannot load the native program"),
        (of_record("constants", lambda _data: None), "record constants/0, which should hold the program, is missing"),
        (of_record("extra", lambda _data: b"{"), "cannot load the native program"),
        (of_record("extra", lambda _data: b"\xff"), "cannot load the native program"),
        (of_record("extra", lambda _data: b"[]"), "does not name a record"),
        (of_record("extra", lambda _data: b'{"schema": 1, "record": 7}'), "does not name a record"),
        (of_record("extra", lambda _data: b'{"schema": 2, "record": "constants/0"}'), "does not name a record"),
        (of_record("extra", lambda _data: b'{"schema": 1, "record": "../x"}'), "is missing"),
        (of_record("extra", lambda _data: laid_out(b'{"image": false, "shape": [3, 7]}')), "are not of the shape"),
        (of_record("extra", lambda _data: laid_out(b'{"image": false, "shape": [-1, -3]}')), "layout .* damaged"),
        (of_record("extra", lambda _data: laid_out(b'{"image": true, "shape": [3, 1]}')), "layout .* damaged"),
        (of_record("extra", lambda _data: laid_out(b'{"shape": [3]}')), "layout .* damaged"),
        (of_record("extra", lambda _data: laid_out(b"[3]")), "layout .* damaged"),
    ],
)
def test_a_damaged_record_is_an_integrity_error_in_words(
    saved: Path, tmp_path: Path, change: Change, said: str
) -> None:
    path = rewritten(saved, tmp_path / "model.pt", change)
    assert native_program.is_program(path, library.ENGINE)
    with pytest.raises(IntegrityError, match=said) as caught:
        InstancePool(path, library.ENGINE, threads=1, instances=1)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("reinstall the package")


def test_a_compressed_or_truncated_program_is_an_integrity_error(saved: Path, tmp_path: Path) -> None:
    before = crew_threads()
    packed = rewritten(saved, tmp_path / "packed.pt", lambda _name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(IntegrityError, match="is compressed"):
        native_program.read_program(packed)
    cut = rewritten(saved, tmp_path / "cut.pt", of_record("constants", lambda data: data[: len(data) // 2]))
    with pytest.raises(IntegrityError, match="the model cannot run: the program is damaged"):
        InstancePool(cut, library.ENGINE, threads=1, instances=1)
    wait_until(lambda: crew_threads() == before)


def test_what_is_no_archive_or_names_no_program_is_left_to_torch(saved: Path, tmp_path: Path) -> None:
    unnamed = rewritten(saved, tmp_path / "unnamed.pt", of_record("extra", lambda _data: None))
    for path in (tmp_path / "none.pt", Path(__file__), unnamed):
        assert not native_program.is_program(path, library.ENGINE)
        with pytest.raises(IntegrityError, match="cannot load"):
            native_program.read_program(path)


def test_a_kernel_without_large_pages_is_no_damaged_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that were built without them, and sandboxes, refuse the advice. The package was to be installed again."""

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(native_program.mmap, "mmap", Refusing)
    assert native_program.read_program(saved).outputs == OUTPUTS


def test_a_process_that_may_open_no_file_needs_no_torch(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> zipfile.ZipFile:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(native_program.zipfile, "ZipFile", refused)
    with pytest.raises(HostError, match="too many files are open"):
        native_program.is_program(saved, library.ENGINE)
