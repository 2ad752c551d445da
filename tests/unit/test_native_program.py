"""Programs as bytes, what they count, and where their buffers lie: no value is overwritten while it is wanted."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from cpupack.stages.quantize.native.program import (
    Buffer,
    Flag,
    Layer,
    Op,
    Program,
    layers_alone,
    plan_memory,
)
from helpers import program_header

HEADER, BUFFER, LAYER = map(program_header.struct_format, ("header", "buffer", "layer"))
BATCH = 3


def conv(source: int, output: int, weight_bytes: int = 64, other: int = -1) -> Layer:
    return Layer(
        Op.CONV, input=source, input2=other, output=output, constants={"weights": np.zeros(weight_bytes, np.int8)}
    )


def test_bytes_are_what_the_engine_reads() -> None:
    program = Program(4, 5, input_channels_float=3, outputs=7)
    first = program.add_buffer(Buffer(4, 5, 3, 0.5, 9, halo=(1, 2), fill=9))
    program.layers.append(Layer(Op.INPUT_FLOAT, Flag.ONLY_FLOAT, output=first, fields={"scale": 2.0}))
    table = np.arange(256, dtype=np.uint8)
    weights = np.full(100, 7, np.int8)
    program.layers.append(
        Layer(
            Op.CONV,
            Flag.FLOAT_OUT,
            first,
            fields={"pad_h": 1, "low": 3},
            constants={"weights": weights, "table": table},
        )
    )
    data = program.to_bytes()
    header = struct.unpack_from(HEADER, data)
    assert header[:9] == (*map(program_header.constant, ("CPUPACK_MAGIC", "CPUPACK_VERSION")), 1, 2, 0, 3, 4, 5, 7)
    buffer = struct.unpack_from(BUFFER, data, struct.calcsize(HEADER))
    assert buffer == (4, 5, 3, 1, 2, 9, 1, 0, 0, (4 + 2) * (5 + 4) * 3)  # one frame, none around it
    at = struct.calcsize(HEADER) + struct.calcsize(BUFFER)
    one, two = (struct.unpack_from(LAYER, data, at + number * struct.calcsize(LAYER)) for number in (0, 1))
    assert one[:5] == (1, 16, -1, -1, 0)
    assert one[26] == 2.0
    assert two[:9] == (2, 1, 0, -1, -1, 1, 1, 1, 1)  # kernel and stride are one unless they are told
    assert two[24:26] == (3, 255)
    constants = header[13]
    assert constants % 64 == 0
    assert data[constants + two[32] :][:100] == weights.tobytes()
    assert two[35] % 64 == 0
    assert data[constants + two[35] :][:256] == table.tobytes()


def test_equal_programs_are_equal_bytes_and_others_have_another_identity() -> None:
    def make(value: int) -> bytes:
        program = Program(1, 1, 4, outputs=4)
        program.layers.append(Layer(Op.INPUT_FLOAT, output=program.add_buffer(Buffer(1, 1, 4, 1.0, 0))))
        program.layers.append(Layer(Op.TABLE, input=0, output=0, constants={"table": np.full(256, value, np.uint8)}))
        return program.to_bytes()

    assert make(1) == make(1)
    assert make(1)[40:48] != make(2)[40:48]


def test_operators_are_those_of_one_call() -> None:
    program = Program(2, 2, 3)
    for flags in (Flag.ONLY_FLOAT, Flag.ONLY_PIXELS):
        program.layers.append(Layer(Op.INPUT_FLOAT, flags))
        program.layers.append(Layer(Op.CONV, flags))
    program.layers.append(Layer(Op.CONV))
    assert program.operators() == {"cpupack::conv": 2, "cpupack::input_float": 1}
    program.input_channels_pixels = 4
    assert program.operators() == {"cpupack::conv": 2, "cpupack::input_float": 1}


def test_layers_run_alone_until_weights_outweigh_activations() -> None:
    buffers = [Buffer(10, 10, 4, 1.0, 0), Buffer(10, 10, 4, 1.0, 0), Buffer(1, 1, 8, 1.0, 0), Buffer(5, 5, 4, 1.0, 0)]
    gate = conv(1, 2, weight_bytes=10_000)  # between two layers of full size: not where the weights begin to weigh
    layers = [Layer(Op.INPUT_FLOAT, output=0), conv(0, 1, 800), gate, conv(1, 3, 500), conv(3, 3, 201)]
    assert layers_alone(buffers, layers) == 4
    assert layers_alone(buffers, layers[:4]) == 4
    assert layers_alone(buffers, [layers[0], conv(0, 1, 801)]) == 1


def random_layers(random: np.random.Generator) -> tuple[list[Buffer], list[Layer]]:
    """Layers that read any of what has been made, with slices of one buffer by several of them."""
    buffers = [Buffer(int(random.integers(1, 9)), 3, int(random.integers(1, 70)), 1.0, 0) for _ in range(12)]
    buffers[int(random.integers(12))].halo = 2, 1
    layers = [Layer(Op.INPUT_FLOAT, output=0)]
    for number in range(1, 12):
        for _ in range(int(random.integers(1, 3))):
            sources = random.integers(0, number, 2)
            layers.append(conv(int(sources[0]), number, other=int(sources[1]) if random.random() < 0.4 else -1))
    layers.append(Layer(Op.CONV, Flag.FLOAT_OUT, 11))
    return buffers, layers


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(20))
def test_no_value_is_overwritten_while_it_is_wanted(seed: int, share: float) -> None:
    """Runs the layers as the engine does, with the number of the buffer and the sample for values."""
    buffers, layers = random_layers(np.random.default_rng(seed))
    alone = round(share * len(layers))
    offsets, arena_bytes = plan_memory(buffers, layers, alone)
    arena = np.full(arena_bytes * BATCH, -1)
    passed = {each for layer in layers[alone:] for each in layer.reads()}

    def place(number: int, sample: int, *, apart: bool) -> slice:
        start = offsets[number] * BATCH + sample * buffers[number].sample_bytes * (apart or number in passed)
        return slice(start, start + buffers[number].sample_bytes)

    def run(layer: Layer, sample: int, *, apart: bool) -> None:
        for number in layer.reads():
            assert set(arena[place(number, sample, apart=apart)]) == {number * BATCH + sample}
        if layer.output >= 0:
            arena[place(layer.output, sample, apart=apart)] = layer.output * BATCH + sample

    for sample in range(BATCH):
        for layer in layers[:alone]:
            run(layer, sample, apart=False)
    for layer in layers[alone:]:
        for sample in range(BATCH):
            run(layer, sample, apart=True)


def test_memory_is_shared_by_what_is_never_alive_together() -> None:
    buffers = [Buffer(8, 8, 64, 1.0, 0) for _ in range(10)]
    layers = [Layer(Op.INPUT_FLOAT, output=0), *(conv(number, number + 1) for number in range(9))]
    assert plan_memory(buffers, layers, 0)[1] == 2 * buffers[0].sample_bytes
