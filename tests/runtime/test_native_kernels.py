"""Every native kernel against plain integer arithmetic at odd sizes and extreme values, AMX, VNNI and AVX2 alike.

Then any batch and any number of threads, and programs that are damaged.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from native_convolutions import pixels
from native_nets import NETS as IMAGE_NETS
from native_nets import floats_out, last_writers
from video_nets import VIDEO_NETS

from cpupack.layers.native import codes_after
from cpupack.layers.times import profiled
from cpupack.runtime.engine import library
from cpupack.runtime.engine.program_format import BUFFER, LAYER
from helpers import kernel_process, native_reference
from helpers.damage_seeds import damage_seeds
from helpers.native_reference import Array, Reference

pytestmark = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")

NETS = {**IMAGE_NETS, **VIDEO_NETS}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    library.load()
    library.set_threads(1)


@pytest.mark.parametrize("name", NETS)
def test_each_layer_leaves_what_plain_arithmetic_gives(name: str) -> None:
    net = NETS[name]()
    x, program = net.tensors()
    for number, layer in last_writers(net).items():
        expected = net.values[number]
        found = codes_after(program, x, layer, expected.shape[1:])
        if net.program.layers[layer].op.name not in {"AVERAGE_POOL", "GLOBAL_AVERAGE", "SCALE", "ADD"}:
            np.testing.assert_array_equal(found, expected, err_msg=f"layer {layer}")
        else:  # their float32 sums are rounded in another order: a code may be the next one, where it was half way
            difference = np.abs(found.astype(int) - expected.astype(int))
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.01
    result = torch.ops.cpupack.run_3(x, program, net.program.outputs).numpy()
    assert net.result is not None
    if {layer.op.name for layer in net.program.layers} & {"AVERAGE_POOL", "GLOBAL_AVERAGE", "SCALE", "ADD"}:
        np.testing.assert_allclose(result, net.result, rtol=1e-5, atol=0.038)  # a code of the last layer
    else:
        np.testing.assert_array_equal(result, net.result)


@pytest.mark.parametrize(
    "name",
    [
        "3x3",
        "3x3 that reaches past a larger image",
        "depthwise 5x5 stride",
        "residual and table",
        "pools",
        "gate",
        "slices",
        "winograd, odd",
        "winograd, tiles of six",
        "moves of 3",
        "elementwise 19 and table",
        "resampled 64",
        "several results",
        "video residual",
        "video pools",
        "video elementwise",
        "video resized",
        "video depthwise 3x3x3 stride",
        "video 1x3x3 of many frames",
    ],
)
def test_neither_batch_nor_threads_change_a_byte(name: str) -> None:
    net = NETS[name]()
    x, program = net.tensors()
    alone = [torch.ops.cpupack.run_3(each[None], program, net.program.outputs) for each in x]
    for threads in (1, 2, 3):
        library.set_threads(threads)
        for batch in (1, 2, 5):
            many = x.repeat(5, 1, 1, 1)[:batch].contiguous(memory_format=torch.channels_last)
            found = torch.ops.cpupack.run_3(many, program, net.program.outputs)
            for sample in range(batch):
                assert torch.equal(found[sample], alone[sample % len(x)][0]), (threads, batch, sample)


@pytest.mark.parametrize("name", ["residual and table", "several results", "3x3"])
def test_a_run_with_a_clock_gives_the_same_bytes_and_a_time_for_each_layer(name: str) -> None:
    net = NETS[name]()
    x, program = net.tensors()
    found, ns = profiled(program, x, net.program.outputs)
    np.testing.assert_array_equal(found, torch.ops.cpupack.run_3(x, program, net.program.outputs).numpy())
    assert len(ns) == len(net.program.layers)
    assert (ns > 0).all()


def test_float_input_is_rounded_and_clamped() -> None:
    net = Reference(pixels(2, 3, 5, 7))
    net.output(0)
    net.program.layers[0].op = native_reference.Op.INPUT_FLOAT
    net.program.layers[0].fields = {"scale": 10.0, "output_zero_point": 100}
    net.program.input_channels_pixels, net.program.input_channels_float = 0, 7
    x = torch.randn(2, 7, 3, 5).mul(10.0).contiguous(memory_format=torch.channels_last)
    _, program = net.tensors()
    codes = codes_after(program, x, 0, (3, 5, 7))
    expected = native_reference.clip(x.permute(0, 2, 3, 1).numpy() * np.float32(10.0) + np.float32(100.0))
    np.testing.assert_array_equal(codes, expected)
    assert {0, 255} <= set(codes.flatten().tolist())


def test_there_is_nothing_to_see_of_the_result_and_of_layers_that_are_not() -> None:
    net = floats_out(1, 4, 5)
    x, program = net.tensors()
    for layer in (-1, 1, 2):
        with pytest.raises(RuntimeError, match="does not take"):
            codes_after(program, x, layer, (1, 1, 5))


def digests() -> dict[str, str]:
    """Return a hash of every buffer and result of every program, and the path that made them."""
    library.load()
    found = {"isa": library.describe()["isa"]}
    for name, make in NETS.items():
        net = make()
        x, program = net.tensors()
        text = hashlib.sha256()
        for number, layer in last_writers(net).items():
            text.update(codes_after(program, x, layer, net.values[number].shape[1:]).tobytes())
        text.update(torch.ops.cpupack.run_3(x, program, net.program.outputs).numpy().tobytes())
        found[name] = text.hexdigest()
    return found


@pytest.mark.parametrize("isa", ["vnni", "avx2"])
def test_lesser_instruction_sets_give_the_same_bytes(isa: str) -> None:
    kernel_process.same_digests_with(isa, "test_native_kernels", digests())


# --- damaged programs

DAMAGED = (
    "3x3 stride", "groups of 24", "groups of 8 in 12 out", "depthwise 5x5", "depthwise 7x7", "residual and table",
    "pools", "gate", "slices",
    "pixels by blocks", "winograd, odd", "winograd, tiles of six", "moves of 3", "elementwise 19", "resampled 19",
    "several results", "slopes of 33, up to 64", "video residual", "video pools", "video elementwise", "video resized",
    "video depthwise 3x3x3 stride", "video groups of 24",
)  # fmt: skip


def damage(seed: int) -> tuple[int, int]:
    """Run damaged programs; return how many ran and how many were refused. Must come back at all."""
    library.load()
    random = np.random.default_rng(seed)
    ran = refused = 0
    for name in DAMAGED:
        net = NETS[name]()
        x, program = net.tensors()
        library.set_threads(int(random.integers(1, 3)))
        for data in damaged(program.numpy(), random):
            data[40:48] = random.integers(0, 256, 8)  # another identity, so the kernels know nothing of the program
            outputs = int(data[32:36].view("<i4")[0])
            try:
                torch.ops.cpupack.run_3(x, torch.from_numpy(data), outputs)
                ran += 1
            except RuntimeError:
                refused += 1
    return ran, refused


def damaged(program: Array, random: np.random.Generator) -> list[Array]:
    """Return programs with one field changed (every one but the number of outputs), several, or cut off."""
    header = program[:64].view("<i4")
    end = 64 + BUFFER.itemsize * int(header[2]) + LAYER.itemsize * int(header[3])
    extremes = [-(2**31), -1, 0, 1, 2, 3, 31, 33, 64, 255, 4096, 2**15, 2**16, 2**24, 2**30, 2**31 - 1]
    found = []
    for place in [*range(0, 32, 4), *range(36, end, 4)]:
        for value in random.choice(extremes, 3, replace=False):
            data = program.copy()
            data[place : place + 4].view("<i4")[0] = value
            found.append(data)
    for _ in range(200):
        data = program.copy()
        for place in random.integers(36 // 4, end // 4, 3):
            data[4 * place : 4 * place + 4].view("<i4")[0] += random.integers(-4, 5)
        found.append(data)
    found.extend(program[: int(size)].copy() for size in random.integers(64, len(program), 40))
    return found


@pytest.mark.parametrize("seed", damage_seeds())
def test_damaged_programs_are_refused_or_run_but_never_crash(seed: int) -> None:
    # what runs: numbers that are only data: scales, zero points, halos in the slack
    kernel_process.damage_survived("test_native_kernels", seed, ran=100, refused=1000)
