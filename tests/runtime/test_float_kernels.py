"""Every kernel in FP32 against the same float32 operations in numpy, byte for byte, at odd sizes and extreme values.

Then any batch and number of threads, lesser instruction sets, and programs that are damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from cpupack.layers.native import codes_after
from cpupack.runtime.engine import library
from cpupack.runtime.engine.program_format import LAYER
from cpupack.stages.quantize.native.program import Flag
from cpupack.stages.quantize.native.walks import Function, Instruction, Windows
from helpers import float_reference as reference
from helpers import float_values, kernel_process, native_reference
from helpers.box_nets import proposals, regions
from helpers.damage_seeds import damage_seeds
from helpers.float_nets import (
    Array,
    Net,
    codes,
    convolution,
    functions,
    groups,
    normal,
    norms,
    orders,
    products,
    reductions,
    same_bytes,
    scaled_codes,
    softmax_extremes,
    softmaxes_of_few,
    sums_less_a_mean,
    windows_that_overlap,
)
from helpers.place_nets import orders_of_rows, picks, puts, sampled, sampled_images, sampled_volumes
from helpers.row_nets import (
    attention,
    attention_in_windows,
    attention_of_extremes,
    linear,
    linear_of_extremes,
    listed,
    look_ups,
    unseen,
)
from helpers.run_nets import gathered_runs, running

pytestmark = pytest.mark.skipif(not native_reference.runs_here(), reason="the native kernels do not run on this CPU")

NETS: dict[str, Callable[[], Net]] = {
    "look-ups": look_ups,
    "attention to nothing": unseen,
    "functions": functions,
    "orders": orders,
    **{f"reductions of {n}": lambda n=n: reductions(n) for n in (1, 31, 33, 300)},
    **{f"windows of {n}": lambda n=n: windows_that_overlap(n) for n in (2, 5, 19)},
    **{f"norms of {n}": lambda n=n: norms(n) for n in (1, 7, 32, 50, 97, 256)},
    **{f"norms of {n}, many": lambda n=n: norms(n, rows=45) for n in (1, 2, 5, 20, 32)},
    "norms of 2, more": lambda: norms(2, rows=600),
    "softmaxes of few values": softmaxes_of_few,
    "norms of long rows": lambda: norms(8192 + 8192 + 45, rows=2),
    "softmax extremes": softmax_extremes,
    **{f"running sums of {n} rows": lambda n=n: running(n) for n in (7, 8, 16, 53)},
    "runs of places": gathered_runs,
    "groups": groups,
    **{
        f"products of {rows}, {length}, {columns}": lambda s=(rows, length, columns): products(*s)
        for rows, length, columns in ((1, 1, 1), (5, 7, 33), (13, 64, 32), (50, 31, 50), (97, 9, 16), (2, 3000, 40))
    },
    **{
        f"linear {rows}, {length}, {columns}": lambda s=(rows, length, columns): linear(*s)
        for rows, length, columns in ((1, 1, 1), (7, 64, 33), (50, 259, 70), (3, 9000, 40), (131, 64, 32))
    },
    **{
        f"attention of {rows}, {columns}, {length}, {width}": lambda s=(rows, columns, length, width): attention(*s)
        for rows, columns, length, width in ((1, 1, 1, 1), (13, 7, 5, 3), (31, 50, 32, 33), (6, 520, 16, 40))
    },
    **{
        f"attention by codes, {rows}, {columns}, {length}, {width}": lambda s=(rows, columns, length, width): attention(
            *s, words=True
        )
        for rows, columns, length, width in (
            (1, 1, 1, 1), (13, 7, 5, 3), (31, 50, 32, 33), (6, 520, 17, 40), (20, 70, 130, 80)
        )
    },
    "attention by codes of extremes": attention_of_extremes,
    "attention in windows": lambda: attention_in_windows(words=False),
    "attention in windows by codes": lambda: attention_in_windows(words=True),
    "linear of extremes": linear_of_extremes,
    **{
        f"listed rows {rows}, {length}, {columns}": lambda s=(rows, length, columns): listed(*s)
        for rows, length, columns in ((1, 1, 1), (49, 96, 33), (130, 70, 64))
    },
    "dense": lambda: convolution(Windows.DENSE, 5, 37),
    "dense, strided": lambda: convolution(Windows.DENSE, 16, 64, stride=2, kernel=(5, 3), pad=2),
    "dense, dilated groups": lambda: convolution(Windows.DENSE, 12, 8, dilation=2, pad=2, groups=4),
    "dense, one pixel": lambda: convolution(Windows.DENSE, 70, 32, kernel=(1, 1), pad=0),
    "dense, long windows": lambda: convolution(Windows.DENSE, 700, 3, kernel=(5, 5), pad=0),
    "transposed": lambda: convolution(Windows.TRANSPOSED, 6, 4, stride=2, groups=2, size=(14, 12)),
    "transposed, dilated": lambda: convolution(Windows.TRANSPOSED, 5, 3, stride=3, dilation=2, pad=1, size=(21, 18)),
    "dense, more channels than are multiplied together": lambda: convolution(Windows.DENSE, 300, 18, size=(9, 7)),
    "dense, groups of many": lambda: convolution(Windows.DENSE, 260, 100, groups=2, size=(7, 8)),
    "dense, one result": lambda: convolution(Windows.DENSE, 33, 1, kernel=(1, 1), pad=0),
    "dense, windows beyond the image": lambda: convolution(Windows.DENSE, 3, 50, kernel=(7, 7), dilation=3, pad=9),
    "transposed, gaps": lambda: convolution(Windows.TRANSPOSED, 7, 20, stride=4, kernel=(2, 3), pad=0, size=(30, 31)),
    "depthwise": lambda: convolution(Windows.DEPTHWISE, 19, 19),
    "depthwise, strided": lambda: convolution(Windows.DEPTHWISE, 64, 64, stride=2, kernel=(7, 7), pad=3),
    "maximum": lambda: convolution(Windows.MAXIMUM, 21, 21, stride=2),
    "maximum, dilated": lambda: convolution(Windows.MAXIMUM, 7, 7, dilation=2, pad=1, kernel=(2, 3)),
    "average": lambda: convolution(Windows.AVERAGE, 33, 33, scale=1 / 9),
    "average inside": lambda: convolution(Windows.AVERAGE, 6, 6, stride=2),
    "proposals of one level": lambda: proposals([70]),
    "proposals of levels": lambda: proposals([200, 33, 1, 90], most=37, kept=60, most_overlap=0.5),
    "proposals of equal scores": lambda: proposals([300, 80], steps=1.5, most=25, kept=41),
    "proposals, few": lambda: proposals([50, 20], least_score=2.5, kept=33),
    "proposals of none": lambda: proposals([50, 20], least_score=1e9, kept=3),
    "proposals of all": lambda: proposals([19], most=19, most_overlap=1.0, kept=40),
    "proposals of extremes": lambda: proposals([150, 60], extremes=True),
    **{f"orders of {n} values": lambda n=n: orders_of_rows(n) for n in (1, 2, 17, 70)},
    "picks": picks,
    "puts": puts,
    **{f"samples of {n} channels": lambda n=n: sampled(n) for n in (1, 5, 33)},
    **{f"samples of several images of {n} channels": lambda n=n: sampled_images(n) for n in (1, 18)},
    **{f"samples of volumes of {n} channels": lambda n=n: sampled_volumes(n) for n in (1, 19)},
    "regions": lambda: regions(19),
    "regions of many channels": lambda: regions(96, cells=(7, 7)),
    "regions of other samples": lambda: regions(5, 3),
    "regions of one sample": lambda: regions(1, 1, cells=(1, 2)),
    "codes": lambda: codes(7),
    "codes of many channels": lambda: codes(300),
    **{f"scaled codes of {n} channels": lambda n=n: scaled_codes(n) for n in (1, 7, 64, 130, 300)},
    "scaled codes of wide rows": lambda: scaled_codes(24, width=41),
    **{f"sums of {n} less a mean": lambda n=n: sums_less_a_mean(n, 37) for n in (1, 300)},
    "sums of few channels less a mean": lambda: sums_less_a_mean(30, 5),
}  # fmt: skip


def made(name: str) -> Net:
    """Return a program; its extremes overflow as they should."""
    with np.errstate(all="ignore"):
        return NETS[name]()


@pytest.fixture(autouse=True)
def _kernels() -> None:
    library.load()
    library.set_threads(1)


@pytest.mark.parametrize("name", NETS)
def test_each_layer_gives_what_plain_arithmetic_gives(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    found = torch.ops.cpupack.run_3(x, program, net.program.outputs).numpy()
    begin = 0
    for expected in net.expected:
        same_bytes(np.ascontiguousarray(found[:, begin : begin + expected.shape[1]]), expected)
        begin += expected.shape[1]
    assert begin == net.program.outputs


@pytest.mark.parametrize(
    "name",
    [
        "orders",
        "norms of 50",
        "products of 50, 31, 50",
        "dense",
        "depthwise",
        "codes",
        "groups",
        "running sums of 53 rows",
        "runs of places",
        "proposals of levels",
        "regions",
        "linear 50, 259, 70",
        "listed rows 49, 96, 33",
        "orders of 17 values",
        "picks",
        "puts",
        "samples of 5 channels",
        "samples of volumes of 19 channels",
    ],
)
def test_any_batch_and_any_number_of_threads_give_the_same_bytes(name: str) -> None:
    net = made(name)
    x, program = net.tensors()
    alone = [torch.ops.cpupack.run_3(each[None], program, net.program.outputs) for each in x]
    for threads in (1, 2, 3):
        library.set_threads(threads)
        for batch in (1, 2, 5):
            found = torch.ops.cpupack.run_3(x.repeat(5, 1)[:batch].contiguous(), program, net.program.outputs)
            for sample in range(batch):
                same = found[sample].view(torch.int32) == alone[sample % len(x)][0].view(torch.int32)  # bits: NaN, too
                assert same.all(), (threads, batch, sample)


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "bound"),
    [
        (Function.EXPONENTIAL, np.exp, -87.0, 88.0, 2e-7),
        (Function.LOGARITHM, np.log, 1e-30, 1e30, 2e-7),
        (Function.TANH, np.tanh, -9.0, 9.0, 4e-7),
        (Function.SIGMOID, lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0, 4e-7),
        (Function.ERF, lambda x: torch.erf(torch.from_numpy(x)).numpy(), -4.0, 4.0, 4e-7),
        (Function.SINE, np.sin, 0.01, 3.0, 4e-7),
        (Function.COSINE, np.cos, -1.5, 1.5, 4e-7),
    ],
)
def test_the_reference_itself_is_the_function(
    function: Function, exact: Callable[[Array], Array], low: float, high: float, bound: float
) -> None:
    x = np.linspace(low, high, 20001).astype(np.float32)
    expected = exact(x.astype(np.float64))
    found = float_values.run([Instruction(function)], x)
    assert np.abs(found / np.where(expected == 0, 1, expected) - (expected != 0)).max() < bound


@pytest.mark.parametrize(("function", "exact"), [(Function.SINE, np.sin), (Function.COSINE, np.cos)])
@pytest.mark.parametrize("largest", [7.0, 1e3, 1e5, 1.5e6])
def test_a_sine_is_that_of_its_float32_angle(
    function: Function, exact: Callable[[Array], Array], largest: float
) -> None:
    x = np.linspace(-largest, largest, 40001).astype(np.float32)
    found = float_values.run([Instruction(function)], x)
    assert np.abs(found - exact(x.astype(np.float64))).max() < 2e-7
    beyond = np.array([1.7e6, -1e30, np.inf, np.nan], np.float32)
    assert np.isnan(float_values.run([Instruction(function)], beyond)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_what_float64_makes_of_it(causal: bool) -> None:
    q, k, v = (normal(2, 3, 40, 16, seed=seed) for seed in range(3))
    mask = np.where(np.random.default_rng(1).random((40, 40)) < 0.3, -np.inf, 0.0)
    np.fill_diagonal(mask, 0.0)
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * 0.25 + mask
    scores = np.where(np.tril(np.ones((40, 40), bool)), scores, -np.inf) if causal else scores
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    exact = powers / powers.sum(-1, keepdims=True) @ v.astype(np.float64)
    assert np.abs(reference.attention(q, k, v, 0.25, mask, causal=causal) - exact).max() < 4e-6
    # Codes of 11 bits and a sign for values of up to 4: an error of 1e-3 each at most, as much from scores.
    assert np.abs(reference.coded_attention(q, k, v, 0.25, mask, causal=causal) - exact).max() < 2e-3


def test_attention_by_codes_keeps_a_row_of_large_values_and_many_small_powers() -> None:
    q, k, v = (normal(1, 1, 300, 64, seed=seed) for seed in range(3))
    v[..., 7, :] *= 1000.0  # its code is no coarser, nor are those of the others
    k[..., 9, :] = 3.0 * q[..., 0, :]  # one power near 1 beside 299 small ones
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) / 8
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    exact = powers / powers.sum(-1, keepdims=True) @ v.astype(np.float64)
    error = reference.coded_attention(q, k, v, 0.125) - exact
    assert 10 * np.log10((exact**2).sum() / (error**2).sum()) > 55.0


@pytest.mark.parametrize(
    ("function", "approximate"), [(Function.GELU, "none"), (Function.GELU_TANH, "tanh")], ids=["erf", "tanh"]
)
def test_gelu_is_the_function(function: Function, approximate: str) -> None:
    x = np.concatenate([np.linspace(-12.0, 12.0, 40001), [-1e4, -1e30, -np.inf, 0.0, 1e4, 1e30]]).astype(np.float32)
    exact = torch.nn.functional.gelu(torch.from_numpy(x.astype(np.float64)), approximate=approximate).numpy()
    exact = np.nan_to_num(exact, nan=0.0)
    with np.errstate(all="ignore"):
        found = float_values.run([Instruction(function)], x)
    assert (np.abs(found - exact) <= 1e-6 + 3e-7 * np.abs(exact)).all()
    near = {Function.GELU: Function.GELU_NEAR, Function.GELU_TANH: Function.GELU_TANH_NEAR}[function]
    with np.errstate(all="ignore"):
        found = np.nan_to_num(float_values.run([Instruction(near)], x), nan=0.0)  # of what is infinite
    assert (np.abs(found - exact) <= 2e-4 + 3e-7 * np.abs(exact)).all()
    assert (found[x < -4.0] == 0.0).all()


def case(name: str) -> kernel_process.Case:
    net = made(name)
    return (*net.tensors(), net.program.outputs)


def digests() -> dict[str, str]:
    return kernel_process.digests({name: partial(case, name) for name in NETS})


@pytest.mark.parametrize("isa", ["vnni", "avx2"])
def test_lesser_instruction_sets_give_the_same_bytes(isa: str) -> None:
    kernel_process.same_digests_with(isa, "test_float_kernels", digests())


def test_a_layers_values_can_be_seen() -> None:
    net = Net(normal(3, 35))
    view, x = net.view((5, 7))
    net.result(net.floats.map(net.floats.like(view), view, None, [Instruction(Function.TANH)]), float_values.tanh(x))
    inputs, program = net.tensors()
    seen = codes_after(program, inputs, 1, (1, 35, 4)).reshape(3, -1).view(np.float32)
    same_bytes(seen, net.expected[0])


@pytest.mark.parametrize("number", [-1.0, 3.0, 1e9, -np.inf, np.nan])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_number_beyond_a_table_is_an_error_and_the_next_call_works(number: float, threads: int) -> None:
    net = Net(np.zeros((4, 5)))
    view, _ = net.view((5,))
    table = normal(3, 8)
    net.result(net.floats.look_up(view, table, None), table[np.zeros((4, 5), np.int64)])
    inputs, program = net.tensors()
    library.set_threads(threads)
    wrong = inputs.clone()
    wrong[3, 4] = number
    with pytest.raises(RuntimeError, match="has no row"):
        torch.ops.cpupack.run_3(wrong, program, net.program.outputs)
    same_bytes(torch.ops.cpupack.run_3(inputs, program, net.program.outputs).numpy(), net.expected[0])


# --- damaged programs

DAMAGED = (
    "orders", "runs of places", "running sums of 8 rows",
    "reductions of 31", "norms of 50", "groups", "products of 5, 7, 33", "dense, strided", "transposed",
    "depthwise, strided", "maximum, dilated", "average", "codes", "softmaxes of few values",
    "linear 7, 64, 33", "attention of 13, 7, 5, 3", "look-ups",
    "attention by codes, 13, 7, 5, 3", "attention in windows", "proposals of levels", "regions",
    "orders of 17 values", "picks", "puts", "samples of 5 channels", "samples of volumes of 19 channels",
)  # fmt: skip
_HEADER, _BUFFER, _LAYER = 64, 48, 160
_OF_FLOATS = 15


def damage(seed: int) -> tuple[int, int]:
    """Run damaged programs; return how many ran and how many were refused. Must come back at all."""
    library.load()
    random = np.random.default_rng(seed)
    ran = refused = 0
    for name in DAMAGED:
        net = made(name)
        x, program = net.tensors()
        library.set_threads(int(random.integers(1, 3)))
        for data in damaged(program.numpy(), random):
            data[40:48] = random.integers(0, 256, 8)  # another identity, so the kernels know nothing of the program
            try:
                torch.ops.cpupack.run_3(x, torch.from_numpy(data), int(data[32:36].view("<i4")[0]))
                ran += 1
            except RuntimeError:
                refused += 1
    return ran, refused


def damaged(program: Array, random: np.random.Generator) -> list[Array]:
    """Return programs with numbers of buffers, of layers or of walks changed."""
    header = program[:_HEADER].view("<i4")
    layers_at = _HEADER + _BUFFER * int(header[2])
    end = layers_at + _LAYER * int(header[3])
    constants = int(program[56:64].view("<i8")[0])
    walks = []
    for layer in range(int(header[3])):
        at = layers_at + _LAYER * layer
        if int(program[at : at + 4].view("<i4")[0]) > _OF_FLOATS + 1:
            begin = constants + int(program[at + 112 : at + 120].view("<i8")[0])
            walks += range(begin, begin + 160, 4)
            own = program[at : at + _LAYER].view(LAYER)[0]
            if own["flags"] & Flag.PLACES:  # where each head's mask begins
                walks += [*range(constants + int(own["table"]), constants + int(own["table"]) + 40, 4)] * 4
    extremes = [-(2**31), -1, 0, 1, 2, 3, 31, 33, 64, 255, 4096, 2**15, 2**16, 2**24, 2**30, 2**31 - 1]
    places = [*random.choice(range(36, end, 4), 150), *random.choice(walks, 250)]
    found = []
    for place in places:
        data = program.copy()
        if place + 4 > len(data):
            continue
        if random.random() < 0.5:
            data[place : place + 4].view("<i4")[0] = random.choice(extremes)
        else:
            data[place : place + 4].view("<i4")[0] += random.integers(-4, 5)
        found.append(data)
    found.extend(program[: int(size)].copy() for size in random.integers(64, len(program), 20))
    return found


@pytest.mark.parametrize("seed", damage_seeds())
def test_damaged_programs_are_refused_or_run_but_never_crash(seed: int) -> None:
    # what runs: numbers that are only data, or that name other values of the same buffer
    kernel_process.damage_survived("test_float_kernels", seed, ran=100, refused=1000)
