"""Programs for images of any size: each is the one that the size would be lowered to."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cpupack.accuracy import sqnr_db
from cpupack.errors import QuantizationError
from cpupack.quantized_engine import engine
from cpupack.runtime.engine.pool import InstancePool
from cpupack.runtime.engine.program import note_text, read_program
from cpupack.runtime.engine.resampling import KINDS, matrix
from cpupack.runtime.engine.session import Session
from cpupack.runtime.engine.sized import SizedPrograms
from cpupack.runtime.engine.sizes import Sizes
from cpupack.runtime.errors import InputError, RunnerError
from cpupack.runtime.open_sizes import OpenSizes
from cpupack.size_terms import probes
from cpupack.stages.quantize.native.lowered import Lowered
from cpupack.stages.quantize.native.sizes import same_program, sizes_of
from cpupack.stages.script import save
from helpers.lowered import needs_kernels
from helpers.open_nets import NETS, OTHERS, TYPICAL, Open, opened
from helpers.tiny_models import calibrated, recipe, samples

RANGE = OpenSizes((8, 16), (32, 64), (4, 8))


def test_sizes_between_the_least_and_the_greatest_are_taken_in_steps() -> None:
    taken = {(height, width) for height in range(1, 40) for width in range(1, 80) if RANGE.takes(height, width)}
    assert taken == {(height, width) for height in range(8, 33, 4) for width in range(16, 65, 8)}


def test_an_image_is_filled_up_at_the_bottom_and_the_right() -> None:
    image = np.full((9, 20, 3), 7, np.uint8)
    found = RANGE.fill(image, np.array([1, 2, 3], np.uint8))
    assert found.shape == (12, 24, 3)
    assert (found[:9, :20] == 7).all()
    assert (found[9:] == [1, 2, 3]).all()
    assert (found[:, 20:] == [1, 2, 3]).all()
    assert RANGE.fill(np.zeros((1, 1, 3), np.uint8), np.zeros(3, np.uint8)).shape == (8, 16, 3)
    whole = np.zeros((12, 24, 3), np.uint8)
    assert RANGE.fill(whole, np.zeros(3, np.uint8)) is whole


def test_an_image_that_is_larger_than_the_largest_is_refused() -> None:
    with pytest.raises(InputError, match=r"33 x 20 pixels \(height x width\), and the model takes up to 32 x 64"):
        RANGE.fill(np.zeros((33, 20, 3), np.uint8), np.zeros(3, np.uint8))


@pytest.mark.parametrize("lengths", [(5, 10), (6, 9), (7, 21), (12, 5), (1, 4), (8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_are_those_of_torch(kind: str, lengths: tuple[int, int]) -> None:
    length, result = lengths
    values = torch.eye(length, dtype=torch.float64)[None]  # (1, places as channels, places)
    if kind == "adaptive":
        expected = F.adaptive_avg_pool1d(values, result)
    elif kind.startswith("cubic"):
        corners, fewer = kind == "cubic_corners", kind == "cubic_antialiased"
        twice = values[..., None].repeat(1, 1, 1, 2)
        expected = F.interpolate(twice, (result, 2), mode="bicubic", align_corners=corners, antialias=fewer)[..., 0]
    elif kind.startswith("linear"):
        expected = F.interpolate(values, result, mode="linear", align_corners=kind == "linear_corners")
    else:
        expected = F.interpolate(values, result, mode=kind.replace("_", "-"))
    assert np.abs(matrix(kind, length, result) - expected[0].T.numpy()).max() < 1e-6  # torch has some in float32


def unseen(sizes: Sizes) -> list[tuple[int, int]]:
    """Return some sizes at which a net was not lowered before, and the least."""
    (height, width), (down, across) = sizes.range.least, sizes.range.multiple
    return [
        (height + 3 * down, width + 2 * across),
        (height + down, width + 5 * across),
        sizes.range.most,
        (height, width),
    ]


@pytest.mark.parametrize("name", [name for name in NETS if name not in OTHERS])
def test_a_size_has_the_program_that_it_would_be_lowered_to(name: str) -> None:
    net, sizes = opened(name)
    programs = SizedPrograms(np.frombuffer(net.stored(), np.uint8), sizes)
    for size in unseen(sizes):
        assert sizes.range.takes(*size), size
        expected = net.lowered(size)
        assert same_program(programs.alone(*size).tobytes(), expected.program, sizes.rounded), size
        assert sizes.result_shape(*size) == expected.result


def test_what_is_written_is_read_back() -> None:
    for name in ("anchored", "corners", "shuffled"):
        _, sizes = opened(name)
        text = json.dumps(sizes.to_dict())
        assert Sizes.from_dict(json.loads(text)).to_dict() == sizes.to_dict()
        assert len(text) < 64_000
    for key, value in (("multiple", [3, 3]), ("header", [[0, "none", [1, 2, 3, 4]]]), ("result", [[1]])):
        with pytest.raises((ValueError, KeyError)):
            Sizes.from_dict({**json.loads(text), key: value})


@pytest.mark.parametrize("typical", [(64, 96), (60, 92), (36, 44)])
def test_a_size_is_asked_that_half_of_tells_apart(typical: tuple[int, int]) -> None:
    """A map that is rolled by half of its width has other values at odd widths, and the same shapes."""
    sizes = OpenSizes((32, 32), (160, 160), (4, 4))
    asked = probes(typical, sizes)
    assert [(own - last) // 4 % 2 for own, last in zip(typical, asked[-1], strict=True)] == [1, 1]
    assert sizes.takes(*asked[-1])


class Halved(nn.Module):
    """Rolls a map by half of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x))
        result: torch.Tensor = self.out(x + torch.roll(x, x.shape[-1] // 2, -1))
        return result


def test_a_map_that_is_rolled_by_half_is_refused_where_sides_may_be_odd() -> None:
    spec = recipe((3, *TYPICAL), quantize={"observer": "minmax"})
    model, stats = calibrated(Halved(), spec, samples((3, *TYPICAL)))
    for step, is_right in ((4, True), (2, False)):
        sizes = OpenSizes((8, 8), (64, 96), (step, step))
        net = Open(model, stats, spec, sizes)
        lowered = [net.lowered(each) for each in probes(TYPICAL, sizes)]
        with ExitStack() as stack:
            if not is_right:
                stack.enter_context(pytest.raises(QuantizationError, match="no program for inputs of any size"))
            sizes_of(lowered, sizes)


def test_programs_that_differ_in_more_than_size_are_refused() -> None:
    net, sizes = opened("nearest")
    other, _ = opened("bilinear")
    two = [net.lowered(TYPICAL), other.lowered((32, 24))]
    with pytest.raises(QuantizationError, match="no program for inputs of any size"):
        sizes_of(two, sizes.range)
    typical = net.lowered(TYPICAL)
    with pytest.raises(QuantizationError, match="another way than the size"):
        sizes_of([typical, Lowered((8, 6), net.lowered((24, 24)).program, typical.result)], sizes.range)


def saved(name: str, directory: Path) -> Path:
    net, sizes = opened(name)
    path = directory / "model.pt"
    with engine("native"):
        save(net.at(TYPICAL).with_sizes(sizes, net.stored()), torch.zeros(1, 3, *TYPICAL), path)
    return path


def image(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).standard_normal((count, 3, height, width)).astype(np.float32)


@needs_kernels
@pytest.mark.parametrize("name", NETS)
def test_answers_are_those_of_a_program_for_that_size_alone(name: str, tmp_path: Path) -> None:
    net, sizes = opened(name)
    asked = [*unseen(sizes), TYPICAL]
    with InstancePool(saved(name, tmp_path), "native", 2, 2) as pool:
        for size in (*asked, *asked):
            batch = image(3, *size)
            alone = tmp_path / f"{size[0]}x{size[1]}.pt"
            if not alone.exists():
                with engine("native"):
                    save(net.at(size), torch.from_numpy(batch[:1]), alone)
            with InstancePool(alone, "native", 1, 1) as fixed:
                expected = fixed.run(batch)
            found = pool.run(batch)
            assert found.shape == expected.shape
            # Coordinates and resized tables may differ in their last bits, and a code by a step then.
            assert sqnr_db(expected, found) > 40.0 if sizes.rounded else np.array_equal(found, expected)
            with torch.inference_mode():
                assert sqnr_db(net.model.module(torch.from_numpy(batch)).numpy(), found) > 15.0


@needs_kernels
def test_sizes_share_their_weights_and_memory_is_bounded(tmp_path: Path) -> None:
    program = read_program(saved("transposed", tmp_path))
    assert program.sized is not None
    session = Session(program, 1)
    session(image(1, *TYPICAL))
    prepared, whole = session.prepared_bytes, program.sized.arena_bytes(64, 96)
    slack = 2 * (20 * (96 + 4) * 64 + 4096 * 4)  # what is mapped around the memory of the widest program
    for height in range(8, 65, 4):
        for width in range(8, 97, 4):
            session(image(1, height, width))
            assert session.memory_bytes <= whole + slack
    assert session.prepared_bytes == prepared
    assert program.sized.nbytes < 2_000_000
    session.close()


@needs_kernels
def test_more_sizes_than_are_kept_from_many_threads(tmp_path: Path) -> None:
    """Programs take the place of others while these run in other threads."""
    from concurrent.futures import ThreadPoolExecutor

    path = saved("nearest", tmp_path)
    asked = [(height, width) for height in range(8, 65, 4) for width in range(8, 97, 12)]
    with InstancePool(path, "native", 1, 1) as one:
        expected = {size: one.run(image(1, *size)) for size in asked}
    with InstancePool(path, "native", 1, 3) as pool, ThreadPoolExecutor(6) as threads:
        order = [asked[int(each)] for each in np.random.default_rng(0).integers(0, len(asked), 400)]
        for size, found in zip(order, threads.map(lambda size: pool.run(image(1, *size)), order), strict=True):
            assert np.array_equal(found, expected[size]), size


@needs_kernels
def test_places_that_are_never_given_back_cost_time_alone(tmp_path: Path) -> None:
    """As after exceptions of a signal handler: with all places in use, another size is still answered, and right."""
    program = read_program(saved("nearest", tmp_path))
    assert program.sized is not None
    session = Session(program, 1)
    expected = session(image(1, 64, 96)).copy()
    with ExitStack() as never_left:
        for width in range(8, 73, 4):
            for height in range(8, 25, 4):  # 85 of 64 places
                never_left.enter_context(program.sized.at(height, width))
        np.testing.assert_array_equal(session(image(1, 64, 96)), expected)
    np.testing.assert_array_equal(session(image(1, 64, 96)), expected)
    session.close()


@needs_kernels
def test_a_size_that_is_not_taken_is_an_error(tmp_path: Path) -> None:
    session = Session(read_program(saved("nearest", tmp_path)), 1)
    for size in ((18, 24), (68, 24), (4, 24)):
        with pytest.raises(RunnerError, match="height 8 to 64 in steps of 4, width 8 to 96 in steps of 4"):
            session(image(1, *size))
    session.close()


def test_a_note_without_sizes_is_as_before() -> None:
    assert json.loads(note_text("constants/0")) == {"record": "constants/0", "schema": 1}
