"""The runner as its users call it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cpupack.runtime.errors import HostError, InputError, IntegrityError, RunnerError
from cpupack.runtime.images.preprocess import PreprocessSpec, normalize, to_pixels
from cpupack.runtime.runner import Prediction, RandomWeightsWarning, Runner
from helpers.tiny_package import CLASSES, PREPROCESS

RNG = np.random.default_rng(7)
IMAGES = [RNG.integers(0, 256, (24 + n, 30, 3), dtype=np.uint8) for n in range(11)]
PIXELS = RNG.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
SPEC = PreprocessSpec.from_dict(PREPROCESS)


@pytest.fixture(scope="module")
def runner(package_dir: Path) -> Iterator[Runner]:
    with Runner(package_dir, threads=1, instances=2, batch_size=4) as runner:
        yield runner


@pytest.fixture(scope="module")
def arrays(array_package_dir: Path) -> Iterator[Runner]:
    with Runner(array_package_dir, threads=1, instances=1, batch_size=4) as runner:
        yield runner


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_input_predicts_the_same(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(IMAGES[0]))
    kinds = [path, str(path), path.read_bytes(), Image.open(path), IMAGES[0]]
    first, *rest = [runner.predict(kind) for kind in kinds]
    assert all(other == first for other in rest)
    assert runner.predict(kinds) == [first] * len(kinds)


def test_predictions_are_the_softmax_of_the_logits(runner: Runner) -> None:
    logits = runner(to_pixels(Image.fromarray(IMAGES[0]), SPEC)[None])[0]
    probabilities = torch.softmax(torch.from_numpy(logits).double(), 0)
    found = runner.predict(IMAGES[0], top_k=4)
    assert {one.index for one in found} == {0, 1, 2, 3}
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    for one in found:
        assert one.probability == pytest.approx(float(probabilities[one.index]), rel=1e-12)
        assert one.label == ("cat", "dog", "bird", "fish")[one.index]


def test_top_k_is_at_most_the_classes(runner: Runner) -> None:
    assert [len(runner.predict(IMAGES[0], top_k=k)) for k in (1, 3, 4, 99)] == [1, 3, 4, 4]


def test_lists_of_any_length_equal_one_by_one(runner: Runner) -> None:
    alone = [runner.predict(image) for image in IMAGES]
    for count in range(1, len(IMAGES) + 1):
        assert runner.predict(IMAGES[:count]) == alone[:count]
    assert runner.predict(tuple(IMAGES), batch_size=3) == alone


def test_order_is_kept(runner: Runner) -> None:
    """More batches than may wait at once, each different: a lost or swapped one would show."""
    many = [IMAGES[n % len(IMAGES)] for n in range(45)]
    alone = [runner.predict(image) for image in IMAGES]
    assert runner.predict(many) == [alone[n % len(IMAGES)] for n in range(45)]


def test_tensor_in_tensor_out_array_in_array_out(runner: Runner) -> None:
    batch = normalize(PIXELS, SPEC)
    from_array, from_tensor = runner(batch), runner(torch.from_numpy(batch))
    assert isinstance(from_array, np.ndarray)
    assert isinstance(from_tensor, torch.Tensor)
    assert (from_tensor.dtype, tuple(from_tensor.shape)) == (torch.float32, (11, CLASSES))
    np.testing.assert_array_equal(from_array, from_tensor.numpy())


def test_pixels_and_floats_give_the_same_logits(runner: Runner) -> None:
    np.testing.assert_array_equal(runner(PIXELS), runner(normalize(PIXELS, SPEC)))
    np.testing.assert_array_equal(runner(torch.from_numpy(PIXELS)).numpy(), runner(PIXELS))


def test_strange_memory_is_understood(runner: Runner) -> None:
    expected = runner(PIXELS)
    batch = normalize(PIXELS, SPEC)
    np.testing.assert_array_equal(runner(np.ascontiguousarray(batch)), expected)
    np.testing.assert_array_equal(runner(batch[::-1])[::-1], expected)
    np.testing.assert_array_equal(runner(PIXELS[:, :, ::-1][:, :, ::-1]), expected)
    batch.setflags(write=False)
    np.testing.assert_array_equal(runner(batch), expected)


def test_input_is_left_alone(runner: Runner) -> None:
    pixels, batch = PIXELS.copy(), torch.from_numpy(normalize(PIXELS, SPEC)).requires_grad_()
    before = batch.detach().clone()
    runner(pixels), runner(batch)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert torch.equal(batch.detach(), before)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            np.zeros((2, 3, 8, 8), np.float32),
            r"got float32 \(2, 3, 8, 8\); expected float32 \(n, 3, 16, 16\)",
        ),
        (np.zeros((2, 3, 16, 16), np.float64), r"got float64 .*; expected float32"),
        (np.zeros((2, 3, 16, 16), np.uint8), r"or uint8 \(n, 16, 16, 3\)"),
        (np.zeros((3, 16, 16), np.float32), "add the batch dimension"),
        (np.zeros((16, 16, 3), np.uint8), "add the batch dimension"),
        (np.zeros((0, 3, 16, 16), np.float32), "empty batch"),
        (np.zeros((), np.float32), "expected float32"),
        (torch.zeros((2, 3, 16, 16), dtype=torch.float16), "got float16"),
        (torch.zeros((2, 3, 16, 16), dtype=torch.bfloat16), "got bfloat16"),
        (torch.zeros((2, 3, 16, 16)).to_sparse(), "sparse"),
        ([1, 2, 3], "got list; expected a torch tensor or a plain numpy array"),
    ],
)
def test_unusable_batches(runner: Runner, batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        runner(batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "the list of inputs is empty"),
        ((), "the list of inputs is empty"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"expected \(height, width, channels\)"),
        ([IMAGES[0], np.zeros((9, 9, 2), np.uint8)], "input 1: .*2 channels"),
        (b"hello", "image of 5 bytes is not an image"),
        ([IMAGES[0], None], "input 1: cannot read an image from NoneType"),
        ({"a": 1}, 'the model has no input "a"; it takes input float32'),
    ],
)
def test_unusable_inputs(runner: Runner, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runner.predict(inputs)
    assert runner.predict(IMAGES[0])  # the next request is served


def test_unusable_files_are_named_among_good_ones(runner: Runner, tmp_path: Path) -> None:
    good, text, half = (tmp_path / name for name in ("good.png", "notes.txt", "half.png"))
    good.write_bytes(png(IMAGES[0]))
    text.write_text("hello")
    half.write_bytes(png(IMAGES[0])[:200])
    with pytest.raises(InputError, match=r"^\S*notes\.txt is not an image"):
        runner.predict([good, text])
    with pytest.raises(InputError, match=r"^\S*half\.png is a truncated"):
        runner.predict([good, half])
    with pytest.raises(InputError, match=r"^\S*gone\.png: no such file"):
        runner.predict([good, tmp_path / "gone.png"])


@pytest.mark.parametrize("argument", [{"top_k": 0}, {"top_k": -1}, {"batch_size": 0}])
def test_unusable_options(runner: Runner, argument: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be a whole number from 1"):
        runner.predict(IMAGES[0], **argument)


@pytest.mark.parametrize("argument", ["threads", "instances", "batch_size"])
def test_unusable_plan(package_dir: Path, argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument} is 0"):
        Runner(package_dir, **{argument: 0})


def test_images_of_another_size_need_a_resize(edited: Callable[..., Path]) -> None:
    with (
        Runner(edited(preprocess={"resize": None, "crop": None}), instances=1) as runner,
        pytest.raises(InputError, match=r"\(24, 30, 3\).* after preprocessing; the model takes \(16, 16, 3\)"),
    ):
        runner.predict(IMAGES[0])


def test_arrays_for_models_without_preprocessing(arrays: Runner, tmp_path: Path) -> None:
    batch = normalize(PIXELS, SPEC)
    np.save(tmp_path / "one.npy", batch[0])
    expected = arrays.predict(batch[0])
    for same in (tmp_path / "one.npy", str(tmp_path / "one.npy"), torch.from_numpy(batch[0])):
        assert arrays.predict(same) == arrays.predict([same])[0] == expected
    assert [len(top) for top in arrays.predict(list(batch), top_k=2)] == [2] * 11


def test_unusable_arrays(arrays: Runner, tmp_path: Path) -> None:
    (tmp_path / "notes.npy").write_text("hello")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "archive.npy").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "several.npz", a=np.zeros(2))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "short.npy", np.zeros((3, 8, 8), np.float32))
    for name, message in {
        "notes.npy": "is not an .npy file of numbers, which this model takes: it does not begin as one$",
        "empty.npy": "is not an .npy file",
        "archive.npy": "is not an .npy file",
        "objects.npy": "is not an .npy file .*: Object arrays cannot be loaded",
        "several.npz": "is an archive of arrays",
        "short.npy": r"short\.npy: got float32 \(3, 8, 8\); expected one input, float32 \(3, 16, 16\)",
        "gone.npy": "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            arrays.predict(tmp_path / name)
    with pytest.raises(InputError, match="expected float32"):
        arrays(PIXELS)
    with pytest.raises(InputError, match="got float64"):
        arrays.predict(np.zeros((3, 16, 16)))
    with pytest.raises(InputError, match="got list; expected a float32 array"):
        arrays.predict([[1.0, [2.0]]])
    with pytest.raises(InputError, match="got bytes"):
        arrays.predict(b"hello")


def test_without_labels_the_index_is_the_label(edited: Callable[..., Path]) -> None:
    with Runner(edited(labels=None), instances=1) as runner:
        assert all(one.label == str(one.index) for one in runner.predict(IMAGES[0]))


def test_several_threads_may_call(runner: Runner) -> None:
    expected = runner.predict(IMAGES)
    found: list[list[list[Prediction]]] = []
    callers = [threading.Thread(target=lambda: found.append(runner.predict(IMAGES))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [expected] * 4


def test_plan_and_manifest_are_open(runner: Runner) -> None:
    assert (runner.plan.threads, runner.plan.instances, runner.plan.batch_size) == (1, 2, 4)
    assert runner.manifest.name == "tiny-int8"
    assert runner.labels == ("cat", "dog", "bird", "fish")
    assert repr(runner) == "<Runner tiny-int8 1.0.0: 2 x 1 threads, batch 4>"


def test_closed_runner_says_so(package_dir: Path) -> None:
    runner = Runner(package_dir, instances=1)
    runner.close()
    with pytest.raises(RunnerError, match="closed"):
        runner.predict(IMAGES[0])


def test_loading_warns_of_nothing(package_dir: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Runner(package_dir, instances=1).close()


def test_random_weights_are_unmistakable(edited: Callable[..., Path]) -> None:
    with pytest.warns(RandomWeightsWarning, match=r"tiny-int8 1\.0\.0\+random has random weights") as caught:
        Runner(edited(random_weights=True, version="1.0.0+random"), instances=1).close()
    assert caught[0].filename == __file__  # the caller's line, which is what a user can change


def test_changed_model_file_is_refused_before_torch_reads_it(edited: Callable[..., Path]) -> None:
    copy = edited()
    model = copy / "model.pt"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from cpupack.runtime.runner import Runner\n"
        f"try: Runner(Path({str(copy)!r}))\n"
        "except Exception as error: print(type(error).__name__, error, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"IntegrityError {model} is not the file that was built; reinstall tiny-int8 False\n"


def test_check_false_skips_the_hashes_only(edited: Callable[..., Path]) -> None:
    copy = edited()
    (copy / "golden.npz").write_bytes(b"changed")
    Runner(copy, instances=1, check=False).close()
    with pytest.raises(IntegrityError, match="golden"):
        Runner(copy)
    copy = edited(target={"cpu": "sparc"})
    with pytest.raises(HostError):
        Runner(copy, check=False)


def test_missing_file_is_refused(edited: Callable[..., Path]) -> None:
    copy = edited()
    (copy / "labels.txt").unlink()
    with pytest.raises(IntegrityError, match=r"labels\.txt is missing; reinstall tiny-int8"):
        Runner(copy)


def test_labels_must_match_the_classes(edited: Callable[..., Path]) -> None:
    with pytest.raises(IntegrityError, match="has 4 labels for 7 classes"):
        Runner(edited(model={"output_shape": [7]}))


def test_absent_engine_is_refused(edited: Callable[..., Path]) -> None:
    with pytest.raises(HostError, match="needs torch's quantized engine 'nonesuch'"):
        Runner(edited(target={"engine": "nonesuch"}))


def test_absent_torch_says_what_to_install(package_dir: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from cpupack.runtime.runner import Runner\n"
        f"try: Runner(Path({str(package_dir)!r}))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HostError torch cannot be imported")
    assert done.stdout.endswith('run: pip install "torch>=2.10,<2.14"\n')


def test_torch_outside_the_range_is_refused(edited: Callable[..., Path]) -> None:
    with pytest.raises(HostError, match=r'pip install "torch>=1\.0,<1\.5"'):
        Runner(edited(torch={"requires": ">=1.0,<1.5"}))


def test_model_that_fails_in_the_warm_up_leaves_no_threads(edited: Callable[..., Path]) -> None:
    before = threading.active_count()
    with pytest.raises(RunnerError, match=r"the model failed on a batch of shape \(1, 5, 16, 16\)"):
        Runner(edited(model={"input_shape": [5, 16, 16]}), batch_size=8)
    assert threading.active_count() == before
